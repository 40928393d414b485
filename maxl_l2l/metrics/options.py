"""Metrics: what is measured while training besides losses and accuracy, if the user asks for it."""

from dataclasses import dataclass
from typing import Any

from ..checks import check_count
from ..labels import Hierarchy
from ..learners import AuxiliaryLabelGenerator


@dataclass(frozen=True)
class Metrics:
    """Which metrics :func:`fit` and :class:`LightningMAXL` record, and when they warn.

    Args:
        gradient_cosine: Measure the cosine of the primary and the auxiliary gradient on every n-th step, at the cost of
            half a step each time; never if None.
        patience: Warn after this number of epochs in a row with collapsed or uniform labels; never if None.

    Raises:
        TypeError, ValueError: One is not an integer above 0.

    Example:
        >>> Metrics(gradient_cosine=10)
        Metrics(gradient_cosine=10, patience=5)
    """

    gradient_cosine: int | None = None
    patience: int | None = 5

    def __post_init__(self) -> None:
        if self.gradient_cosine is not None:
            check_count(self.gradient_cosine, "gradient_cosine", "Use 10 to measure it on every tenth step.")
        if self.patience is not None:
            check_count(self.patience, "patience", "It counts epochs; use None for no warnings.")

    @classmethod
    def of(cls, metrics: "bool | Metrics") -> "Metrics | None":
        """Returns what an argument ``metrics`` means: the defaults if True, None if False; others raise TypeError."""
        if isinstance(metrics, Metrics):
            return metrics
        if not isinstance(metrics, bool):
            raise TypeError(
                f"`metrics` must be True, False or Metrics(...), found {type(metrics).__name__}. "
                "Write metrics=Metrics(gradient_cosine=10) to choose."
            )
        return cls() if metrics else None


def hierarchy_of(maxl: AuxiliaryLabelGenerator) -> Hierarchy | None:
    """Returns a learner's hierarchy; None for one whose targets are no classes."""
    hierarchy: Any = getattr(maxl, "hierarchy", None)  # may be an attribute of the model, and something else
    return hierarchy if isinstance(hierarchy, Hierarchy) else None
