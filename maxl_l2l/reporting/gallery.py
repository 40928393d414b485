"""The gallery: the images that belong most strongly to each invented sub-class."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..labels import Hierarchy
from .style import GRAY, new_figure

COLUMNS = 8
"""Images shown of a sub-class, at most."""


def strongest(labels: Any, row: int, most: int = COLUMNS) -> Any:
    """Returns the samples whose most probable sub-class is this one, those with the largest probability first.

    Args:
        labels: Probabilities, ``[N, K]``.
        row: The sub-class.
        most: The most samples to return.
    """
    members = np.flatnonzero(labels.argmax(axis=1) == row)
    return members[np.argsort(-labels[members, row], kind="stable")][:most]


def gallery(
    images: Any,
    labels: Any,
    hierarchy: Hierarchy,
    rows: Mapping[int, list[int]],
    name: Callable[[int], str],
    title: str,
) -> Any:
    """Draws a block for each primary class, with a row of images for each of its sub-classes.

    Args:
        images: ``[N, H, W]`` or ``[N, H, W, 3]``, in 0 .. 1.
        labels: Probabilities, ``[N, K]``.
        rows: The sub-classes to show, by primary class; one that is not in use has no row of images.
        name: Returns what to write over the block of a primary class.
    """
    shape = images.shape[1:3]
    columns = min(len(rows), 2)
    used = {primary: [row for row in block if len(strongest(labels, row))] for primary, block in rows.items()}
    cell = 5.0 / COLUMNS
    sizes = [len(block) for block in used.values()]
    most = [max(sizes[begin : begin + columns]) for begin in range(0, len(sizes), columns)]
    has_idle = any(len(used[primary]) < len(block) for primary, block in rows.items())
    # 0.3 inches for the line that lists the sub-classes that are not in use.
    heights = [0.52 + 0.3 * has_idle + size * cell * shape[0] / shape[1] for size in most]
    figure = new_figure(max(6.5, 5.6 * columns), 0.5 + sum(heights), title)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes, (primary, block) in zip(grid.flat, used.items()):
        middles = _mosaic(axes, images, labels, block)
        begin = hierarchy.block(primary).start
        absent = [str(row - begin) for row in rows[primary] if row not in block]
        axes.set_yticks(middles, [str(row - begin) for row in block], fontsize=9)
        axes.set_title(name(primary))
        if absent:
            axes.set_xlabel(f"not in use: {', '.join(absent)}", loc="left", color=GRAY, fontsize=9)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_axis_off()
    return figure


def _mosaic(axes: Any, images: Any, labels: Any, block: list[int]) -> list[float]:
    """Draws all images of a class as one, since an axes for each takes seconds; returns the middle of each row."""
    height, width = images.shape[1:3]
    gap = max(1, height // 16)
    mosaic = np.ones((len(block) * (height + gap) - gap, COLUMNS * (width + gap) - gap, *images.shape[3:]))
    for number, row in enumerate(block):
        top = number * (height + gap)
        for column, sample in enumerate(strongest(labels, row)):
            left = column * (width + gap)
            mosaic[top : top + height, left : left + width] = images[sample]
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest" if width <= 32 else "antialiased")
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines[:].set_visible(False)
    return [row * (height + gap) + (height - 1) / 2 for row in range(len(block))]
