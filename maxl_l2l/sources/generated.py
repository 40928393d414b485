"""Generated labels: those of a label generator, trained by the hypergradient or without it."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..hypergradient import Batch, StepResult
from ..learners import AuxiliaryLabelGenerator
from .label_source import LabelSource


class GeneratedLabels(LabelSource):
    """Labels invented by the generator, which learns from the hypergradient: MAXL.

    Args:
        method: As in :meth:`AuxiliaryLabelGenerator.hypergradient`.
    """

    trains_generator = learns_from_meta_gradient = True
    num_elements = 2

    def __init__(self, method: str = "forward") -> None:
        self.method = method

    def gradient_cosine(self, maxl: AuxiliaryLabelGenerator, batch: Any, micro_batches: int = 1) -> Tensor | None:
        return maxl.gradient_cosine(*batch[:2], micro_batches=micro_batches)

    def network_step(
        self, maxl: AuxiliaryLabelGenerator, batch: Any, optimizer: Optimizer, **options: Any
    ) -> StepResult:
        x, y = batch[:2]
        return maxl.network_step(x, y, optimizer, **options)

    def generator_step(
        self,
        maxl: AuxiliaryLabelGenerator,
        batch: Any,
        optimizer: Optimizer,
        generator_optimizer: Optimizer,
        meta_batch: Batch | None = None,
        **options: Any,
    ) -> StepResult:
        x, y = batch[:2]
        return maxl.generator_step(
            x, y, optimizer, generator_optimizer, meta_batch=meta_batch, method=self.method, **options
        )

    def step(
        self,
        maxl: AuxiliaryLabelGenerator,
        batch: Any,
        optimizer: Optimizer,
        generator_optimizer: Optimizer,
        meta_batch: Batch | None = None,
        **options: Any,
    ) -> StepResult:
        x, y = batch[:2]
        return maxl.step(x, y, optimizer, generator_optimizer, meta_batch=meta_batch, method=self.method, **options)


class EntropyLabels(GeneratedLabels):
    """Labels of a generator trained by the regulariser alone: the control without a hypergradient.

    What MAXL gains over this source comes from the meta gradient; the rest comes from the additional task.
    """

    learns_from_meta_gradient = False

    def __init__(self) -> None:
        super().__init__(method="regularizer")
