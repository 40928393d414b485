"""Batches: what comes out of a data loader, checked and on the right device."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..passes import map_tensors


def check_loader(loader: Any, argument: str, required: bool) -> None:
    """Raises unless loader is an iterable that is not known to be empty; None passes if it is not required."""
    if loader is None and not required:
        return
    if not isinstance(loader, Iterable):
        raise TypeError(f"`{argument}` must yield batches (x, y), found {type(loader).__name__}. Pass a DataLoader.")
    if length(loader) == 0:
        raise ValueError(f"`{argument}` must yield at least one batch, found none. Check the dataset behind it.")


def length(loader: Iterable[Any]) -> int | None:
    """Batches in a pass; None if a loader has no length (with an iterable dataset its ``__len__`` raises)."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def set_epoch(loader: Any, epoch: int) -> None:
    """Sets the epoch of a loader's sampler, by which a DistributedSampler shuffles."""
    tell = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if callable(tell):
        tell(epoch)


def moved(batch: Any, device: torch.device, argument: str = "loader") -> tuple[Any, ...]:
    """Returns a batch ``(x, y)`` or ``(x, y, label)`` on a device; raises TypeError if it is something else.

    The argument is the name of the loader that it comes from, for the message.
    """
    is_sequence = isinstance(batch, (tuple, list))
    if not is_sequence or len(batch) < 2:
        found = f"a {type(batch).__name__} of {len(batch)}" if is_sequence else type(batch).__name__
        raise TypeError(
            f"`{argument}` must yield batches (x, y) or (x, y, label), found {found}. "
            "Give DataLoader a dataset of such tuples; y are the classes."
        )
    return tuple(map_tensors(lambda tensor: tensor.to(device, non_blocking=True), part) for part in batch)


def given_labels(batch: Sequence[Any], num_elements: int | None) -> Any:
    """Returns the element of a batch after those that a source uses; None if there is none."""
    return None if num_elements is None or len(batch) <= num_elements else batch[num_elements]
