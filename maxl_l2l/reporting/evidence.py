"""Evidence: what a report rests on: runs, samples, and the names of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..labels import Hierarchy
from ..metrics import agreement
from ..training import History
from .comparison import Group, Measure, measure_of, partner
from .samples import Samples

WIDTH, TITLE_WIDTH = 22, 30
"""The most characters of a class's name, and of a title of runs, in a figure."""
GIVEN = ("SingleTask", "RandomLabels", "KMeansLabels", "HumanLabels")
"""Sources whose labels are not learned."""
TIMES = 10
"""How often human labels are shuffled to estimate their agreement by chance."""


def short(name: str, width: int, number: int | None = None) -> str:
    """Returns a name, cut if it is longer than a width; if cut, it begins with its number, if given, to stay distinct.

    Example:
        >>> short("large omnivores and herbivores", 16)
        'large omnivores…'
        >>> short("large omnivores and herbivores", 16, number=7)
        '7: large omnivo…'
    """
    whole = name if number is None else f"{number}: {name}"
    return name if len(name) <= width else f"{whole[: width - 1].rstrip()}…"


@dataclass(frozen=True)
class Evidence:
    """What is known of a comparison of runs, and of one learner.

    Attributes:
        groups: Runs by label source.
        samples: Labels and features that the learner gives some of its data, or the reason why there are none.
        class_names: Of primary classes; their numbers if None.
        human_names: Of human classes; their numbers if None.
        seed: Of what is drawn at random.
    """

    groups: list[Group]
    samples: Samples | str
    class_names: Sequence[str] | None = None
    human_names: Sequence[str] | None = None
    seed: int = 0

    @property
    def measure(self) -> Measure | None:
        """The measure that runs are compared by."""
        return measure_of(self.groups)

    @property
    def singles(self) -> list[Group]:
        """Runs without an auxiliary task."""
        return self._of_source("SingleTask")

    def single(self, group: Group) -> Group | None:
        """Returns the runs without an auxiliary task that a group is compared with."""
        return partner(group, self.singles)

    def entropy(self, group: Group) -> Group | None:
        """Returns the runs without a meta gradient that a group is compared with."""
        return partner(group, self._of_source("EntropyLabels"))

    @property
    def invented(self) -> list[Group]:
        """Runs whose labels the meta gradient has taught; all with auxiliary labels if there are none."""
        return self._of_source("GeneratedLabels") or [one for one in self.groups if one.source != "SingleTask"]

    def _of_source(self, source: str) -> list[Group]:
        return [group for group in self.groups if group.source == source]

    @property
    def learned(self) -> list[Group]:
        """Runs whose labels were learned in some way, those with a meta gradient first."""
        found = [group for group in self.groups if group.source not in GIVEN]
        return sorted(found, key=lambda group: group.source != "GeneratedLabels")

    def primary_label(self, primary: int) -> str:
        """Returns the name of a primary class in figures."""
        return short(self.primary_name(primary), WIDTH, primary)

    def human_label(self, human: int) -> str:
        """Returns the name of a human class in figures."""
        return str(human) if self.human_names is None else short(self.human_names[human], WIDTH, human)

    def cut_names(self) -> dict[str, str]:
        """Returns all names that are too long for figures, by their short form there."""
        titles, found = [group.title for group in self.groups], dict[str, str]()
        for names, width in ((titles, TITLE_WIDTH), (self.class_names, WIDTH), (self.human_names, WIDTH)):
            cut = {short(name, width, number): name for number, name in enumerate(names or []) if len(name) > width}
            found.update(cut)
        return found

    def primary_name(self, primary: int) -> str:
        """Returns the name of a primary class."""
        return f"class {primary}" if self.class_names is None else self.class_names[primary]

    def selection(self, chosen: Mapping[int, str], surest: str = "surest labels") -> str:
        """Returns a sentence that says which primary classes are shown, and why.

        Args:
            chosen: Reasons by class, from :func:`maps.chosen_classes`.
            surest: The words for the reason "surest labels".
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


def judged_runs(group: Group) -> list[tuple[History, Hierarchy, dict[str, Any]]]:
    """Returns a group's runs whose labels of the last epoch can be judged, with hierarchy and :func:`label_record`."""
    known = [(run, one) for run in group.runs if (one := hierarchy_of_run(run)) is not None]
    return [(run, one, record) for run, one in known if (record := label_record(run.epochs[-1], one))]


def label_record(record: Mapping[str, Any], hierarchy: Hierarchy) -> dict[str, Any] | None:
    """Returns the entries of an epoch's record that its labels are judged by; None if ``use`` does not fit psi."""
    use: Any = record.get("use")
    fits = isinstance(use, Sequence) and len(use) == hierarchy.num_auxiliary
    if not fits or not all(isinstance(count, Real) for count in use):
        return None
    found: dict[str, Any] = {"use": list(use)}
    if isinstance(relative := record.get("relative_label_entropy"), Real):
        found["relative_label_entropy"] = relative
    per_class: Any = record.get("relative_label_entropy_per_class")
    fits = isinstance(per_class, Sequence) and len(per_class) == len(hierarchy)
    if fits and all(one is None or isinstance(one, Real) for one in per_class):
        found["relative_label_entropy_per_class"] = per_class
    return found


def record_of(samples: Samples) -> dict[str, Any]:
    """Returns ``use`` and the relative entropies of these samples' labels, as :func:`fit` records them in an epoch."""
    use = samples.use.tolist()
    most = np.log(samples.hierarchy.psi)[samples.y]
    entropy = -(samples.labels * np.log(np.where(samples.labels > 0, samples.labels, 1))).sum(axis=1)
    split = most > 0
    if not split.any():
        return {"use": use}
    relative = np.divide(entropy, most, where=split, out=np.zeros_like(entropy, dtype=float))
    classes = [split & (samples.y == primary) for primary in range(len(samples.hierarchy))]
    per_class = [float(relative[own].mean()) if own.any() else None for own in classes]
    mean = float(relative[split].mean())
    return {"use": use, "relative_label_entropy": mean, "relative_label_entropy_per_class": per_class}


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
    found, columns = np.unique(human, return_inverse=True)
    counts = np.zeros((samples.hierarchy.num_auxiliary, len(found)), dtype=int)
    np.add.at(counts, (assigned, columns), 1)
    order = np.lexsort((found, [np.bincount(y[human == one]).argmax() for one in found]))
    return counts[:, order], found[order]


def agreement_of(samples: Samples) -> dict[str, float]:
    """Returns the agreement of sub-classes with human classes; nothing without human labels."""
    table = human_table(samples)
    return {} if table is None else agreement(torch.from_numpy(table[0]), samples.hierarchy)


def chance_agreement(samples: Samples, seed: int) -> dict[str, float]:
    """Returns the mean :func:`agreement_of` after human labels are shuffled inside each primary class.

    Labels that know only the primary class would have this agreement; with few samples it exceeds 0.
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
