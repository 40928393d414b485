"""Spread: the median and quartiles of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import quantiles


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and quartiles; None without values."""
    if not values:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "low": low, "high": high}
