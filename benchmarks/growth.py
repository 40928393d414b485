"""Growth: how seconds and memory grow with the batch, the depth, the inner steps and the number of sub-classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .case import Case
from .measure import compare

FUSED = ("single", "ours", "unroll")
ADAPTED = ("ours-adapted", "learn2learn", "higher")


@dataclass(frozen=True)
class Curve:
    """One quantity that grows.

    Attributes:
        quantity: Its name on the axis.
        contenders: Whose curves are drawn.
        changes: What of the case it changes, by its value.
    """

    quantity: str
    contenders: tuple[str, ...]
    changes: Mapping[int, Mapping[str, Any]]


CURVES = {
    "batch": Curve("batch size", FUSED, {size: {"batch": size} for size in (25, 50, 100, 200, 400)}),
    "depth": Curve("number of convolutions", FUSED, {5 * n: {"network": f"vgg-{n}x5-0.25"} for n in range(1, 6)}),
    "inner_steps": Curve("number of inner steps", ADAPTED, {steps: {"inner_steps": steps} for steps in range(1, 6)}),
    "sub_classes": Curve(
        "number of sub-classes K",
        FUSED,
        {k: {"network": "vgg-1x5-0.125", "psi": (k // 10,) * 10} for k in (10, 100, 1000, 10_000)},
    ),
}


def points(curves: Iterable[str], base: Mapping[str, Any], repeats: int, iterations: int) -> Iterator[dict[str, Any]]:
    """Measures curves point by point.

    Args:
        curves: Names in :data:`CURVES`.
        base: What of the case is the same everywhere, unless a curve changes it.
        repeats: As in :func:`~benchmarks.measure.compare`.
        iterations: As there.

    Yields:
        One point: ``curve``, ``value``, ``case`` and ``results``.
    """
    for name in curves:
        curve = CURVES[name]
        for value, changes in curve.changes.items():
            case = Case(**{"network": "vgg16-0.25", **base, **changes})
            results = compare(case, curve.contenders, repeats, iterations, errors=False)
            yield {"curve": name, "value": value, "case": asdict(case), "results": [asdict(r) for r in results]}
