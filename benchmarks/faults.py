"""Faults: the table of what was tried to break this package, which the programs in tests/faults measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from examples.cifar100.markdown import markdown


def rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What was tried, what is wanted of it, what was found, and whether that is enough."""
    listed: list[tuple[str, str, str, bool]] = []
    if one := found.get("kills"):
        words = (
            f"{one['kills']} kills, {one['writing']} of them while a checkpoint was written: {one['identical']} of "
            f"{one['runs']} runs identical"
        )
        passed = one["kills"] >= 50 and one["identical"] == one["runs"]
        listed.append(("runs killed at random moments and resumed", "50 of 50, bit for bit", words, passed))
    if one := found.get("files"):
        words = f"{one['refused']} of {one['files']}"
        passed = one["files"] >= 200 and one["refused"] == one["files"]
        listed.append(
            ("corrupt, foreign and hostile checkpoints refused with their reason", "200 of 200", words, passed)
        )
    if one := found.get("properties"):
        words = f"{one['cases']} cases of {len(one['properties'])} properties, {one['failures']} failures"
        passed = one["cases"] >= 2000 and one["failures"] == 0
        listed.append(("random cases of properties", "2,000, no failure", words, passed))
    if one := found.get("mutants"):
        words = f"{one['killed']} of {one['mutants']}"
        passed = one["mutants"] >= 30 and one["killed"] == one["mutants"]
        listed.append(("mutants of the core that the tests notice", "30 of 30", words, passed))
    if one := found.get("calls"):
        words = f"{one['right']} of {one['calls']}"
        passed = one["calls"] >= 60 and one["right"] == one["calls"]
        listed.append(("bad calls answered in the right words", "60 of 60", words, passed))
    for loop, grown in found.get("growth", {}).items():
        memory = max(grown["resident"], grown["objects"], grown.get("allocated", 0.0))
        words = f"memory {100 * memory:+.2f} %, time over that of plain torch {100 * grown['time']:+.1f} %"
        passed = memory < 0.01 and grown["time"] < 0.05
        listed.append((f"growth over {grown['iterations']:,} times {loop}", "memory < 1 %, time < 5 %", words, passed))
    return listed


def table(found: Mapping[str, Any]) -> str:
    """The figures as a table in Markdown."""
    return markdown(("tried", "wanted", "found"), [row[:3] for row in rows(found)])
