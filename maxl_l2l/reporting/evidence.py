"""Evidence: what a report has to go on: runs, samples, and what classes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..agreement import agreement
from ..hierarchy import Hierarchy
from ..history import History
from .comparison import Group, Measure, invented, measure_of, of_source
from .samples import Samples


@dataclass(frozen=True)
class Evidence:
    """What is known of a comparison and of one learner.

    Attributes:
        groups: Runs by label source.
        samples: What the learner makes of some of its data, or why that is not known.
        class_names: Of primary classes; their numbers if None.
        human_names: Of human classes; their numbers if None.
        seed: Of what is drawn.
    """

    groups: list[Group]
    samples: Samples | str
    class_names: Sequence[str] | None = None
    human_names: Sequence[str] | None = None
    seed: int = 0

    @property
    def measure(self) -> Measure | None:
        """What runs are compared by."""
        return measure_of(self.groups)

    @property
    def single(self) -> Group | None:
        """Runs without an auxiliary task."""
        return of_source(self.groups, "SingleTask")

    @property
    def entropy(self) -> Group | None:
        """Runs without a meta gradient."""
        return of_source(self.groups, "EntropyLabels")

    @property
    def invented(self) -> list[Group]:
        """Runs with learned labels."""
        return invented(self.groups)

    def primary_name(self, primary: int) -> str:
        """What a primary class is called."""
        return f"class {primary}" if self.class_names is None else self.class_names[primary]

    def human_name(self, human: int) -> str:
        """What a human class is called."""
        return str(human) if self.human_names is None else self.human_names[human]

    def selection(self, chosen: Mapping[int, str], surest: str = "surest labels") -> str:
        """Says which primary classes are shown, and why.

        Args:
            chosen: Reasons by class, of :func:`samples.chosen_classes`.
            surest: What to call the reason of those that are not the largest.
        """
        listed: dict[str, list[str]] = {}
        for primary, reason in chosen.items():
            why = f" ({reason if reason == 'largest' else surest})" if reason else ""
            listed.setdefault(why, []).append(self.primary_name(primary))
        return f"Shown: {'; '.join(', '.join(names) + why for why, names in listed.items())}."


def hierarchy_of_run(run: History) -> Hierarchy | None:
    """Returns the hierarchy of a run; None if its history does not say."""
    return Hierarchy(run.settings["psi"]) if "psi" in run.settings else None


def human_table(samples: Samples) -> tuple[Any, Any] | None:
    """Counts samples by sub-class and human class.

    Returns:
        The counts ``[K, G]``, and the G human classes in the order of the primary classes that most of their samples
        have; None if the samples have no human labels.
    """
    if samples.human is None or not (samples.human >= 0).any():
        return None
    known = samples.human >= 0
    human, assigned, y = samples.human[known], samples.assigned[known], samples.y[known]
    found = np.unique(human)
    owner = {one: np.bincount(y[human == one]).argmax() for one in found}
    order = np.array(sorted(found, key=lambda one: (owner[one], one)))
    place = {one: number for number, one in enumerate(order)}
    counts = np.zeros((samples.hierarchy.num_auxiliary, len(order)), dtype=int)
    np.add.at(counts, (assigned, [place[one] for one in human]), 1)
    return counts, order


def agreement_of(samples: Samples) -> dict[str, float]:
    """Returns how far sub-classes are the human classes; nothing without human labels."""
    table = human_table(samples)
    return {} if table is None else agreement(torch.from_numpy(table[0]), samples.hierarchy)
