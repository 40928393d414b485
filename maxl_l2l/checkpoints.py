"""Checkpoints: everything that a run needs to go on as if it had not stopped, in one file of plain tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from .files import replace_file
from .passes import RandomState
from .ranks import Ranks

FORMAT = 2


class Stateful(Protocol):
    """Anything with a state: a module, an optimizer, a scheduler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run.

    Attributes:
        parts: Modules, optimizers and schedulers, by name.
        generators: Random number generators of the data loaders; None for a loader without one.
        devices: CUDA devices whose random state counts.
        ranks: The processes of the run; rank 0 writes, with the random states of all.
    """

    parts: Mapping[str, Stateful]
    generators: Sequence[torch.Generator | None]
    devices: Sequence[int]
    ranks: Ranks

    def save(self, path: Path, progress: Mapping[str, Any]) -> None:
        """Writes the state of all parts and the run's progress, plain data, replacing the file as a whole."""
        random = RandomState(self.devices)
        everyone = self.ranks.gathered(
            {
                "generators": [None if generator is None else generator.get_state() for generator in self.generators],
                "cpu": random.cpu,
                "devices": random.devices,
            }
        )
        if self.ranks.rank != 0:
            return
        content = {
            "format": FORMAT,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "random": everyone,
            "progress": dict(progress),
        }
        replace_file(path, lambda file: torch.save(content, file))

    def restore(self, path: Path, device: torch.device) -> dict[str, Any]:
        """Puts all parts back into the state that was saved and returns the progress.

        Raises:
            OSError: The file can't be read.
            ValueError: It is no checkpoint, of another format, or of a run with other parts.
        """
        try:
            content = torch.load(path, map_location=device, weights_only=True)
            assert isinstance(content, dict)
        except OSError:
            raise
        except Exception as error:  # what torch.load raises depends on which bytes it stumbles over
            raise ValueError(
                f"`checkpoint` must be a file that fit() wrote, found {path}, which can't be read as one: {error}. "
                "Name another file."
            ) from error
        found = list(content.get("parts", {}))
        if content.get("format") != FORMAT or found != list(self.parts):
            raise ValueError(
                f"`checkpoint` must be of format {FORMAT} and hold {', '.join(self.parts)}, found format "
                f"{content.get('format')} with {', '.join(found) or 'nothing'} in {path}. "
                "Name another file, or pass the optimizers and schedulers that the run had."
            )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        random = content["random"][self.ranks.rank % len(content["random"])]
        for generator, state in zip(self.generators, random["generators"]):
            if generator is not None and state is not None:
                generator.set_state(state.cpu())
        torch.set_rng_state(random["cpu"].cpu())
        for number, state in random["devices"].items():
            torch.cuda.set_rng_state(state.cpu(), number)
        progress: dict[str, Any] = content["progress"]
        return progress
