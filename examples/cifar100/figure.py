"""The figure of summarize.py: test accuracy over the epochs, and what each label source gains."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

GRAY = "#8c8c8c"
# Okabe and Ito's palette, which colour-blind readers can distinguish, and a line style each for print.
COLORS = {
    "single": ("black", "-"),
    "random": ("#56b4e9", ":"),
    "kmeans": ("#009e73", "-."),
    "human": ("#0072b2", "--"),
    "entropy": ("#cc79a7", "-"),
    "maxl": ("#d55e00", "-"),
    "weighted": ("#e69f00", "--"),
}


def draw(rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], titles: Sequence[str], path: Path) -> None:
    """Draws both panels into one PNG.

    Args:
        rows: The summary, one row for each label.
        runs: The single runs.
        titles: The name of each row in the figure.
        path: The file.
    """
    height = max(4.5, 1.4 + 0.62 * len(rows))
    figure, (curves, gains) = plt.subplots(1, 2, figsize=(13, height), width_ratios=[1.15, 1], layout="constrained")
    _curves(curves, rows, runs, titles)
    _gains(gains, rows, runs, titles)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _curves(axes: Any, rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], titles: Sequence[str]) -> None:
    for row, name in zip(rows, titles):
        found = 100 * np.array([run["test_accuracy"] for run in runs if run["label"] == row["label"]])
        epochs, mean = np.arange(1, found.shape[1] + 1), found.mean(axis=0)
        color, style = COLORS[row["source"]]
        axes.plot(epochs, mean, style, color=color, lw=1.6, label=textwrap.shorten(name, 40, placeholder=" ..."))
        if len(found) > 1:
            error = found.std(axis=0, ddof=1) / len(found) ** 0.5
            axes.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.15, lw=0)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Test accuracy while training\n(bands: standard error)", fontsize=12)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _gains(axes: Any, rows: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]], titles: Sequence[str]) -> None:
    single = {run["seed"]: run["accuracy"] for run in runs if run["label"] == "single"}
    shown = [(row, name) for row, name in zip(rows, titles) if row["gain"] is not None][::-1]
    for height, (row, _) in enumerate(shown):
        found = [run for run in runs if run["label"] == row["label"] and run["seed"] in single]
        values = [100 * (run["accuracy"] - single[run["seed"]]) for run in found]
        axes.scatter(values, [height] * len(values), s=18, color=GRAY, alpha=0.6, lw=0)
        mean, error = (100 * (value or 0) for value in row["gain"])
        color = COLORS[row["source"]][0]
        axes.errorbar(mean, height, xerr=error, fmt="o", color=color, ms=8, capsize=4, lw=2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        place = (mean, height + 0.2)
        axes.annotate(f"{mean:+.2f}", place, ha="center", color=color, fontsize=10, weight="bold", bbox=box)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(shown)), [textwrap.fill(name, 26) for _, name in shown], fontsize=10)
    axes.set_ylim(-0.5, len(shown) - 0.3)
    axes.set_xlabel("gain in test accuracy over single-task training (percentage points)")
    axes.set_title("What auxiliary labels gain\n(gray: a seed each, colour: mean ± standard error)", fontsize=12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
