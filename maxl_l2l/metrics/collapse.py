"""Collapse: whether invented labels carry any information, and what to change if not."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import some
from ..labels import Hierarchy

SINGLE = UNIFORM = 0.99
"""The share of a class's samples in one sub-class, and of a uniform label's entropy, from which labels are useless."""
SURE, FEW = 0.9, 10
"""The share of a uniform label's entropy from which the most probable sub-class means little; least count to judge."""


@dataclass(frozen=True)
class Collapse:
    """What is wrong with the labels of an epoch, if anything.

    Attributes:
        single: Primary classes that psi splits and that have ten or more samples, at least 99 % of them in one
            sub-class. Classes whose labels have 90 % or more of the entropy of uniform ones do not count, as their most
            probable sub-class means little.
        uniform: Whether the labels' mean entropy is at least 99 % of that of uniform ones.
    """

    single: tuple[int, ...] = ()
    uniform: bool = False


def collapse_of(record: Mapping[str, Any], hierarchy: Hierarchy) -> Collapse:
    """Judges an epoch's labels.

    Args:
        record: Of a history, with ``use``, ``relative_label_entropy`` and ``relative_label_entropy_per_class``. If it
            lacks them, nothing is found.
        hierarchy: The hierarchy.

    Example:
        >>> record = {"use": [50, 0, 20, 30], "relative_label_entropy_per_class": [0.1, 0.9]}
        >>> collapse_of(record, Hierarchy([2, 2]))
        Collapse(single=(0,), uniform=False)
    """
    single, start = [], 0
    shares = record.get("relative_label_entropy_per_class") or [None] * len(hierarchy)
    for primary, (size, share) in enumerate(zip(hierarchy.psi, shares)):
        counts = record.get("use", [])[start : start + size]
        start += size
        judged = size > 1 and sum(counts) >= FEW and (share is None or share < SURE)
        if judged and max(counts) >= SINGLE * sum(counts):
            single.append(primary)
    return Collapse(tuple(single), record.get("relative_label_entropy", 0.0) >= UNIFORM)


def warn_of_collapse(
    records: Sequence[Mapping[str, Any]], hierarchy: Hierarchy, patience: int | None, stacklevel: int = 2
) -> None:
    """Warns if labels have collapsed, or have been uniform, in the last ``patience`` epochs and not in the one before.

    Args:
        records: Of a history, one for each epoch.
        hierarchy: The hierarchy.
        patience: Number of epochs in a row; None for no warnings.
        stacklevel: As in ``warnings.warn``, seen from here.
    """
    if patience is None or len(records) < patience:
        return
    found = [collapse_of(record, hierarchy) for record in records[-patience - 1 :]]
    last, before = found[-patience:], found[:-patience]
    single = set.intersection(*(set(one.single) for one in last)).difference(*(one.single for one in before))
    if single:
        names = some([str(primary) for primary in sorted(single)])
        warnings.warn(
            f"labels have collapsed: primary class {names} has kept to a single sub-class for {patience} epochs. "
            "Raise entropy_weight, lower the generator's learning rate, or give such a class fewer sub-classes in psi.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
    if all(one.uniform for one in last) and not any(one.uniform for one in before):
        warnings.warn(
            f"labels have stayed uniform for {patience} epochs: they say no more of a sample than its class. "
            "Raise the generator's learning rate or train longer; train with source=EntropyLabels() too, to see "
            "whether a gain comes from the meta gradient.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )
