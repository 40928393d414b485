"""Maps: figures with a row for each sub-class, in blocks of their primary classes."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.ticker import MaxNLocator

from ..labels import Hierarchy
from .style import GRAY, INK, LIGHT, new_figure

MOST = 20
"""Sub-classes shown of a class, at most, the most used ones, where only some classes are shown."""
WRITTEN = 260
"""Cells of a matrix, at most, for their values to be written in them."""


def chosen_classes(sizes: Sequence[float], confidence: Sequence[float], most: int = 6) -> dict[int, str]:
    """Chooses primary classes to show: all if they are few, else the largest and those with the surest labels.

    Args:
        sizes: Samples of each class; one without any is not chosen.
        confidence: The mean probability of the assigned labels of each class.
        most: The most classes to choose.

    Returns:
        The reason for each chosen class, by class; empty reasons if all were chosen.

    Example:
        >>> chosen_classes([5, 9, 7, 8], [0.9, 0.1, 0.2, 0.8], most=2)
        {1: 'largest', 0: 'surest labels'}
    """
    present = [primary for primary, size in enumerate(sizes) if size > 0]
    if len(present) <= most:
        return dict.fromkeys(present, "")
    largest = sorted(present, key=lambda primary: -sizes[primary])[: most - most // 2]
    others = [primary for primary in present if primary not in largest]
    surest = sorted(others, key=lambda primary: -confidence[primary])[: most // 2]
    return {**dict.fromkeys(largest, "largest"), **dict.fromkeys(surest, "surest labels")}


def rows_of(hierarchy: Hierarchy, chosen: Iterable[int], use: Any, most: int | None = None) -> dict[int, list[int]]:
    """Returns the sub-classes to show of each chosen primary class, in order.

    Args:
        chosen: Primary classes.
        use: How often each sub-class is used, ``[K]``.
        most: How many of a class to show at most, the most used ones; all if None.

    Example:
        >>> rows_of(Hierarchy([2, 3]), [1], [5, 5, 1, 7, 2], most=2)
        {1: [3, 4]}
    """
    blocks = {primary: list(hierarchy.block(primary)) for primary in sorted(chosen)}
    return {primary: sorted(sorted(block, key=lambda row: -use[row])[:most]) for primary, block in blocks.items()}


def shares(use: Any, hierarchy: Hierarchy) -> Any:
    """Returns each sub-class's share of its primary class, from counts ``[..., K]``; NaN in a class without samples."""
    use = np.asarray(use, dtype=float)
    blocks = [use[..., block.start : block.stop] for block in map(hierarchy.block, range(len(hierarchy)))]
    totals = np.concatenate([np.broadcast_to(one.sum(-1, keepdims=True), one.shape) for one in blocks], axis=-1)
    return np.divide(use, totals, out=np.full_like(use, np.nan), where=totals > 0)


def use_map(use: Any, hierarchy: Hierarchy, rows: dict[int, list[int]], name: Callable[[int], str], title: str) -> Any:
    """Draws how the samples of each primary class spread over its sub-classes from epoch to epoch.

    Args:
        use: Samples by sub-class, ``[epochs, K]``.
        rows: The sub-classes to show, by primary class.
        name: Returns the name of a primary class.
    """
    shown = [*chain(*rows.values())]
    values = shares(use, hierarchy)[:, shown].T
    figure = new_figure(9, 1.6 + max(1.6, 0.21 * len(shown) if len(shown) <= 40 else 0.1 * len(shown)), title)
    image = _cells(figure, values, rows, hierarchy, name)
    image.axes.set_xlabel("epoch")
    image.axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _bar(image, "share of the primary class's samples")
    return figure


def matrix(
    counts: Any,
    columns: Any,
    hierarchy: Hierarchy,
    rows: dict[int, list[int]],
    names: Sequence[str],
    name: Callable[[int], str],
    title: str,
) -> Any:
    """Draws which human classes the samples of each sub-class have.

    Args:
        counts: Samples by sub-class and human class, ``[K, G]``.
        columns: The human classes to show.
        rows: The sub-classes to show, by primary class.
        names: The names of these human classes.
        name: Returns the name of a primary class.
    """
    shown = counts[[*chain(*rows.values())]]
    sums = shown.sum(axis=1, keepdims=True)
    values = np.divide(shown, sums, out=np.full(shown.shape, np.nan), where=sums > 0)[:, columns]
    is_written = values.size <= WRITTEN
    longest = max(map(len, names))
    width = max(7.0, 3.6 + (0.46 if is_written else 0.27) * len(names))
    figure = new_figure(width, 1.7 + 0.08 * longest + 0.26 * len(shown), title)
    image = _cells(figure, values, rows, hierarchy, name)
    axes = image.axes
    upright = {"rotation": 90} if longest > 3 else {}
    axes.set_xticks(range(1, len(names) + 1), names, fontsize=8.5, **upright)
    axes.set_xlabel("human class")
    axes.tick_params(axis="x", length=0)
    for row, column in np.argwhere(values >= 0.005) if is_written else ():
        share = values[row, column]
        color = "white" if image.norm(share) > 0.67 else INK  # at 0.67 both are equally far from the blue
        axes.text(column + 1, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    _bar(image, "share of the sub-class's samples" + " (written: %)" * is_written)
    return figure


def _bar(image: Any, text: str) -> None:
    """Draws the bar of an image's colours, with a label in lines that fit the figure's height."""
    bar = image.figure.colorbar(image, ax=image.axes, fraction=0.03, pad=0.015, aspect=30)
    longest = max((len(one.get_text()) for one in image.axes.get_xticklabels()), default=0)
    inches = image.figure.get_figheight() - 1.4 - 0.08 * longest
    bar.set_label(textwrap.fill(text, max(12, int(10 * inches))))
    bar.outline.set_visible(False)


def _cells(
    figure: Any, values: Any, rows: dict[int, list[int]], hierarchy: Hierarchy, name: Callable[[int], str]
) -> Any:
    """Draws rows of cells as an image, with lines between the blocks; a row without values is gray."""
    axes = figure.subplots()
    axes.set_facecolor("#eeeeee")
    extent = (0.5, values.shape[1] + 0.5, len(values) - 0.5, -0.5)
    # With many sub-classes small shares must be seen too.
    norm = PowerNorm(0.5 if max(hierarchy.psi) > 10 else 1, 0, 1)
    image = axes.imshow(values, aspect="auto", cmap="Blues", norm=norm, extent=extent, interpolation="nearest")
    for row in np.flatnonzero(np.isnan(values).all(axis=1)):
        axes.text(0.7, row, "not in use", fontsize=7, color=GRAY, va="center")
    begin, middles = 0, []
    for block in rows.values():
        middles.append(begin + (len(block) - 1) / 2)
        begin += len(block)
        if begin < len(values):
            axes.axhline(begin - 0.5, color="white", lw=3)
            axes.axhline(begin - 0.5, color=GRAY, lw=0.8)
    axes.set_yticks(middles, [name(primary) for primary in rows], fontsize=9)
    axes.tick_params(axis="y", length=0)
    if len(values) <= 40:
        numbers = [row - hierarchy.block(primary).start for primary, block in rows.items() for row in block]
        axes.set_yticks(range(len(values)), [str(number) for number in numbers], minor=True)
        axes.yaxis.remove_overlapping_locs = False  # a number may be beside its block's name
        axes.tick_params(axis="y", which="minor", length=0, pad=2, labelsize=7, labelcolor=GRAY)
        axes.tick_params(axis="y", which="major", pad=18)
    axes.spines[:].set(visible=True, color=LIGHT)
    return image
