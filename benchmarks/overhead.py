"""Overhead: what something adds to an iteration of training, as rows and as a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from examples.cifar100.markdown import markdown
from maxl_l2l import MAXL

from .networks import network
from .spread import spread

NUM_CLASSES = 20
PSI = [5] * NUM_CLASSES
COLUMNS = ("", "Milliseconds an iteration", "Ratio to the first", "Milliseconds more")


def model(name: str) -> nn.Module:
    """A network of benchmarks.networks, or ``mlp``, so small that almost all time is overhead."""
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 32), nn.ReLU(), nn.Linear(32, NUM_CLASSES))
    return network(name, NUM_CLASSES)


def learner(name: str) -> MAXL:
    torch.manual_seed(0)
    return MAXL(model(name), PSI)


def rows(seconds: dict[str, list[float]], titles: dict[str, str]) -> list[dict[str, Any]]:
    """One row for each entrant; ratio to and difference from the plain one are taken repeat by repeat."""
    return [
        {
            "entrant": entrant,
            "title": titles[entrant],
            "seconds": spread(own),
            "ratio": spread([one / other for one, other in zip(own, seconds["plain"])]),
            "more": spread([one - other for one, other in zip(own, seconds["plain"])]),
        }
        for entrant, own in seconds.items()
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Rows as a table in Markdown."""
    return markdown(COLUMNS, map(cells, found))


def cells(row: dict[str, Any]) -> list[str]:
    ratio, more = row["ratio"], row["more"]
    return [
        row["title"],
        f"{1000 * row['seconds']['median']:.1f}",
        f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
        "" if row["entrant"] == "plain" else f"{1000 * more['median']:.1f}",
    ]
