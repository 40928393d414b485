"""Micro-batches: parts of a batch that go through the networks one after the other, to save memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
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


def joined(batches: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Joins batches into one, the inverse of :func:`split`.

    Args:
        batches: ``(x, y)``, or more elements, each as in :func:`split`; all have the same elements.

    Raises:
        TypeError: There are several, and an element can't be joined.
        ValueError: Samples are not all of one shape.
    """
    if len(batches) == 1:
        return batches[0]
    sizes = [len(batch[1]) for batch in batches]
    return tuple(_joined(parts, sizes) for parts in zip(*batches))


def num_samples(batch: tuple[Any, Tensor]) -> int:
    """Samples in a batch."""
    return len(batch[1])


def _split(value: Any, sizes: list[int]) -> list[Any]:
    """Splits a tensor with a row per sample; anything else goes into every part."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == sum(sizes):
        return list(value.split(sizes))
    return [value] * len(sizes)


def _joined(parts: Sequence[Any], sizes: list[int]) -> Any:
    """Joins tensors with a row per sample, also in mappings, where anything else must be the same in all parts."""
    first = parts[0]
    if isinstance(first, Mapping) and all(isinstance(part, Mapping) and part.keys() == first.keys() for part in parts):
        values = {key: [part[key] for part in parts] for key in first}
        return {key: found[0] if _all_same(found) else _joined(found, sizes) for key, found in values.items()}
    if not all(isinstance(part, Tensor) and part.dim() > 0 and len(part) == n for part, n in zip(parts, sizes)):
        raise TypeError(
            "`accumulate` needs batches that can be joined, of tensors with a row for each sample or mappings of such "
            f"tensors, found {type(first).__name__}. Use accumulate=1."
        )
    if any(part.shape[1:] != first.shape[1:] for part in parts):
        raise ValueError(
            "`accumulate` needs batches whose samples have one shape, found "
            f"{' and '.join(str(list(shape)) for shape in dict.fromkeys(part.shape[1:] for part in parts))}. "
            "Pad them to one length in the data loader."
        )
    return torch.cat(list(parts))


def _all_same(values: list[Any]) -> bool:
    """Whether values other than tensors with rows are equal."""
    if any(isinstance(value, Tensor) and value.dim() > 0 for value in values):
        return False
    return all(bool(value == values[0]) for value in values)
