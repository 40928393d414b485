"""Loggers: where what is measured goes while training: TensorBoard, or any logger of Lightning's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .derivatives import StepResult

STEP = ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "hypergradient_norm")
"""What is logged of single steps."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns what a record holds in single numbers; one a primary class as ``sub_classes_per_class/3``."""
    found = {name: float(value) for name, value in record.items() if isinstance(value, (int, float))}
    per_class = enumerate(record.get("sub_classes_per_class", ()))
    return found | {f"sub_classes_per_class/{primary}": float(value) for primary, value in per_class}


class Loggers:
    """Passes steps and epochs on.

    Args:
        loggers: A ``torch.utils.tensorboard.SummaryWriter``, a logger of Lightning's, anything with ``add_scalar`` or
            ``log_metrics`` as these have them, a list of such, or None.
        every: Every how many-th step is passed on, by itself; every epoch is.

    Raises:
        TypeError: One has neither.
    """

    def __init__(self, loggers: Any, every: int) -> None:
        self.every = every
        several = loggers if isinstance(loggers, (list, tuple)) else [] if loggers is None else [loggers]
        self.loggers = list(several)
        for one in self.loggers:
            if not any(callable(getattr(one, name, None)) for name in ("add_scalar", "log_metrics")):
                raise TypeError(
                    "`logger` must be a SummaryWriter of torch.utils.tensorboard, a logger of Lightning's, or a list "
                    f"of these, found {type(one).__name__}. Write logger=SummaryWriter('runs/first')."
                )

    def step(self, number: int, result: StepResult) -> None:
        """Logs a step under ``step/``, if it is its turn; number counts from 1."""
        if self.loggers and number % self.every == 0:
            found = {f"step/{name}": getattr(result, name) for name in STEP}
            self._log({name: float(value) for name, value in found.items() if isinstance(value, Tensor)}, number)

    def epoch(self, number: int, record: Mapping[str, Any]) -> None:
        """Logs an epoch's record after so many steps."""
        if self.loggers:
            self._log(scalars(record), number)
            for one in self.loggers:
                for name in ("flush", "save"):  # a SummaryWriter's, a Lightning logger's
                    _call(one, name)

    def _log(self, values: Mapping[str, float], number: int) -> None:
        for one in self.loggers:
            if callable(getattr(one, "log_metrics", None)):
                one.log_metrics(dict(values), number)
            else:
                for name, value in values.items():
                    one.add_scalar(name, value, number)


def _call(logger: Any, name: str) -> None:
    method = getattr(logger, name, None)
    if callable(method):
        method()
