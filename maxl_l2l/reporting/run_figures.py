"""Run figures: the figures of runs over their epochs, with their captions."""

import numpy as np

from .comparison import Measure
from .curves import label_curves, learning_curves, recorded
from .evidence import Evidence, hierarchy_of_run, judged_runs, label_record, short
from .maps import MOST, chosen_classes, rows_of, use_map
from .style import Drawn

ROWS = 100
"""Rows of the map of use, at most, for all classes to be shown."""


def learning(evidence: Evidence) -> Drawn | str:
    """Draws learning curves and gains."""
    measure = evidence.measure
    if measure is None:
        return "no histories with a finite accuracy or loss were given."
    reached = {group.title: one for group in evidence.groups if (one := group.estimate(measure.key))}
    missing = [group.title for group in evidence.groups if group.title not in reached]
    singles = [group for group in evidence.singles if group.title in reached]
    figure = learning_curves(evidence.groups, measure, singles, _learning_title(evidence, measure))
    ends = "; ".join(f"{title} {measure.text(one)}" for title, one in reached.items())
    left = "Left: the mean over seeds, with a band of one standard error. A single run has no band: it shows no spread."
    right = "Right: the last epoch. Gains are left out: there are no single-task runs (source=SingleTask())."
    if singles:
        gains = [group.gain(evidence.single(group), measure.key) for group in evidence.groups]
        pairings = " or ".join(dict.fromkeys(gain.pairing for gain in gains if gain is not None))
        paired = f", paired {pairings}" if pairings else ""
        right = f"Right: the last epoch's {measure.name} less that of single-task runs{paired}."
    caption = [left, right]
    if not measure.is_of_test:
        caption.append(f"No run had a test_loader: {measure.name} says nothing about generalisation.")
    if missing:
        caption.append(f"Not drawn, as they have recorded no finite {measure.name}: {', '.join(missing)}.")
    alt = f"{measure.name.capitalize()} of each label source. After the last epoch: {ends}."
    return figure, alt, " ".join(caption)


def _learning_title(evidence: Evidence, measure: Measure) -> str:
    found = [(group, one) for group in evidence.invented if (one := group.estimate(measure.key))]
    if not found:
        return f"{measure.name.capitalize()} of {len(evidence.groups)} label sources"
    group, reached = found[0]
    gain = group.gain(evidence.single(group), measure.key)
    over = "" if gain is None else f", {measure.text(gain, signed=True)} against single-task training"
    return f"{short(group.title, 40)}: {measure.text(reached)} {measure.name}{over}"


def labels(evidence: Evidence) -> Drawn | str:
    """Draws what runs have recorded of their auxiliary labels."""
    panels = recorded(evidence.groups)
    if not panels:
        return "no history has recorded anything of its labels. fit(..., metrics=True) does."
    hierarchy = hierarchy_of_run(evidence.invented[0].runs[0]) if evidence.invented else None
    figure = label_curves(evidence.groups, panels, hierarchy, "What the auxiliary labels are like, epoch by epoch")
    listed = ", ".join(panel.title for panel in panels)
    more = "" if any(panel.key == "label_entropy" for panel in panels) else " fit(..., metrics=True) records more."
    caption = (
        "Means over seeds, bands of one standard error. Entropies at the line of uniform labels say that labels tell "
        f"no more than the class; at 0 they are hard. Quantities that no run has recorded are left out.{more}"
    )
    return figure, f"Small curves over the epochs: {listed}.", caption


def use(evidence: Evidence) -> Drawn | str:
    """Draws how sub-classes were used in one run, of the first group that has recorded it."""
    group = next((one for one in [*evidence.invented, *evidence.groups] if any(one.last("use"))), None)
    if group is None:
        return "no history has recorded how often each sub-class is used. fit(..., metrics=True) does."
    known = judged_runs(group)
    if not known:
        return f"the settings of {group.title} have no psi that fits the recorded use of sub-classes."
    run, hierarchy, _ = known[0]
    counts = np.array([record["use"] for one in run.epochs if (record := label_record(one, hierarchy))])
    last = counts[-1]
    sizes = [sum(last[block.start : block.stop]) for block in map(hierarchy.block, range(len(hierarchy)))]
    share = [max(last[list(hierarchy.block(primary))]) / max(size, 1) for primary, size in enumerate(sizes)]
    shows_all = hierarchy.num_auxiliary <= ROWS
    chosen = dict.fromkeys(range(len(hierarchy)), "") if shows_all else chosen_classes(sizes, share)
    rows = rows_of(hierarchy, chosen, last, None if shows_all else MOST)
    seed = run.settings.get("seed")
    which = f"{short(group.title, 40)}{'' if seed is None else f', seed {seed}'}"
    used = f"{int((last > 0).sum())} of {hierarchy.num_auxiliary} sub-classes in use after the last epoch"
    figure = use_map(counts, hierarchy, rows, evidence.primary_label, f"{which}: {used}")
    caption = [
        "Each row is a sub-class, each block a primary class; the darker, the larger the share of the class's samples "
        "that have it as most probable label. One dark row in a block means collapse, unless labels are nearly uniform."
    ]
    if not shows_all:
        caption.append(f"{evidence.selection(chosen, 'most one-sided')} At most {MOST} a class.")
    return figure, f"Heat map of the use of sub-classes over the epochs. {which}: {used}.", " ".join(caption)
