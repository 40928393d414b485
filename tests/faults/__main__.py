"""Tries to break the library, and prints a table of the results: ``PYTHONPATH=tests python -m faults``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environment import environment, write
from benchmarks.faults import rows, table

from . import calls, flat, hostile, kills, mutants, properties

PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "kills": kills.figures,
    "files": hostile.figures,
    "properties": properties.figures,
    "mutants": partial(mutants.figures, jobs=2, report=partial(print, file=sys.stderr, flush=True)),
    "calls": calls.figures,
    "growth": flat.figures,
}


def main() -> int:
    """Runs all parts, or some; returns an exit status that says whether all is as wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts alone")
    parser.add_argument("--out", type=Path, default=Path("out/faults.json"), help="where the figures go")
    parser.set_defaults(device="cpu")
    chosen = parser.parse_args()
    found = {}
    for name in chosen.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = PARTS[name]()
    write(chosen.out, {**environment(chosen), **found})
    print(table(found))
    return 0 if all(row[3] for row in rows(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
