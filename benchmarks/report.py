"""Reports: the results as rows, and these as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.cifar100.markdown import markdown

from .case import Case
from .libraries import CONTENDERS
from .measure import Result
from .spread import spread

MIB = 2**20
COLUMNS = ("", "Seconds", "Ratio to single task", "Peak memory, MiB", "Relative error", "Of the method", "")


def rows(case: Case, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each contender, with medians and quartiles over the repeats.

    The ratio is taken repeat by repeat, between iterations that ran one shortly after the other.
    """
    single = next((result.seconds for result in results if result.contender == "single"), [])
    return [
        {
            "network": case.network,
            "contender": result.contender,
            "title": CONTENDERS[result.contender].title,
            "seconds": spread(result.seconds),
            "ratio": spread([ours / one for ours, one in zip(result.seconds, single)]),
            "peak_mib": None if result.peak_bytes is None else round(result.peak_bytes / MIB, 1),
            "error": result.error,
            "method_error": result.method_error,
            "method_error_without_entropy": result.method_error_without_entropy,
            "note": note(result),
        }
        for result in results
    ]


def note(result: Result) -> str:
    if result.failure is None:
        return ""
    return f"with math attention; else fails: {result.failure}" if result.math_attention else f"fails: {result.failure}"


def table(found: Sequence[dict[str, Any]]) -> str:
    """Rows as a table in Markdown."""
    return markdown(COLUMNS, map(cells, found))


def cells(row: dict[str, Any]) -> list[str]:
    seconds, ratio = row["seconds"], row["ratio"]
    return [
        row["title"],
        "" if seconds is None else f"{seconds['median']:.4g}",
        "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        "" if row["error"] is None else f"{row['error']:.1e}",
        error_cell(row),
        row["note"],
    ]


def error_cell(row: dict[str, Any]) -> str:
    if row["method_error"] is None:
        return ""
    without = row["method_error_without_entropy"]
    return f"{row['method_error']:.1e}" + ("" if without is None else f" ({without:.1e} if there were no entropy term)")
