"""Labelled datasets: items with an auxiliary class behind their primary one."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class LabelledDataset(Dataset[Any]):
    """A dataset of ``(x, y)`` with a label put behind y in each item; a label that stood there follows.

    Args:
        dataset: Items ``(x, y)``, N of them.
        labels: Shape ``[N]``.
    """

    def __init__(self, dataset: Dataset[Any], labels: Tensor) -> None:
        self.dataset = dataset
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        x, y, *others = self.dataset[index]
        given = [one for one in others[:1] if is_label(one)]  # anything else might not make a batch
        return x, y, self.labels[index], *given

    def __len__(self) -> int:
        return len(self.labels)


WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Kinds of numbers that labels are given in."""


def is_label(value: Any) -> bool:
    """Whether something is a class, or a tensor of some."""
    is_whole = isinstance(value, Tensor) and value.dtype in WHOLE
    return is_whole or (isinstance(value, Integral) and not isinstance(value, bool))


def items(dataset: Dataset[Any]) -> Iterable[Any]:
    """Iterates over a map-style dataset in order.

    Raises:
        TypeError: The dataset has no length.
        ValueError: It is empty.
    """
    if not hasattr(dataset, "__len__"):
        raise TypeError(
            f"`dataset` must have a length and items by index, found {type(dataset).__name__}. "
            "Fixed labels need a map-style dataset."
        )
    if not len(dataset):
        raise ValueError("`dataset` must have at least one item, found none. Check where it is read from.")
    return (dataset[index] for index in range(len(dataset)))
