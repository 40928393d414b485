"""The figures: what an iteration costs, and how that grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from maxl_l2l.checkpoints import replace_file

from .growth import CURVES
from .libraries import CONTENDERS
from .report import MIB

GRAY, BLUE, ORANGE, BLACK = "#8c8c8c", "#0072b2", "#d55e00", "#000000"  # distinct to colour-blind readers, in print
COLORS = {
    "single": GRAY,
    "ours": ORANGE,
    "ours-adapted": ORANGE,
    "unroll": BLUE,
    "learn2learn": BLUE,
    "higher": BLACK,
}
LINES = {"single": "s-", "ours": "o-", "ours-adapted": "o-", "unroll": "D-", "learn2learn": "D--", "higher": "^:"}


def draw_costs(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws ratio and memory of each contender, a pair of panels for each network, into one PNG."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    height = sum(1.1 + 0.28 * sum(row["network"] == name for row in rows) for name in networks)
    figure = plt.figure(figsize=(11, 0.7 + height), layout="constrained")
    grid: Any = figure.subplots(len(networks), 2, squeeze=False, sharey="row", width_ratios=[1.4, 1])
    for (left, right), name in zip(grid, networks):
        found = [row for row in reversed(rows) if row["network"] == name]
        _bars(left, found, lambda row: row["ratio"] and row["ratio"]["median"], "{:.2f}")
        _bars(right, found, lambda row: row["peak_mib"], "{:.0f}")
        left.set_yticks(range(len(found)), [_label(row) for row in found])
        left.set_title(_heading(name, found), loc="left", fontsize=11, weight="bold")
        left.set_xlabel("seconds, as a multiple of single-task training")
        right.set_xlabel("peak memory above the floor, MiB")
    title = "What one MAXL iteration costs (orange: this package; shorter is better)"
    marked = any(_is_helped(row) for row in rows)
    figure.suptitle(title + "\n* with torch's math attention, without which it fails" * marked, fontsize=12)
    _save(figure, path)


def _heading(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """What to see in a network's panels, as far as it was measured."""
    ratios = {row["contender"]: row["ratio"]["median"] for row in rows if row["ratio"] is not None}
    others = [ratio for contender, ratio in ratios.items() if _color(contender) == BLUE]
    if "ours" not in ratios or not others:
        return name
    return f"{name}: ours {ratios['ours']:.1f} times a single-task iteration, the fastest other way {min(others):.1f}"


def _bars(
    axes: Any, rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None], form: str
) -> None:
    for height, row in enumerate(rows):
        found = value(row)
        axes.barh(height, found or 0, color=_color(row["contender"]), height=0.7)
        text = form.format(found) if found else "fails" if row["note"] else ""
        axes.annotate(text, (found or 0, height), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: dict[str, Any]) -> str:
    return f"{row['title']}{' *' * _is_helped(row)}"


def _is_helped(row: dict[str, Any]) -> bool:
    return bool(row["note"] and row["seconds"])


def _color(contender: str) -> str:
    return GRAY if contender.startswith("single") else ORANGE if contender.startswith("ours") else BLUE


def draw_growth(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws seconds over memory for each curve, into one PNG."""
    names = list(dict.fromkeys(point["curve"] for point in points))
    figure = plt.figure(figsize=(3.6 * len(names), 6), layout="constrained")
    grid: Any = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for (top, bottom), name in zip(grid.T, names):
        curve = CURVES[name]
        found = [point for point in points if point["curve"] == name]
        for contender in curve.contenders:
            results = [(p["value"], r) for p in found for r in p["results"] if r["contender"] == contender]
            line, style = LINES[contender], {"color": COLORS[contender], "label": CONTENDERS[contender].title}
            top.plot(*_series(results, lambda r: median(r["seconds"]) if r["seconds"] else None), line, **style)
            bottom.plot(*_series(results, lambda r: r["peak_bytes"] and r["peak_bytes"] / MIB), line, **style)
        for axes in (top, bottom):
            axes.margins(y=0.35)  # space for the legend
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
            if name == "sub_classes":
                axes.set_xscale("log")
        top.set_title(f"with the {curve.quantity}", fontsize=11)
        top.legend(frameon=False, fontsize=8)
        bottom.set_xlabel(curve.quantity)
    grid[0][0].set_ylabel("seconds an iteration")
    grid[1][0].set_ylabel("peak memory, MiB")
    figure.suptitle("How seconds (above) and memory (below) of one iteration grow", fontsize=13)
    _save(figure, path)


def _series(
    results: Sequence[tuple[int, dict[str, Any]]], value: Callable[[dict[str, Any]], float | None]
) -> tuple[list[int], list[float]]:
    found = [(x, y) for x, result in results if (y := value(result)) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _save(figure: Any, path: Path) -> None:
    replace_file(path, lambda file: figure.savefig(file, dpi=140, format="png"))
    plt.close(figure)
