"""Comparison: the results of label sources over several seeds, and their gains, from the histories of runs."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from ..checks import check_kind
from ..training import History

TITLES = {
    "SingleTask": "Single task",
    "RandomLabels": "Random labels",
    "KMeansLabels": "K-means labels",
    "HumanLabels": "Human labels",
    "EntropyLabels": "Entropy term alone",
    "GeneratedLabels": "MAXL",
}
"""Titles of label sources."""
NO_SETTINGS = ("source", "seed", "torch")
"""Settings that may differ between runs that are compared."""
QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The value that Student's t exceeds with a probability of 2.5 %, for 1 .. 30 degrees of freedom."""
ROUNDING = 1e-9
"""Differences up to this share of a value are put down to rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean over runs.

    Attributes:
        values: One for each run, of which there is at least one.
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
        if len(self.values) < 2:
            return None
        largest = max(map(abs, self.values)) or 1.0  # squares of huge losses would be infinite
        error = float(largest * np.std(np.array(self.values) / largest, ddof=1) / len(self.values) ** 0.5)
        return 0.0 if error <= ROUNDING * max(1.0, abs(self.mean)) else error

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval, by Student's t; None for a single run."""
        if self.error is None:
            return None
        degrees = len(self.values) - 1
        margin = (QUANTILES[degrees - 1] if degrees <= len(QUANTILES) else 1.96) * self.error
        return self.mean - margin, self.mean + margin


@dataclass(frozen=True)
class Measure:
    """A quantity by which runs are compared.

    Attributes:
        key: Its name in a history's records.
        name: Its name in the report.
        unit: The unit of a value, and that of a difference.
        scale: The factor from the records' unit to this one.
        sign: 1 if more is better, -1 if less is.
        is_of_test: Whether it is measured on data that are not trained on.
    """

    key: str
    name: str
    unit: tuple[str, str]
    scale: float
    sign: int
    is_of_test: bool

    @property
    def axis(self) -> str:
        """The label of an axis of values."""
        return f"{self.name} ({self.unit[0]})" if self.unit[0] else self.name

    def text(self, estimate: Estimate, signed: bool = False) -> str:
        """Returns a value, or a difference, with its standard error and unit.

        Example:
            >>> MEASURES[0].text(Estimate((0.94, 0.96)))
            '95.00 ± 1.00 %'
        """
        error = "" if estimate.error is None else f" ± {self.number(estimate.error)}"
        return f"{self.number(estimate.mean, signed)}{error} {self.unit[signed]}".rstrip()

    def number(self, value: float, signed: bool = False) -> str:
        """Returns a value, or a difference, without its unit."""
        digits = ".4g" if abs(self.scale * value) >= 1e5 else ".2f" if self.scale == 100 else ".4f"
        return f"{self.scale * value:{'+' * signed}{digits}}"


PERCENT = ("%", "pp")
MEASURES = (
    Measure("test_accuracy", "test accuracy", PERCENT, 100, 1, True),
    Measure("test_loss", "test loss", ("", ""), 1, -1, True),
    Measure("accuracy", "accuracy in training", PERCENT, 100, 1, False),
    Measure("primary_loss", "primary loss in training", ("", ""), 1, -1, False),
)
"""All measures, the most telling first."""


@dataclass(frozen=True)
class Group:
    """The runs of one label source with the same settings.

    Attributes:
        title: Its name in the report.
        runs: Histories with at least one epoch, one for each seed.
    """

    title: str
    runs: tuple[History, ...]

    @property
    def source(self) -> str:
        """The class of its label source; empty if its histories do not say."""
        return str(self.settings.get("source", ""))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of its first run."""
        return self.runs[0].settings

    def curves(self, key: str) -> Any:
        """Returns a quantity over the epochs, ``[runs, epochs]``, NaN where no finite value was recorded."""
        found = np.full((len(self.runs), max(map(len, self.runs))), np.nan)
        for row, run in zip(found, self.runs):
            values = [record.get(key) for record in run.epochs]
            row[: len(run)] = [value if _is_finite(value) else np.nan for value in values]
        return found

    def last(self, key: str) -> list[Any]:
        """Returns one quantity of the last epoch of each run, None where it was not recorded."""
        return [run.epochs[-1].get(key) for run in self.runs]

    def estimate(self, key: str) -> Estimate | None:
        """Returns the mean of a quantity over the runs' last epochs; None if no finite value was recorded."""
        values = tuple(float(value) for value in self.last(key) if _is_finite(value))
        return Estimate(values) if values else None

    def diverged(self, key: str) -> int:
        """Returns the number of runs that have recorded a quantity in the last epoch that is not finite."""
        return sum(isinstance(value, Real) and not _is_finite(value) for value in self.last(key))

    def gain(self, other: "Group | None", key: str) -> Estimate | None:
        """Returns how much higher a quantity is than in another group in the last epoch, for each of :func:`pairs`.

        Differences within rounding count as 0. None if there is no other group, or no pair with finite values.
        """
        if other is None:
            return None
        found, pairing = pairs(self, other)
        values = [[run.epochs[-1].get(key) for run in pair] for pair in found]
        gains = tuple(_difference(ours, theirs) for ours, theirs in values if _is_finite(ours) and _is_finite(theirs))
        return Estimate(gains, pairing) if gains else None


def pairs(group: Group, other: Group) -> tuple[list[tuple[History, History]], str]:
    """Returns the pairs of runs of two groups, and how they were paired, or why they can't be.

    They are paired by seed; in the order given only if no run has one.
    """
    if all(run.settings.get("seed") is None for run in (*group.runs, *other.runs)):
        return list(zip(group.runs, other.runs)), "in the order given"
    by_seed: list[dict[str, History]] = []
    for one in (group, other):
        named: dict[str, History] = {}
        for run in one.runs:
            seed = run.settings.get("seed")
            if seed is not None and named.setdefault(text_of(seed), run) is not run:
                return [], f"seed {text_of(seed)} comes twice among the runs of {one.title}"
        by_seed.append(named)
    own, others = by_seed
    found = [(run, others[seed]) for seed, run in own.items() if seed in others]
    return found, "by seed" if found else "they have no seed in common"


def partner(group: Group, others: Sequence[Group]) -> Group | None:
    """Returns the first of several groups of a source that agrees with a group in the settings in which they differ."""
    names = [name for name in differing([run for one in others for run in one.runs]) if name in group.settings]
    own = [text_of(group.settings[name]) for name in names]
    return next((one for one in others if [text_of(one.settings.get(name)) for name in names] == own), None)


def _difference(ours: float, theirs: float) -> float:
    gain = float(ours) - float(theirs)
    return 0.0 if abs(gain) <= ROUNDING * max(1.0, abs(ours), abs(theirs)) else gain


def differing(runs: Iterable[History]) -> list[str]:
    """Returns the settings in which runs differ, other than :data:`NO_SETTINGS`."""
    runs = list(runs)
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in NO_SETTINGS)
    return [name for name in names if len({text_of(run.settings.get(name)) for run in runs}) > 1]


def text_of(value: Any) -> str:
    """Returns the value of a setting as text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def grouped(histories: Any) -> list[Group]:
    """Sorts histories by label source and settings; those without an epoch are left out.

    Args:
        histories: A history; several, which are grouped by ``settings["source"]`` and the settings in which runs of one
            source differ, except seeds; or a mapping from titles to one or several.

    Raises:
        TypeError: It is something else.
        ValueError: A title has no histories.
    """
    if histories is None:
        return []
    if not isinstance(histories, Mapping):
        found: dict[str, list[History]] = {}
        for history in (history for history in _several(histories) if len(history)):
            source = str(history.settings.get("source", "Runs"))
            found.setdefault(TITLES.get(source, source), []).append(history)
        histories = {name: part for title, runs in found.items() for name, part in _by_settings(title, runs).items()}
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


def _by_settings(title: str, runs: list[History]) -> dict[str, list[History]]:
    """Groups the runs of one source by the settings in which they differ; the titles name these."""
    names, found = differing(runs), dict[str, list[History]]()
    for run in runs:
        parts = [f"{name} {text_of(run.settings[name])}" if name in run.settings else f"no {name}" for name in names]
        found.setdefault(", ".join([title, *parts]), []).append(run)
    return found


def _is_finite(value: Any) -> TypeGuard[float]:
    """Whether something that was recorded is a finite number."""
    return isinstance(value, Real) and math.isfinite(value)


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
