"""Evidence: what a report has to go on: runs, samples, and what classes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..labels import Hierarchy
from ..metrics import agreement
from ..training import History
from .comparison import Group, Measure, invented, measure_of, of_source, partner
from .samples import Samples

WIDTH, TITLE_WIDTH = 22, 30
"""Characters of a class's name, and of a title of runs, in a figure at most."""
GIVEN = ("SingleTask", "RandomLabels", "KMeansLabels", "HumanLabels")
"""Sources whose labels nobody has learned."""
TIMES = 10
"""How often human labels are shuffled to see what chance gives."""


def label(number: int, name: str, width: int = WIDTH) -> str:
    """Returns the name of one of several things; a longer one is cut behind its number, so that no two are the same.

    Example:
        >>> label(7, "large omnivores and herbivores", 16)
        '7: large omnivo…'
    """
    return name if len(name) <= width else f"{f'{number}: {name}'[: width - 1].rstrip()}…"


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
    def singles(self) -> list[Group]:
        """Runs without an auxiliary task."""
        return of_source(self.groups, "SingleTask")

    def single(self, group: Group) -> Group | None:
        """Returns the runs without an auxiliary task that a group's gains are over."""
        return partner(group, self.singles)

    def entropy(self, group: Group) -> Group | None:
        """Returns the runs without a meta gradient that a group compares with."""
        return partner(group, of_source(self.groups, "EntropyLabels"))

    @property
    def invented(self) -> list[Group]:
        """Runs with learned labels."""
        return invented(self.groups)

    @property
    def learned(self) -> list[Group]:
        """Runs whose labels were learned in some way, those with a meta gradient first."""
        found = [group for group in self.groups if group.source not in GIVEN]
        return sorted(found, key=lambda group: group.source != "GeneratedLabels")

    def primary_label(self, primary: int) -> str:
        """What a primary class is called in figures."""
        return label(primary, self.primary_name(primary))

    def human_label(self, human: int) -> str:
        """What a human class is called in figures."""
        return label(human, self.human_name(human))

    def cut_names(self) -> dict[str, str]:
        """Returns all names that are too long for figures, by what stands for them there."""
        named = [(label(number, group.title, TITLE_WIDTH), group.title) for number, group in enumerate(self.groups)]
        for names in (self.class_names or [], self.human_names or []):
            named += [(label(number, name), name) for number, name in enumerate(names)]
        return {cut: name for cut, name in named if cut != name}

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
    try:
        return Hierarchy(run.settings["psi"])
    except (KeyError, TypeError, ValueError):
        return None


def label_record(record: Mapping[str, Any], hierarchy: Hierarchy) -> dict[str, Any] | None:
    """Returns what an epoch has recorded to judge its labels by; None if their use was not, or for other classes."""
    use = record.get("use")
    if not isinstance(use, Sequence) or len(use) != hierarchy.num_auxiliary:
        return None
    if not all(isinstance(count, Real) for count in use):
        return None
    relative, per_class = (record.get(f"relative_label_entropy{part}") for part in ("", "_per_class"))
    found: dict[str, Any] = {"use": list(use)}
    if isinstance(relative, Real):
        found["relative_label_entropy"] = relative
    if isinstance(per_class, Sequence) and all(one is None or isinstance(one, Real) for one in per_class):
        found["relative_label_entropy_per_class"] = per_class if len(per_class) == len(hierarchy) else None
    return found


def record_of(samples: Samples) -> dict[str, Any]:
    """Returns ``use`` and the relative entropies of these samples' labels, as an epoch of :func:`fit` has them."""
    use = np.bincount(samples.assigned, minlength=samples.hierarchy.num_auxiliary).tolist()
    most = np.log(samples.hierarchy.psi)[samples.y]
    entropy = -(samples.labels * np.log(np.where(samples.labels > 0, samples.labels, 1))).sum(axis=1)
    split = most > 0
    if not split.any():
        return {"use": use}
    relative = np.divide(entropy, most, where=split, out=np.zeros_like(entropy, dtype=float))
    classes = [split & (samples.y == primary) for primary in range(len(samples.hierarchy))]
    per_class = [float(relative[own].mean()) if own.any() else None for own in classes]
    own = {"relative_label_entropy": float(relative[split].mean()), "relative_label_entropy_per_class": per_class}
    return {"use": use, **own}


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


def chance_agreement(samples: Samples, seed: int) -> dict[str, float]:
    """Returns the mean :func:`agreement_of` with human labels that were shuffled inside each primary class.

    It is what labels that know nothing but the primary class would have, more than 0 as samples are few.
    """
    known = np.flatnonzero(samples.human >= 0)
    draw = np.random.default_rng(seed)
    places = known[np.argsort(samples.y[known], kind="stable")]
    found = []
    for _ in range(TIMES):
        human = samples.human.copy()
        human[places] = samples.human[known[np.lexsort((draw.random(len(known)), samples.y[known]))]]
        found.append(agreement_of(replace(samples, human=human)))
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}
