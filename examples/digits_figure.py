"""The figure of digits.py: what each label source gains, and the classes that MAXL invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

GRAY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"  # distinct to colour-blind readers and in print
IMAGES_A_ROW = 6


def draw(
    rows: list[dict[str, Any]],
    runs: list[dict[str, Any]],
    titles: dict[str, str],
    images: Any,
    labels: Any,
    path: Path,
) -> None:
    """Draws both panels into one PNG.

    Args:
        rows: The summary, one row for each source.
        runs: The single runs.
        titles: The name of each source in the figure.
        images: Test images ``[N, 8, 8]`` of one seed.
        labels: What the generator of that seed gives them, probabilities ``[N, 10]``.
        path: The file.
    """
    figure = plt.figure(figsize=(12, 5), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=[1, 1.05], wspace=0.04)
    _gains(panels[0], rows, runs, titles)
    _gallery(panels[1], images, labels)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _gains(figure: Any, rows: list[dict[str, Any]], runs: list[dict[str, Any]], titles: dict[str, str]) -> None:
    axes = figure.subplots()
    single = {run["seed"]: run["test_accuracy"] for run in runs if run["source"] == "single"}
    shown = [row for row in rows if row["source"] != "single"]
    spread = np.random.RandomState(0)
    for height, row in enumerate(reversed(shown)):
        name = row["source"]
        gains = [100 * (run["test_accuracy"] - single[run["seed"]]) for run in runs if run["source"] == name]
        color = ORANGE if name == "maxl" else BLUE
        axes.scatter(gains, height + spread.uniform(-0.16, 0.16, len(gains)), s=12, color=GRAY, alpha=0.45, lw=0)
        mean, error = 100 * row["difference"], 100 * row["difference_se"]
        axes.errorbar(mean, height, xerr=error, fmt="o", color=color, ms=8, capsize=4, lw=2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        label = f"{mean:+.2f}"
        axes.annotate(label, (mean, height + 0.25), ha="center", color=color, fontsize=10, weight="bold", bbox=box)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(shown)), [titles[row["source"]] for row in reversed(shown)], fontsize=11)
    axes.set_ylim(-0.5, len(shown) - 0.35)
    axes.set_xlabel("test accuracy gained over single-task training (percentage points)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    accuracy = 100 * rows[0]["accuracy"]
    figure.suptitle(
        f"What an auxiliary task gains over {accuracy:.1f} % alone\n"
        f"(gray: {len(single)} seeds, colour: mean ± standard error)",
        fontsize=12,
    )


def _gallery(figure: Any, images: Any, labels: Any) -> None:
    """The test images that each generated sub-class claims most strongly, five rows for each primary class."""
    blocks: Any = figure.subfigures(1, 2, wspace=0.05)
    for primary, (block, title) in enumerate(zip(blocks, ("digits below five", "digits from five on"))):
        grid = block.subplots(5, IMAGES_A_ROW, gridspec_kw={"wspace": 0.0, "hspace": 0.0})
        block.suptitle(title, fontsize=11)
        for row in range(5):
            label = 5 * primary + row
            members = np.flatnonzero(labels.argmax(axis=1) == label)
            best = members[np.argsort(-labels[members, label])][:IMAGES_A_ROW]
            for column, axes in enumerate(grid[row]):
                axes.set_axis_off()
                if column < len(best):
                    axes.imshow(images[best[column]], cmap="gray_r", vmin=0, vmax=1)
            if not len(best):
                grid[row][0].text(0, 0.5, "not in use", fontsize=9, color=GRAY, va="center")
    figure.suptitle(
        "The sub-classes that MAXL invented, a row each\n(test images that each one claims most strongly)", fontsize=12
    )
