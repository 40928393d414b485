"""Loggers: TensorBoard or any logger of Lightning's, to which metrics are written while training."""

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..hypergradient import StepResult

STEP = ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "hypergradient_norm")
"""What is logged of single steps."""
MOST_CLASSES = 100
"""Most primary classes for which one number each is logged."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns a record's numbers by name; those of up to 100 primary classes as ``sub_classes_per_class/3``."""
    found = {name: float(value) for name, value in record.items() if isinstance(value, (int, float))}
    per_class = record.get("sub_classes_per_class", ())
    if len(per_class) <= MOST_CLASSES:
        found |= {f"sub_classes_per_class/{primary}": float(value) for primary, value in enumerate(per_class)}
    return found


class Loggers:
    """Passes steps and epochs on.

    Args:
        loggers: A ``torch.utils.tensorboard.SummaryWriter``, a logger of Lightning's, anything with ``add_scalar`` or
            ``log_metrics`` as these have them, a list of such, or None.
        every: Log every n-th step; epochs are always logged.

    Raises:
        TypeError: One has neither.
    """

    def __init__(self, loggers: Any, every: int) -> None:
        self.every = every
        several = loggers if isinstance(loggers, (list, tuple)) else [] if loggers is None else [loggers]
        self.loggers = list(several)
        for one in self.loggers:
            known = any(callable(getattr(one, name, None)) for name in ("add_scalar", "log_metrics"))
            if not known or isinstance(one, type):
                found = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
                raise TypeError(
                    "`logger` must be a SummaryWriter of torch.utils.tensorboard, a logger of Lightning's, or a list "
                    f"of these, found {found}. Write logger=SummaryWriter('runs/first')."
                )

    def step(self, number: int, result: StepResult) -> None:
        """Logs a step under ``step/``, if it is due; number counts from 1."""
        if self.loggers and number % self.every == 0:
            found = {f"step/{name}": getattr(result, name) for name in STEP}
            self._log({name: float(value) for name, value in found.items() if isinstance(value, Tensor)}, number)

    def epoch(self, number: int, record: Mapping[str, Any]) -> None:
        """Logs an epoch's record after so many steps."""
        if self.loggers:
            self._log(scalars(record), number, written=True)

    def _log(self, values: Mapping[str, float], number: int, written: bool = False) -> None:
        """Logs values, and writes them to disk if asked; a logger that raises is left out from then on."""
        for one in list(self.loggers):
            try:
                _pass_on(one, values, number)
                if written:
                    _write(one)
            except Exception as error:
                self.loggers.remove(one)
                warnings.warn(
                    f"`logger` {type(one).__name__} raised {error!r} and is left out from now on; training goes on.",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _pass_on(logger: Any, values: Mapping[str, float], number: int) -> None:
    if callable(getattr(logger, "log_metrics", None)):
        logger.log_metrics(dict(values), number)
    else:
        for name, value in values.items():
            logger.add_scalar(name, value, number)


def _write(logger: Any) -> None:
    for name in ("flush", "save"):  # a SummaryWriter's, a Lightning logger's
        method = getattr(logger, name, None)
        if callable(method):
            method()
