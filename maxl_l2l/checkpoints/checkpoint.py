"""Checkpoints: all that a run needs to continue exactly, in one file of tensors and plain data."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checks import some
from ..distributed import Ranks
from ..errors import is_out_of_memory
from ..inner_step import RULES
from ..passes import write_buffers
from ..version import VERSION
from .atomic_files import replace_file
from .file_format import FORMAT, not_finite, previous, read_file
from .plain_data import plain, unreadable


class Stateful(Protocol):
    """Anything with a state: a module, an optimizer, a scheduler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run.

    Attributes:
        parts: Modules, optimizers and schedulers, by name.
        ranks: The processes of the run; rank 0 writes for all of them.
    """

    parts: Mapping[str, Stateful]
    ranks: Ranks

    def save(self, path: Path, progress: Mapping[str, Any], own: Mapping[str, Any], keep: bool = True) -> None:
        """Writes the state of all parts and the run's progress, replacing the file as a whole.

        Args:
            path: The file.
            progress: What all ranks have in common, plain data.
            own: This rank's own part, tensors and plain data.
            keep: Whether the old file is kept, see :func:`previous`.

        Raises:
            OSError: The file can't be written; the old one is intact.
        """
        everyone = self.ranks.gathered(dict(own))
        if self.ranks.rank != 0:
            return
        content = {
            "format": FORMAT,
            "version": VERSION,
            "parts": {name: plain(part.state_dict()) for name, part in self.parts.items()},
            "progress": plain(dict(progress)),
            "ranks": everyone,
        }
        replace_file(path, lambda file: torch.save(content, file), keep=previous(path) if keep else None)

    def check_readable(self) -> None:
        """Raises ValueError if a part's state could be saved, but not loaded again."""
        for name, part in self.parts.items():
            found = unreadable(plain(part.state_dict()))
            if found is not None:
                raise ValueError(
                    f"`checkpoint` must hold tensors and plain data alone, found something else in the state of "
                    f"{name}: {found}. Keep numbers and tensors there, or train without a checkpoint."
                )

    def read(self, path: Path) -> dict[str, Any]:
        """Returns what a file holds, for :meth:`restore`; changes nothing.

        Raises:
            OSError: The file can't be read.
            ValueError: It is no checkpoint, damaged, of another format, or of a run with other parts.
        """
        content = read_file(path)
        found = list(content["parts"])
        if found != list(self.parts):
            raise ValueError(
                f"`checkpoint` must hold {', '.join(self.parts)}, found {', '.join(map(str, found)) or 'nothing'} in "
                f"{path}. Name another file, or pass the optimizers and schedulers that the run had."
            )
        return content

    def restore(self, content: Mapping[str, Any], path: Path) -> None:
        """Loads the saved states into all parts, or into none.

        Raises:
            ValueError: A state does not fit its part; all parts are as they were.
        """
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}
        name = ""
        try:
            for name, part in self.parts.items():
                _check_state(part, content["parts"][name])
                part.load_state_dict(content["parts"][name])
                if isinstance(part, Optimizer):
                    _check_optimizer(part)
        except BaseException as error:  # parts raise errors of any kind
            for part, state in zip(self.parts.values(), before.values()):
                part.load_state_dict(state)
            if not isinstance(error, Exception) or is_out_of_memory(error):
                raise
            raise ValueError(
                f"`checkpoint` must be of a run with the same {name}, found in {path} that {_words(error)}. Build the "
                "learner, its optimizers and schedulers as that run did, or name another file."
            ) from error


class Buffers:
    """The buffers of a module that its state leaves out (``persistent=False``), as a part of a checkpoint."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        saved = self.module.state_dict()
        return {name: buffer for name, buffer in self.module.named_buffers() if name not in saved}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        write_buffers([(self.module, state)])


class _Unfit(Exception):
    """A state that does not fit; the message says why."""


def _check_state(part: Stateful, state: Any) -> None:
    """Raises _Unfit unless a state has the part's entries in their shapes, and finite parameters."""
    own = part.state_dict()
    if not isinstance(state, Mapping):
        raise _Unfit(f"its state is a {type(state).__name__}")
    missing, foreign = [name for name in own if name not in state], [str(name) for name in state if name not in own]
    if missing or foreign:
        words = [f"it lacks {some(missing)}"] * bool(missing) + [f"it has {some(foreign)}"] * bool(foreign)
        raise _Unfit(" and ".join(words))
    for name, value in own.items():
        if isinstance(value, Tensor) and _kind(state[name]) != _kind(value):
            raise _Unfit(f"its {name} is {_kind(state[name])} where this run has {_kind(value)}")
    if isinstance(part, nn.Module):
        parameters = {name for name, p in part.named_parameters(remove_duplicate=False) if p.requires_grad}
        wrong = not_finite({name: value for name, value in state.items() if name in parameters})
        if wrong:
            raise _Unfit(f"it holds NaN or infinity in {some(wrong)}")


def _check_optimizer(optimizer: Optimizer) -> None:
    """Raises unless an optimizer of torch.optim can take a step with its loaded state, and parameters stay finite."""
    if type(optimizer) not in RULES:
        return
    trial = copy.deepcopy(optimizer)
    held = [parameter for group in trial.param_groups for parameter in group["params"] if parameter.requires_grad]
    for parameter in held:
        parameter.grad = torch.zeros_like(parameter)
    trial.step()
    if not_finite({str(number): parameter for number, parameter in enumerate(held)}):
        raise _Unfit("its state turns parameters into NaN or infinity")


def _kind(value: Any) -> str:
    """Shape and dtype of a tensor, in words."""
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _words(error: Exception) -> str:
    if isinstance(error, _Unfit):
        return str(error)
    return f"its state does not fit: {type(error).__name__}: {' '.join(str(error).split())}".rstrip(".")


def unwritten(path: Path, error: OSError, saved: str | None) -> OSError:
    """Returns the system's error, with a message that says what it means for the run.

    Args:
        path: The checkpoint that could not be written.
        error: The system's error.
        saved: What this run has saved there before, in words; None for nothing.
    """
    if saved is not None:
        kept = f"The former checkpoint, of {saved}, is intact: free disk space and go on with resume=True"
    else:
        kept = "What was there before is intact" if path.exists() else "There is no checkpoint yet"
        kept += ": free disk space or name another file, and begin again"
    message = (
        f"`checkpoint` must be a file that can be written, found that {path} can't: {error.strerror or error}. "
        f"{kept}; the learner holds what it has learned."
    )
    return OSError(message) if error.errno is None else OSError(error.errno, message)
