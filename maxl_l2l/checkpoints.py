"""Checkpoints: everything that a run needs to go on as if it had not stopped, in one file of plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .files import replace_file
from .ranks import Ranks

FORMAT = 3


class Stateful(Protocol):
    """Anything with a state: a module, an optimizer, a scheduler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run.

    Attributes:
        parts: Modules, optimizers and schedulers, by name.
        ranks: The processes of the run; rank 0 writes, for all.
    """

    parts: Mapping[str, Stateful]
    ranks: Ranks

    def save(self, path: Path, progress: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Writes the state of all parts and the run's progress, replacing the file as a whole.

        Args:
            path: The file.
            progress: What all ranks have in common, plain data.
            own: What each rank has of its own, tensors and plain data.

        Raises:
            OSError: The file can't be written; what stood there before is intact.
        """
        everyone = self.ranks.gathered(dict(own))
        if self.ranks.rank != 0:
            return
        content = {
            "format": FORMAT,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "progress": dict(progress),
            "ranks": everyone,
        }
        replace_file(path, lambda file: torch.save(content, file))

    def read(self, path: Path) -> dict[str, Any]:
        """Returns what a file holds, for :meth:`restore`; changes nothing.

        Raises:
            OSError: The file can't be read.
            ValueError: It is no checkpoint, of another format, or of a run with other parts.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            assert isinstance(content, dict)
        except OSError:
            raise
        except Exception as error:  # what torch.load raises depends on which bytes it stumbles over
            raise ValueError(
                f"`checkpoint` must be a file that fit() wrote, found {path}, which can't be read as one: {error!r}. "
                "Name another file."
            ) from error
        found = list(content.get("parts", {}))
        if content.get("format") != FORMAT or found != list(self.parts):
            raise ValueError(
                f"`checkpoint` must be of format {FORMAT} and hold {', '.join(self.parts)}, found format "
                f"{content.get('format')} with {', '.join(found) or 'nothing'} in {path}. "
                "Name another file, or pass the optimizers and schedulers that the run had."
            )
        return content

    def restore(self, content: Mapping[str, Any]) -> None:
        """Puts all parts back into the state that was saved."""
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])


def unwritten(path: Path, error: OSError, former: str | None) -> OSError:
    """Returns the system's error with what it means for the run.

    Args:
        path: The checkpoint that could not be written.
        error: Why.
        former: What this run has saved there before, in words; None for nothing.
    """
    if former is not None:
        kept = f"The former checkpoint, of {former}, is intact: make room and go on with resume=True"
    else:
        kept = "What was there before is intact" if path.exists() else "There is no checkpoint yet"
        kept += ": make room or name another file, and begin again"
    message = (
        f"`checkpoint` must be a file that can be written, found that {path} can't: {error.strerror or error}. "
        f"{kept}; the learner holds what it has learned."
    )
    return OSError(message) if error.errno is None else OSError(error.errno, message)
