"""Runs the property tests on other random cases than the suite does, and counts them.

As a program it prints what it found: ``python tests/faults/properties.py``. ``MAXL_PROPERTY_SEED=7`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "faults" / "test_properties.py"


def figures(seed: int | None = None) -> dict[str, Any]:
    """Runs the properties once; the failing ones are shown on standard error.

    Args:
        seed: Of the cases; if None, that in ``MAXL_PROPERTY_SEED``, or else a random one.

    Returns:
        ``cases`` that passed in all; ``failures``, the number of properties with a case that did not; ``properties``,
        the cases of each; and the ``seed``, with which the run can be repeated.

    Raises:
        RuntimeError: The tests did not run.
    """
    if seed is None:
        seed = int(os.environ.get("MAXL_PROPERTY_SEED") or random.SystemRandom().randrange(2**32))
    with tempfile.TemporaryDirectory() as folder:
        cases, results = Path(folder) / "cases.json", Path(folder) / "results.xml"
        found = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={results}", str(TESTS)],
            cwd=ROOT,
            env=os.environ | {"MAXL_PROPERTY_SEED": str(seed), "MAXL_PROPERTY_CASES": str(cases)},
            capture_output=True,
            text=True,
        )
        if found.returncode not in (0, 1) or not cases.exists():
            raise RuntimeError(f"The properties did not run:\n{found.stdout[-4000:]}\n{found.stderr[-4000:]}")
        if found.returncode:
            print(found.stdout, file=sys.stderr)
        properties: dict[str, int] = json.loads(cases.read_text())
        suites = ElementTree.parse(results).getroot().iter("testsuite")
        failures = sum(int(suite.attrib["failures"]) + int(suite.attrib["errors"]) for suite in suites)
    return {"cases": sum(properties.values()), "failures": failures, "properties": properties, "seed": seed}


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))
