"""Fixed labels: one auxiliary class for each sample, chosen before training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ..hypergradient import StepResult
from ..labels import Hierarchy
from ..learners import AuxiliaryLabelGenerator
from .label_source import LabelSource
from .labelled_dataset import LabelledDataset, items


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
    """A sub-class drawn at random for each sample, once: what an auxiliary task does by its mere presence.

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
    """Labels that somebody gave, the reference to reach without them.

    Args:
        labels: Auxiliary classes of the training set in its order, int64, ``[N]``.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def assign(self, dataset: Dataset[Any], y: Tensor, hierarchy: Hierarchy) -> Tensor:
        return self.labels
