"""Micro-batches: parts of a batch that go through the networks one after the other, to save memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def split(batch: tuple[Any, Tensor], number: int) -> list[tuple[Any, Tensor]]:
    """Splits a batch into parts as equal as can be.

    Args:
        batch: x, a tensor or a mapping of tensors whose first dimension is N, and y, likewise.
        number: Parts wanted; fewer are returned if the batch has fewer samples.

    Raises:
        TypeError: x is of another kind and there is more than one part to make.
    """
    x, y = batch
    if number == 1:
        return [batch]
    labels = y.tensor_split(min(number, len(y)))
    sizes = [len(part) for part in labels]
    if isinstance(x, Tensor):
        return list(zip(x.split(sizes), labels))
    if isinstance(x, Mapping):
        parts = {key: _split(value, sizes) for key, value in x.items()}
        return [({key: values[at] for key, values in parts.items()}, part) for at, part in enumerate(labels)]
    raise TypeError(
        f"`micro_batches` needs an x that can be split, a tensor or a mapping of tensors, found {type(x).__name__}. "
        "Use micro_batches=1."
    )


def num_samples(batch: tuple[Any, Tensor]) -> int:
    """Samples in a batch."""
    return len(batch[1])


def _split(value: Any, sizes: list[int]) -> list[Any]:
    """Splits a tensor with a row per sample; anything else goes into every part."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == sum(sizes):
        return list(value.split(sizes))
    return [value] * len(sizes)
