"""The arguments of :func:`fit`, checked before a run starts."""

from collections.abc import Iterable
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..checks import (
    check_choice,
    check_count,
    check_flag,
    check_is_optimizer,
    check_kind,
    check_number,
    check_optimizer,
)
from ..learners import AuxiliaryLabelGenerator
from ..sources import LabelSource
from .batches import check_loader
from .replay import NEXT
from .run import SCHEDULES

COUNTS = {
    "epochs": "Say how often to go through loader.",
    "meta_every": "Use 1 to train the generator on every batch.",
    "log_every": "Use 1 to log every step.",
    "micro_batches": "Use 1 to pass the whole batch at once.",
}
"""The counts that fit takes, and what to write when one is wrong."""


def check_learner_and_source(maxl: Any, source: Any, schedule: str) -> None:
    """Raises TypeError or ValueError unless these are a learner, a source or None, and one of the schedules."""
    check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Wrap the model first: MAXL(model, psi).")
    check_choice(schedule, SCHEDULES, "schedule", "'batch' is the fused step, 'epoch' the paper's")
    if source is not None:
        check_kind(source, LabelSource, "source", "Pass one such as GeneratedLabels().")


def check_counts(**counts: int) -> None:
    """Raises unless each count, by the name of its argument, is an integer of at least 1."""
    for name, value in counts.items():
        check_count(value, name, COUNTS[name])


def checked_optimizers(
    maxl: AuxiliaryLabelGenerator, source: Any, optimizer: Any, generator_optimizer: Any
) -> tuple[Optimizer, Optimizer]:
    """Both optimizers, checked; the paper's where there is none."""
    for one, name, network in (
        (optimizer, "optimizer", "network"),
        (generator_optimizer, "generator_optimizer", "generator"),
    ):
        if one is not None:
            check_is_optimizer(one, name, network)
    optimizer = optimizer or SGD(maxl.network.parameters(), lr=maxl.lr)
    generator_optimizer = generator_optimizer or SGD(maxl.generator.parameters(), lr=1e-3, weight_decay=5e-4)
    check_optimizer(optimizer, "optimizer", maxl.network, "network", maxl.generator)
    if source is None or source.trains_generator:
        check_optimizer(generator_optimizer, "generator_optimizer", maxl.generator, "generator", maxl.network)
    return optimizer, generator_optimizer


def check_seed(seed: Any) -> None:
    """Raises unless seed is None or an integer that torch can be seeded with."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise TypeError(f"`seed` must be an integer, found {seed!r}. Train once for each of several seeds.")
    if seed is not None and not 0 <= int(seed) < 2**64:
        raise ValueError(f"`seed` must be an integer in 0..2**64 - 1, found {seed}. Take a smaller one.")


def check_loaders(loader: Any, meta_loader: Any, test_loader: Any) -> None:
    """Raises unless each can be iterated over and is not known to be empty; the last two may be None."""
    if isinstance(meta_loader, str) and meta_loader != NEXT:
        raise ValueError(
            f"`meta_loader` must yield batches (x, y) or be {NEXT!r}, found {meta_loader!r}. Pass a DataLoader."
        )
    for name, data in (("loader", loader), ("meta_loader", meta_loader), ("test_loader", test_loader)):
        if not (name == "meta_loader" and isinstance(data, str) and data == NEXT):
            check_loader(data, name, required=name == "loader")


def check_times(
    checkpoint: str | Path | None, resume: bool, checkpoint_minutes: float | None, time_limit: float | None
) -> None:
    """Raises unless the file, the times and what they need fit together; see :func:`fit`."""
    check_flag(resume, "resume", "Name the file as checkpoint=.")
    if checkpoint is not None:
        _check_path(checkpoint)
    if resume and checkpoint is None:
        raise ValueError("`resume` needs `checkpoint`, found None. Name the file to go on from.")
    if checkpoint_minutes is not None and checkpoint is None:
        raise ValueError("`checkpoint_minutes` needs `checkpoint`, found None. Name the file to save to.")
    for name, minutes in (("checkpoint_minutes", checkpoint_minutes), ("time_limit", time_limit)):
        if minutes is not None:
            check_number(minutes, name, "It is in minutes.", positive=True)


def _check_path(checkpoint: Any) -> None:
    if not isinstance(checkpoint, (str, PathLike)):
        raise TypeError(
            f"`checkpoint` must be the path of a file, found {checkpoint!r} ({type(checkpoint).__name__}). "
            "Write checkpoint='run.pt'."
        )
    path = Path(checkpoint)
    if not path.name or path.is_dir():
        raise ValueError(
            f"`checkpoint` must be a file, found the folder {path}. Name one in it: checkpoint='{path / 'run.pt'}'."
        )


def checked_schedulers(schedulers: Any, *optimizers: Optimizer) -> list[LRScheduler]:
    """Returns the schedulers as a list; raises unless each is of one of the optimizers and needs no metric."""
    if not isinstance(schedulers, Iterable) or isinstance(schedulers, (str, bytes)):
        raise TypeError(
            f"`schedulers` must be a list, found {type(schedulers).__name__}. Write schedulers=[scheduler]."
        )
    found = list(schedulers)
    for position, scheduler in enumerate(found):
        if not isinstance(scheduler, LRScheduler):
            words = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else type(scheduler).__name__
            raise TypeError(
                f"`schedulers` must hold learning-rate schedulers, found {words} at position {position}. "
                "Write schedulers=[torch.optim.lr_scheduler.StepLR(optimizer, 10)]."
            )
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(
                f"`schedulers` must step without a metric, found ReduceLROnPlateau at position {position}. "
                "Use one that counts epochs, or LightningMAXL, which watches a metric."
            )
        if not any(scheduler.optimizer is optimizer for optimizer in optimizers):
            raise ValueError(
                f"`schedulers` must be of `optimizer` or `generator_optimizer`, found a {type(scheduler).__name__} of "
                f"another one at position {position}. Pass the optimizer that it was made with."
            )
    return found
