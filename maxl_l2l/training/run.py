"""A run: what it is made of, and where it stands."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..distributed import Ranks
from ..hypergradient import StepResult
from ..learners import AuxiliaryLabelGenerator
from ..metrics import LabelMeter, Measured, Metrics, hierarchy_of
from ..passes import RandomNumbers, cuda_devices
from ..sources import LabelSource
from .clock import Clock
from .evaluation import device_of
from .history import History
from .interrupts import Interrupts
from .loggers import Loggers
from .replay import Pairs

SCHEDULES = ("batch", "epoch")
Step = Callable[[Any, Any, bool], StepResult | None]
"""Takes a batch, its meta batch, and whether to train the generator; returns None if there was nothing to do."""


@dataclass
class Run:
    """What a training run works on, and where it stands.

    Attributes:
        measured: What the current epoch has measured; None between epochs.
        pairs: The data of the current stage; None during evaluation.
        place: The last place in the data.
        stage: Number of the current stage.
        inside: Where to resume inside an epoch, from a checkpoint.
    """

    maxl: AuxiliaryLabelGenerator
    loader: Iterable[Any]
    meta_loader: Iterable[Any] | str | None
    test_loader: Iterable[Any] | None
    optimizer: Optimizer
    generator_optimizer: Optimizer
    schedulers: list[LRScheduler]
    source: LabelSource
    schedule: str
    meta_every: int
    options: dict[str, Any]
    checkpoint: Path | None
    history: History
    clock: Clock
    metrics: Metrics | None
    loggers: Loggers
    steps: int = 0
    measured: Measured | None = None
    pairs: Pairs | None = None
    stage: int = 0
    inside: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        loaders = {"loader": self.loader, "meta_loader": self.meta_loader, "test_loader": self.test_loader}
        self.numbers = RandomNumbers(cuda_devices(self.maxl), loaders)
        self.hierarchy = hierarchy_of(self.maxl)
        self.interrupts = Interrupts()
        self.place: dict[str, Any] = {}
        self.is_replaying = False

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.maxl.ranks

    @property
    def signal(self) -> int:
        """The signal that ends this run; 0 for none. All ranks get it when they meet in a step."""
        return self.ranks.requested if self.ranks.size > 1 else self.interrupts.received

    @property
    def is_inside_an_epoch(self) -> bool:
        """Whether an epoch has been begun and not ended, by this run or the one that it was resumed from."""
        return self.measured is not None or self.inside is not None

    def where(self) -> str:
        """Where the run stands, in words."""
        number = len(self.history)
        return f"a place inside epoch {number + 1}" if self.is_inside_an_epoch else f"epoch {number}"

    def common(self) -> dict[str, Any]:
        """What all ranks must have in common before the first step."""
        return {
            "the number of epochs done": len(self.history),
            "the number of batches done": 0 if self.inside is None else self.inside["place"]["done"],
            **{name: self.history.settings[name] for name in ("schedule", "meta_every", "source", "meta_loader")},
            "checkpoint": self.given(self.checkpoint),
            "test_loader": self.given(self.test_loader),
            "checkpoint_minutes": self.clock.checkpoint_minutes,
            "time_limit": self.given(self.clock.time_limit),
            "metrics": str(self.metrics),
        }

    @staticmethod
    def given(argument: Any) -> str:
        """Whether an argument is given, in words."""
        return "missing" if argument is None else "given"

    def stages(self) -> list[Step]:
        """The step for each batch, in each pass over the data that an epoch has: one, or two by ``"epoch"``."""
        maxl, source, optimizers = self.maxl, self.source, (self.optimizer, self.generator_optimizer)

        def train_network(batch: Any, meta_batch: Any = None, turn: bool = False) -> StepResult:
            return source.network_step(maxl, batch, self.optimizer, **self.options)

        def train_generator(batch: Any, meta_batch: Any, turn: bool) -> StepResult | None:
            return source.generator_step(maxl, batch, *optimizers, meta_batch, **self.options) if turn else None

        def train_both(batch: Any, meta_batch: Any, turn: bool) -> StepResult:
            return source.step(maxl, batch, *optimizers, meta_batch, **self.options) if turn else train_network(batch)

        if self.schedule == "batch":
            return [train_both]
        return [train_network, train_generator] if source.trains_generator else [train_network]

    def measures(self) -> Measured:
        """The empty sums for an epoch."""
        if self.metrics is None or self.hierarchy is None:
            return Measured()
        return Measured(LabelMeter(self.hierarchy, device_of(self.maxl)))
