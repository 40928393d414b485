"""Comparison: what label sources reach and what they gain, over seeds, from the histories of their runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from ..checks import check_kind
from ..history import History

TITLES = {
    "SingleTask": "Single task",
    "RandomLabels": "Random labels",
    "KMeansLabels": "K-means labels",
    "HumanLabels": "Human labels",
    "EntropyLabels": "Entropy term alone",
    "GeneratedLabels": "MAXL",
}
"""What to call label sources."""


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        values: One a run, never none.
        pairing: For a difference, how runs were paired.
    """

    values: tuple[float, ...]
    pairing: str = ""

    @property
    def mean(self) -> float:
        """The mean."""
        return float(np.mean(self.values))

    @property
    def error(self) -> float | None:
        """Its standard error; None for a single run."""
        return float(np.std(self.values, ddof=1) / len(self.values) ** 0.5) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Measure:
    """What runs are compared by.

    Attributes:
        key: Its name in a history's records.
        name: What to call it.
        unit: Of a value, and of a difference.
        scale: From the records' unit to this one.
        sign: 1 if more is better, -1 if less is.
        is_of_test: Whether it is measured on data that are not trained on.
    """

    key: str
    name: str
    unit: tuple[str, str]
    scale: float
    sign: int
    is_of_test: bool

    def text(self, estimate: Estimate, signed: bool = False) -> str:
        """Returns a value, or a difference, with its standard error and unit.

        Example:
            >>> MEASURES[0].text(Estimate((0.94, 0.96)))
            '95.00 ± 1.00 %'
        """
        digits = 2 if self.scale == 100 else 4
        error = "" if estimate.error is None else f" ± {self.scale * estimate.error:.{digits}f}"
        return f"{self.scale * estimate.mean:{'+' * signed}.{digits}f}{error} {self.unit[signed]}".rstrip()


PERCENT = ("%", "pp")
MEASURES = (
    Measure("test_accuracy", "test accuracy", PERCENT, 100, 1, True),
    Measure("test_loss", "test loss", ("", ""), 1, -1, True),
    Measure("accuracy", "accuracy in training", PERCENT, 100, 1, False),
    Measure("primary_loss", "primary loss in training", ("", ""), 1, -1, False),
)
"""What runs can be compared by, the most telling first."""


@dataclass(frozen=True)
class Group:
    """The runs of one label source.

    Attributes:
        title: What to call it.
        runs: Histories of one epoch at least, one a seed.
    """

    title: str
    runs: tuple[History, ...]

    @property
    def source(self) -> str:
        """The class of its label source; empty if its histories do not say."""
        return str(self.runs[0].settings.get("source", ""))

    def curves(self, key: str) -> Any:
        """Returns what was recorded over the epochs, ``[runs, epochs]``, NaN where nothing finite was."""
        found = np.full((len(self.runs), max(map(len, self.runs))), np.nan)
        for row, run in zip(found, self.runs):
            values = [record.get(key) for record in run.epochs]
            row[: len(run)] = [value if _is_finite(value) else np.nan for value in values]
        return found

    def last(self, key: str) -> list[Any]:
        """Returns one quantity of the last epoch of each run, None where it was not recorded."""
        return [run.epochs[-1].get(key) for run in self.runs]

    def estimate(self, key: str) -> Estimate | None:
        """Returns the mean of the runs' last epochs; None if nothing finite was recorded."""
        values = tuple(float(value) for value in self.last(key) if _is_finite(value))
        return Estimate(values) if values else None

    def gain(self, other: Group, key: str) -> Estimate | None:
        """Returns by how much this exceeds another group in the last epoch, a difference for each pair of runs.

        They are paired by seed; in the order given if seeds are missing or come twice. None if there is no pair.
        """
        (own, others), pairing = _named_by_seed(self, other)
        values = [(run.epochs[-1].get(key), others[seed].epochs[-1].get(key)) for seed, run in own.items()]
        found = tuple(float(ours - theirs) for ours, theirs in values if _is_finite(ours) and _is_finite(theirs))
        return Estimate(found, pairing) if found else None


def grouped(histories: Any) -> list[Group]:
    """Sorts histories by label source; those without an epoch are left out.

    Args:
        histories: A history, several, which are told apart by their ``settings["source"]``, or a mapping from titles to
            one or several.

    Raises:
        TypeError: It is something else.
        ValueError: A title has no histories.
    """
    if histories is None:
        return []
    if not isinstance(histories, Mapping):
        found: dict[str, list[History]] = {}
        for history in _several(histories):
            source = str(history.settings.get("source", "Runs"))
            found.setdefault(TITLES.get(source, source), []).append(history)
        histories = found
    groups = {str(title): _several(runs) for title, runs in histories.items()}
    empty = [title for title, runs in groups.items() if not runs]
    if empty:
        raise ValueError(
            f"`histories` must have a history for each title, found none for {empty[0]!r}. "
            "Write {'MAXL': [fit(...) for each seed]}, or leave the title out."
        )
    finished = {title: tuple(run for run in runs if len(run)) for title, runs in groups.items()}
    return [Group(title, runs) for title, runs in finished.items() if runs]


def measure_of(groups: Iterable[Group]) -> Measure | None:
    """Returns the most telling measure that any run has recorded; None if there is none."""
    groups = list(groups)
    return next((measure for measure in MEASURES if any(group.estimate(measure.key) for group in groups)), None)


def of_source(groups: Iterable[Group], source: str) -> Group | None:
    """Returns the first group of a label source, None if there is none."""
    return next((group for group in groups if group.source == source), None)


def invented(groups: list[Group]) -> list[Group]:
    """Returns the groups whose labels were learned by the meta gradient; all with auxiliary labels if there is none."""
    found = [group for group in groups if group.source == "GeneratedLabels"]
    return found or [group for group in groups if group.source != "SingleTask"]


def _is_finite(value: Any) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _several(histories: Any) -> list[History]:
    if isinstance(histories, History):
        return [histories]
    advice = "Pass what fit() returned, a list of such, or a mapping from titles to them."
    if not isinstance(histories, Iterable) or isinstance(histories, (str, bytes)):
        raise TypeError(f"`histories` must hold instances of History, found {type(histories).__name__}. {advice}")
    found = list(histories)
    for history in found:
        check_kind(history, History, "histories", advice)
    return found


def _named_by_seed(*groups: Group) -> tuple[list[dict[Any, History]], str]:
    """Runs of each group by what they have in common, and what that is."""
    seeds = [[run.settings.get("seed") for run in group.runs] for group in groups]
    if any(None in found or len(set(found)) < len(found) for found in seeds):
        seeds, pairing = [list(range(len(found))) for found in seeds], "in the order given"
    else:
        pairing = "by seed"
    common = set(seeds[0]).intersection(*seeds[1:])
    named = [
        {seed: run for seed, run in zip(found, group.runs) if seed in common} for found, group in zip(seeds, groups)
    ]
    return named, pairing
