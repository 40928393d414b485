"""Curves: figures of what runs record over their epochs."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ..labels import Hierarchy
from .comparison import Group, Measure, partner
from .evidence import TITLE_WIDTH, short
from .style import GRAY, INK, LIGHT, look_of, new_figure


def learning_curves(groups: Sequence[Group], measure: Measure, singles: Sequence[Group], title: str) -> Any:
    """Draws a measure over the epochs, and what each label source reaches and gains in the last epoch.

    Args:
        groups: The runs; those that lack the measure are not drawn.
        measure: The quantity to draw.
        singles: The single-task runs: the gains of each group are over its :func:`partner` among them.
    """
    shown = [one for one in _looks(groups) if one[0].estimate(measure.key)]
    figure = new_figure(11, max(4.2, 2.4 + 0.5 * len(shown)), title)
    curves, ends = figure.subplots(1, 2, width_ratios=[1.25, 1])
    values = [group.curves(measure.key) * measure.scale for group, _, _ in shown]
    for own, (_, number, name) in zip(values, shown):
        _line(curves, own, number, name)
    curves.set(xlabel="epoch", ylabel=measure.axis)
    has_bands = any(len(group.runs) > 1 for group, _, _ in shown)
    curves.set_title("Mean over seeds; band: ± standard error" if has_bands else "One run each: no band")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _start_late(curves, values)
    _ends(ends, shown, measure, singles)
    _legend(figure)
    return figure


def _looks(groups: Sequence[Group]) -> Iterator[tuple[Group, int, str]]:
    """Groups with the number of their look, in all figures 0 for MAXL and 6 (black) for single tasks, and a name."""
    named = {"GeneratedLabels": 0, "SingleTask": 6}
    free = itertools.chain(range(1, 6), itertools.count(7))
    for place, group in enumerate(groups):
        number = named.pop(group.source, None)
        yield group, next(free) if number is None else number, short(group.title, TITLE_WIDTH, place)


def _legend(figure: Any) -> None:
    """One legend of the lines in all panels, below these."""
    lines = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels())}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(4, len(lines)))


def _line(axes: Any, values: Any, number: int, name: str) -> None:
    """Draws the mean over runs of values ``[runs, epochs]``, and its standard error where there are several."""
    known = ~np.isnan(values)
    counts = known.sum(axis=0)
    mean = np.where(counts, np.where(known, values, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)
    color, style, marker = look_of(number)
    epochs = np.arange(1, len(mean) + 1)
    alone = (counts > 0).sum() == 1
    axes.plot(epochs, mean, ls=style, marker=marker if alone else None, color=color, lw=1.7, label=name)
    if counts.max() > 1:
        largest = np.nanmax(np.abs(values)) or 1.0  # squares of huge losses would be infinite
        squares = np.where(known, ((values - mean) / largest) ** 2, 0).sum(axis=0)
        error = np.sqrt(squares / np.maximum(counts - 1, 1) / np.maximum(counts, 1))
        error = np.where(counts > 1, largest * error, np.nan)
        axes.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.16, lw=0)


def _start_late(axes: Any, curves: list[Any]) -> None:
    """Fits the range of values to the last four fifths of the epochs, if the first fifth would more than double it."""
    late = np.concatenate([one[:, one.shape[1] // 5 :].ravel() for one in curves])
    if np.isnan(late).all():
        return
    everything = np.concatenate([one.ravel() for one in curves])
    low, high = np.nanmin(late), np.nanmax(late)
    if high > low and np.nanmax(everything) - np.nanmin(everything) > 2 * (high - low):
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("epoch (the first ones lie outside)")


def _ends(axes: Any, groups: Sequence[tuple[Group, int, str]], measure: Measure, singles: Sequence[Group]) -> None:
    """Draws the gain of each label source, a dot for each run and the mean; its label says what it reaches."""
    labels = []
    for height, (group, number, name) in enumerate(reversed(groups)):
        reached, single = group.estimate(measure.key), partner(group, singles)
        shown = group.gain(single, measure.key) if singles else reached
        assert reached is not None  # by the caller
        labels.append(f"{name}\n{measure.text(reached)}")
        if shown is None:
            axes.text(0, height, "no run to pair with", color=GRAY, va="center", ha="center")
            continue
        values = measure.scale * np.array(shown.values)
        color, _, marker = look_of(number)
        error = None if shown.error is None or group is single else measure.scale * shown.error
        axes.errorbar(values.mean(), height, xerr=error, fmt=marker, color=color, ms=7, capsize=4, lw=2)
        if group is not single:
            heights = height + 0.12 * np.sin(np.arange(len(values)) * 2.4)  # apart, not to hide one another
            axes.scatter(values, heights, s=14, color=GRAY, alpha=0.55, lw=0)
            text = measure.text(shown, signed=bool(singles))
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
            above = (values.mean(), height + 0.2)
            axes.text(*above, text, ha="center", va="bottom", color=INK, fontsize=8.5, bbox=box)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(-0.5, len(labels) - 0.3)
    axes.margins(x=0.22)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LIGHT, lw=0.6)
    axes.set_axisbelow(True)
    if not singles:
        axes.set(title="Last epoch (gray: runs)", xlabel=measure.axis)
        return
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_title("Gain in the last epoch (gray: runs)")
    axes.set_xlabel("gain over single-task runs" + "\n(percentage points)" * (measure.unit[1] == "pp"))


@dataclass(frozen=True)
class Panel:
    """One quantity of the labels over the epochs.

    Attributes:
        key: Its name in a history's records.
        title: Its name in the report.
        unit: Its unit, the label of the axis.
        low: The lower end of the axis; None leaves it to the data.
        is_log: Whether the axis is logarithmic.
    """

    key: str
    title: str
    unit: str
    low: float | None = 0
    is_log: bool = False


PANELS = (
    Panel("label_entropy", "Entropy of single labels", "nats"),
    Panel("mean_label_entropy", "Entropy of the mean label", "nats"),
    Panel("sub_classes", "Sub-classes in use", "sub-classes"),
    Panel("auxiliary_accuracy", "Accuracy on the auxiliary task", "fraction"),
    Panel("hypergradient_norm", "Size of the hypergradient", "Euclidean norm", None, is_log=True),
    Panel("gradient_cosine", "Cosine of both tasks' gradients", "cosine", None),
    Panel("nmi", "Agreement with human classes", "NMI"),
    Panel("nmi_within", "Agreement inside primary classes", "NMI"),
    Panel("purity", "Matched with human classes", "fraction of samples"),
)


def recorded(groups: Sequence[Group]) -> list[Panel]:
    """Returns the panels that some run has data for."""
    return [panel for panel in PANELS if not all(np.isnan(group.curves(panel.key)).all() for group in groups)]


def label_curves(groups: Sequence[Group], panels: Sequence[Panel], hierarchy: Hierarchy | None, title: str) -> Any:
    """Draws what runs have recorded of their labels, a panel for each quantity.

    Args:
        groups: The runs; a colour each, the same as in :func:`learning_curves` if these are the same.
        panels: The quantities to draw.
        hierarchy: For the values that uniform labels would have; None if it is not known.
    """
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(max(5.5, 3.7 * columns), 1.3 + 2.35 * rows, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels):
        values = [group.curves(panel.key) for group in groups]
        for own, (_, number, name) in zip(values, _looks(groups)):
            if not np.isnan(own).all():
                _line(axes, own, number, name)
        axes.set(title=panel.title, xlabel="epoch", ylabel=panel.unit)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if panel.is_log and not any((own <= 0).any() for own in values):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        for height, text in _references(panel.key, hierarchy).items():
            axes.axhline(height, color=GRAY, lw=1, ls=(0, (4, 3)))
            right = axes.get_yaxis_transform()
            axes.text(0.99, height, text, transform=right, ha="right", va="bottom", fontsize=8.5, color=GRAY)
            axes.set_ylim(top=max(axes.get_ylim()[1], 1.12 * height))
        if panel.low is not None:
            axes.set_ylim(bottom=panel.low)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    _legend(figure)
    return figure


def _references(key: str, hierarchy: Hierarchy | None) -> Mapping[float, str]:
    """Heights of lines to compare a quantity with, and what to write at them."""
    if key == "gradient_cosine":
        return {0.0: "at right angles"}
    if hierarchy is None:
        return {}
    sizes = np.log(hierarchy.psi)
    uniform = "uniform: log ψ" if len(set(hierarchy.psi)) == 1 else "uniform: mean log ψ"
    return {
        "label_entropy": {float(sizes.mean()): uniform},
        "mean_label_entropy": {math.log(hierarchy.num_auxiliary): "all equally used: log K"},
        "sub_classes": {float(hierarchy.num_auxiliary): f"all {hierarchy.num_auxiliary}"},
    }.get(key, {})
