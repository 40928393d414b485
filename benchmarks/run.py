"""Measures one MAXL iteration beside other ways to write it: a table, JSON and a figure.

Run: python -m benchmarks.run --quick     (make bench does it in full, after installing what it needs)
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.cifar100.arithmetic import PRECISIONS

from .case import Case
from .environment import environment, write
from .figures import draw_costs, draw_growth
from .growth import CURVES, points
from .libraries import CONTENDERS
from .measure import compare
from .report import rows, table

NETWORKS = ("vgg16-0.5", "vgg16-1", "resnet18", "vit")
QUICK = {"networks": ["vgg-1x5-0.25"], "batch": 50, "repeats": 3}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or the like (default cpu)")
    parser.add_argument(
        "--networks", nargs="*", default=list(NETWORKS), help=f"default {' '.join(NETWORKS)}; none to skip the table"
    )
    names = [name for name in CONTENDERS if name != "ours-adapted"]
    parser.add_argument("--contenders", nargs="+", default=names, choices=list(CONTENDERS), help="default: all")
    parser.add_argument("--batch", type=int, default=100, help="images in a batch (default 100)")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=5, help="how often each is timed, in turns (default 5)")
    parser.add_argument("--iterations", type=int, help="timed at once; default 1, on cuda 10")
    parser.add_argument("--quick", action="store_true", help="one small network, 3 repeats: two minutes on two cores")
    parser.add_argument("--growth", nargs="*", choices=list(CURVES), help="measure growth too (all curves, or these)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for JSON and figures")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    if arguments.iterations is None:
        arguments.iterations = 10 if arguments.device.startswith("cuda") else 1
    return arguments


def main() -> None:
    arguments = parsed()
    # Imported once in the server that measuring processes are forked from, not once in each.
    multiprocessing.set_forkserver_preload(["benchmarks.measure"])
    about = environment(arguments)
    if arguments.networks:
        measure_costs(arguments, about)
    if arguments.growth is not None:
        measure_growth(arguments, about)


def measure_costs(arguments: argparse.Namespace, about: dict[str, Any]) -> None:
    """Prints a table for each network, and writes all results after each, so that a stopped run is not lost."""
    cases, summary = [], []
    for name in arguments.networks:
        case = Case(name, arguments.batch, device=arguments.device, precision=arguments.precision)
        results = compare(case, arguments.contenders, arguments.repeats, arguments.iterations)
        found = rows(case, results)
        print(f"\n{name}, batch {case.batch}, {case.precision}, {about['device']}\n\n{table(found)}", flush=True)
        summary += found
        cases.append({"case": asdict(case), "results": [asdict(result) for result in results]})
        write(arguments.out / "costs.json", {**about, "summary": summary, "cases": cases})
        draw_costs(summary, arguments.out / "costs.png")
    print(f"\nWritten: {arguments.out}/costs.json, {arguments.out}/costs.png")


def measure_growth(arguments: argparse.Namespace, about: dict[str, Any]) -> None:
    base = {"device": arguments.device, "precision": arguments.precision, "batch": arguments.batch}
    found: list[dict[str, Any]] = []
    for point in points(arguments.growth or CURVES, base, arguments.repeats, arguments.iterations):
        found.append(point)
        print(f"{CURVES[point['curve']].quantity} {point['value']}: measured", flush=True)
        write(arguments.out / "growth.json", {**about, "points": found})
    draw_growth(found, arguments.out / "growth.png")
    print(f"\nWritten: {arguments.out}/growth.json, {arguments.out}/growth.png")


if __name__ == "__main__":
    main()
