"""Schedules: what is done with each batch of an epoch, in one pass over the data or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from ..hypergradient import StepResult
from ..learners import AuxiliaryLabelGenerator
from ..sources import LabelSource

SCHEDULES = ("batch", "epoch")
Step = Callable[[Any, Any, bool], StepResult | None]
"""Takes a batch, its meta batch, and whether it is the generator's turn; returns None if there was nothing to do."""


def stages(
    maxl: AuxiliaryLabelGenerator,
    source: LabelSource,
    schedule: str,
    optimizer: Optimizer,
    generator_optimizer: Optimizer,
    options: Mapping[str, Any],
) -> list[Step]:
    """Returns what is done with each batch in the passes over the data that make an epoch.

    Args:
        maxl: The learner.
        source: Where its labels come from.
        schedule: ``"batch"`` for one pass; ``"epoch"`` for two, of which the second trains the generator.
        optimizer: The network's.
        generator_optimizer: The generator's.
        options: Of the steps.
    """

    def train_network(batch: Any, meta_batch: Any = None, turn: bool = False) -> StepResult:
        return source.network_step(maxl, batch, optimizer, **options)

    def train_generator(batch: Any, meta_batch: Any, turn: bool) -> StepResult | None:
        if not turn:
            return None
        return source.generator_step(maxl, batch, optimizer, generator_optimizer, meta_batch, **options)

    def train_both(batch: Any, meta_batch: Any, turn: bool) -> StepResult:
        if not turn:
            return train_network(batch)
        return source.step(maxl, batch, optimizer, generator_optimizer, meta_batch, **options)

    if schedule == "batch":
        return [train_both]
    return [train_network, train_generator] if source.trains_generator else [train_network]
