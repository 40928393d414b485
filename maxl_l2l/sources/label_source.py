"""The interface of label sources, and the source without labels."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from ..hypergradient import Batch, StepResult
from ..labels import Hierarchy
from ..learners import AuxiliaryLabelGenerator


class LabelSource(ABC):
    """What a training loop asks of a source of auxiliary labels.

    Attributes:
        trains_generator: Whether there is a second stage, which trains the generator.
        learns_from_meta_gradient: Whether the generator learns from the hypergradient.
        num_elements: Elements of a batch that the source uses. An element after them is a given label, used in metrics
            alone. None if the number is not known.
    """

    trains_generator: bool = False
    learns_from_meta_gradient: bool = False
    num_elements: int | None = None

    def label(self, dataset: Dataset[Any], psi: Hierarchy | Iterable[int]) -> Dataset[Any]:
        """Returns the dataset that this source trains on.

        Args:
            dataset: Items ``(x, y)``; y is a primary class.
            psi: The hierarchy, or its C sizes.

        Returns:
            The dataset itself, or one of items ``(x, y, label)`` for a source whose labels are fixed beforehand.
        """
        return dataset

    def gradient_cosine(self, maxl: AuxiliaryLabelGenerator, batch: Any, micro_batches: int = 1) -> Tensor | None:
        """Returns :meth:`AuxiliaryLabelGenerator.gradient_cosine` on a batch; None without an auxiliary task."""
        return None

    @abstractmethod
    def network_step(
        self, maxl: AuxiliaryLabelGenerator, batch: Any, optimizer: Optimizer, **options: Any
    ) -> StepResult:
        """Trains the network on one batch.

        Args:
            maxl: The learner.
            batch: ``(x, y)``, or ``(x, y, label)`` from a labelled dataset.
            optimizer: Holds the network's parameters.
            options: Of :meth:`AuxiliaryLabelGenerator.step`: micro_batches, max_grad_norm and scaler, if given.
        """

    def generator_step(
        self,
        maxl: AuxiliaryLabelGenerator,
        batch: Any,
        optimizer: Optimizer,
        generator_optimizer: Optimizer,
        meta_batch: Batch | None = None,
        **options: Any,
    ) -> StepResult:
        """Trains the generator on one batch; called only if :attr:`trains_generator`."""
        raise NotImplementedError(f"{type(self).__name__} has no generator to train.")

    def step(
        self,
        maxl: AuxiliaryLabelGenerator,
        batch: Any,
        optimizer: Optimizer,
        generator_optimizer: Optimizer,
        meta_batch: Batch | None = None,
        **options: Any,
    ) -> StepResult:
        """Trains the network, and the generator if there is one to train, on one batch."""
        return self.network_step(maxl, batch, optimizer, **options)


class SingleTask(LabelSource):
    """No auxiliary labels: the primary task alone, the baseline."""

    def network_step(
        self, maxl: AuxiliaryLabelGenerator, batch: Any, optimizer: Optimizer, **options: Any
    ) -> StepResult:
        x, y = batch[:2]
        return maxl.network_step(x, y, optimizer, auxiliary=False, **options)
