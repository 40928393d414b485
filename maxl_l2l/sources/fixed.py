"""Fixed labels: one auxiliary class for each sample, chosen before training, and a dataset that includes them."""

from abc import abstractmethod
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ..hypergradient import StepResult
from ..labels import Hierarchy
from ..learners import AuxiliaryLabelGenerator
from .label_source import LabelSource


class FixedLabels(LabelSource):
    """One auxiliary class per training sample, chosen before training."""

    num_elements = 3

    @abstractmethod
    def assign(self, dataset: Dataset[Any], y: Tensor, hierarchy: Hierarchy) -> Tensor:
        """Chooses the labels.

        Args:
            dataset: Items ``(x, y)``, N of them.
            y: Their primary classes, int64, ``[N]``.
            hierarchy: The hierarchy.

        Returns:
            Auxiliary classes, int64, ``[N]``, each in the block of its primary class.
        """

    def label(self, dataset: Dataset[Any], psi: Hierarchy | Iterable[int]) -> Dataset[Any]:
        """Returns the dataset with a third element in each item, its auxiliary class.

        Raises:
            TypeError: y or the labels are not int64, or the dataset has no length.
            ValueError: y is out of range or dense, or the labels are too many or too few, or lie outside the block of
                their primary class.
        """
        hierarchy = Hierarchy.of(psi)
        y = torch.stack([torch.as_tensor(item[1]) for item in items(dataset)])
        hierarchy.check_labels(y)
        if y.dim() != 1:
            raise ValueError(
                f"`dataset` must have one primary class per item for {type(self).__name__}, found labels of shape "
                f"{list(y.shape[1:])}. Give dense labels as targets= of network_step(), or write a LabelSource."
            )
        labels = self.assign(dataset, y, hierarchy)
        hierarchy.check_auxiliary(labels, y)
        return LabelledDataset(dataset, labels)

    def network_step(
        self, maxl: AuxiliaryLabelGenerator, batch: Any, optimizer: Optimizer, **options: Any
    ) -> StepResult:
        x, y, labels = self._elements(batch)
        return maxl.network_step(x, y, optimizer, targets=labels, **options)

    def gradient_cosine(self, maxl: AuxiliaryLabelGenerator, batch: Any, micro_batches: int = 1) -> Tensor | None:
        x, y, labels = self._elements(batch)
        return maxl.gradient_cosine(x, y, targets=labels, micro_batches=micro_batches)

    def _elements(self, batch: Any) -> tuple[Any, Tensor, Tensor]:
        if len(batch) < 3:
            raise ValueError(
                f"`loader` must yield (x, y, label) for {type(self).__name__}, found {len(batch)} elements. "
                "Make it from source.label(dataset, psi)."
            )
        return batch[0], batch[1], batch[2]


class RandomLabels(FixedLabels):
    """A sub-class drawn at random for each sample, once: the control for the effect of any auxiliary task.

    Args:
        seed: Seed of the draw.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def assign(self, dataset: Dataset[Any], y: Tensor, hierarchy: Hierarchy) -> Tensor:
        sizes = torch.tensor(hierarchy.psi)
        starts = sizes.cumsum(0) - sizes
        draws = torch.rand(len(y), generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return starts[y] + (draws * sizes[y]).long()


class HumanLabels(FixedLabels):
    """Labels that people gave: the reference for invented ones.

    Args:
        labels: Auxiliary classes of the training set in its order, int64, ``[N]``.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def assign(self, dataset: Dataset[Any], y: Tensor, hierarchy: Hierarchy) -> Tensor:
        return self.labels


class LabelledDataset(Dataset[Any]):
    """A dataset of ``(x, y)`` with a label inserted after y in each item; a label that was there comes after it.

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
"""The integer dtypes that labels may have."""


def is_label(value: Any) -> bool:
    """Whether a value is a class index, or a tensor of these."""
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
