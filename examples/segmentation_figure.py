"""The figure of segmentation.py: what each label source gains, and test scenes with the labels invented for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

GRAY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"  # distinct to colour-blind readers and in print
# Okabe and Ito's palette, and a light gray: eight colours that colour-blind readers can distinguish
LABELS = ["#d9d9d9", "#0072b2", "#d55e00", "#009e73", "#f0e442", "#cc79a7", "#56b4e9", "#000000"]
COLUMNS = ("scene", "truth", "predicted,\nsingle task", "predicted, with\ninvented labels", "the invented\nlabels")


def draw(rows: list[dict[str, Any]], runs: list[dict[str, Any]], maps: Any, path: Path) -> None:
    """Draws both panels into one PNG.

    Args:
        rows: The summary, one row for each source.
        runs: The single runs.
        maps: Test scenes of the first seed, and per pixel the truth, both predictions and the most probable invented
            label: five arrays ``[N, H, W]``, in the order of the columns.
        path: The file.
    """
    figure = plt.figure(figsize=(13, 5.4), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=[1, 1.45], wspace=0.03)
    _gains(panels[0], rows, runs)
    _scenes(panels[1], maps)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _gains(figure: Any, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    single = {run["seed"]: run["mean_iou"] for run in runs if run["source"] == "Single task"}
    shown = [row for row in rows if row["source"] != "Single task"]
    spread = np.random.RandomState(0)
    for height, row in enumerate(reversed(shown)):
        name = row["source"]
        gains = [100 * (run["mean_iou"] - single[run["seed"]]) for run in runs if run["source"] == name]
        color = ORANGE if name == "Invented labels" else BLUE
        axes.scatter(gains, height + spread.uniform(-0.12, 0.12, len(gains)), s=14, color=GRAY, alpha=0.5, lw=0)
        mean, error = (100 * value for value in row["gain"])
        axes.errorbar(mean, height, xerr=error, fmt="o", color=color, ms=8, capsize=4, lw=2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        place = (mean, height + 0.22)
        axes.annotate(f"{mean:+.2f}", place, ha="center", color=color, fontsize=11, weight="bold", bbox=box)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(shown)), [row["source"] for row in reversed(shown)], fontsize=11)
    axes.set_ylim(-0.4, len(shown) - 0.5)
    axes.set_xlabel("gain in mean IoU (percentage points)", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(
        f"What an auxiliary task gains over a mean IoU of {100 * rows[0]['mean_iou'][0]:.1f} % alone\n"
        f"(gray: {len(single)} seeds, colour: mean ± standard error)",
        fontsize=12,
    )


def _scenes(figure: Any, maps: Any) -> None:
    """The first test scenes, a row each: input, truth, predictions, and invented labels."""
    count = len(maps[0])
    grid = figure.subplots(count, len(COLUMNS), gridspec_kw={"wspace": 0.04, "hspace": 0.04}, squeeze=False)
    classes, labels = ListedColormap(["white", BLUE, ORANGE]), ListedColormap(LABELS)
    looks = [{"cmap": "gray_r", "vmin": -0.2, "vmax": 1}]
    looks += [{"cmap": classes, "vmin": 0, "vmax": 2, "interpolation": "nearest"}] * 3
    looks += [{"cmap": labels, "vmin": 0, "vmax": len(LABELS) - 1, "interpolation": "nearest"}]
    for column, (title, images, look) in enumerate(zip(COLUMNS, maps, looks)):
        grid[0][column].set_title(title, fontsize=11)
        for row in range(count):
            grid[row][column].imshow(images[row], **look)
            grid[row][column].set(xticks=[], yticks=[])
            grid[row][column].spines[:].set_color(GRAY)
    patches = [Patch(facecolor="white", edgecolor=GRAY, label="background")]
    patches += [Patch(color=color, label=label) for color, label in ((BLUE, "below five"), (ORANGE, "five or more"))]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
