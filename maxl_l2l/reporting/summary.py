"""Summary: the answers that runs and samples give, in plain sentences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import some
from ..metrics import Collapse, collapse_of
from .comparison import MEASURES, Estimate, Group, Measure, differing, pairs
from .evidence import GIVEN, Evidence, agreement_of, chance_agreement, hierarchy_of_run, judged_runs, record_of
from .samples import Samples

FEW = 5
"""Pairs of runs below which a verdict is left open."""
UNKNOWN = "Can't be told"
Verdict = tuple[str, str, list[str]]
"""An answer without its question."""


@dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Attributes:
        question: The question.
        verdict: The answer in a few words.
        kind: Whether it is "good", "bad" or "open".
        sentences: What it rests on.
    """

    question: str
    verdict: str
    kind: str
    sentences: list[str]


def answers(evidence: Evidence) -> list[Answer]:
    """Answers the questions that a reader has first."""
    return [
        Answer("Did it help?", *_did_it_help(evidence)),
        Answer("What are the invented classes?", *_what_is_invented(evidence)),
        Answer("Is anything collapsing?", *_is_it_collapsing(evidence)),
    ]


def _did_it_help(evidence: Evidence) -> Verdict:
    measure = evidence.measure
    if measure is None:
        return UNKNOWN, "open", [f"{_unmeasured(evidence)} Pass what fit() returned as histories=."]
    reached = _reached(evidence, measure)
    if not measure.is_of_test:
        warning = f"No run had a test_loader: {measure.name}, all there is, says nothing about generalisation. "
        return UNKNOWN, "open", [f"{warning}Give fit(..., test_loader=...) data that are not trained on.", *reached]
    if not evidence.invented:
        return UNKNOWN, "open", ["All runs are single-task runs.", *reached]
    if not evidence.singles:
        advice = "There are no single-task runs to compare with: add fit(..., source=SingleTask())."
        return UNKNOWN, "open", [advice, *reached]
    compared = {group.title: _compared(group, evidence.single(group), measure) for group in evidence.invented}
    sentences = [*reached, *(sentence for _, _, sentence in compared.values()), *_meta_gradient(evidence, measure)]
    return *_joint({title: (verdict, kind) for title, (verdict, kind, _) in compared.items()}), sentences


def _unmeasured(evidence: Evidence) -> str:
    """The reason why there is no measure to compare runs by."""
    if not evidence.groups:
        return "No histories were given."
    if any(group.diverged(measure.key) for group in evidence.groups for measure in MEASURES):
        return "All runs diverged: what they have recorded in the last epoch is not finite."
    return "The histories have neither accuracy nor loss."


def _joint(verdicts: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """One verdict and its kind for all groups, from those of each by its title."""
    different = set(verdicts.values())
    if len(different) > 1:
        return f"It depends. {'; '.join(f'{title}: {verdict}' for title, (verdict, _) in verdicts.items())}", "open"
    verdict, kind = different.pop()
    return (f"{verdict} ({'; '.join(verdicts)})" if len(verdicts) > 1 else verdict), kind


def _reached(evidence: Evidence, measure: Measure) -> list[str]:
    """What single-task runs and those compared with them reach, and which of their runs have no value."""
    reached, rest = [], []
    for group in (*evidence.singles, *evidence.invented):
        one, total, diverged = group.estimate(measure.key), len(group.runs), group.diverged(measure.key)
        if one is not None:
            runs = "one run: its spread can't be told" if one.error is None else f"{len(one.values)} runs"
            reached.append(f"{group.title} {measure.text(one)} ({runs})")
        if diverged:
            rest.append(f"{diverged} of {total} runs of {group.title} diverged: no finite {measure.name}.")
        if unmeasured := total - diverged - (0 if one is None else len(one.values)):
            why = " Give each fit(...) the test_loader." if measure.is_of_test else ""
            rest.append(f"{unmeasured} of {total} runs of {group.title} have not recorded {measure.name}.{why}")
    lengths = sorted({len(run) for group in evidence.groups for run in group.runs})
    if len(lengths) > 1:
        rest.append(f"Beware: runs have between {lengths[0]} and {lengths[-1]} epochs, so they are not alike.")
    return [f"{measure.name.capitalize()} after the last epoch: {'; '.join(reached)}."] * bool(reached) + rest


def _compared(group: Group, single: Group | None, measure: Measure) -> tuple[str, str, str]:
    """The verdict on what a group gains, its kind, and a sentence with the numbers."""
    if single is None:
        return UNKNOWN, "open", f"{group.title}: there are no single-task runs with these settings."
    gain, (found, pairing) = group.gain(single, measure.key), pairs(group, single)
    diverged, total = max((one.diverged(measure.key), len(one.runs)) for one in (group, single))
    verdict, kind = (f"Open: {diverged} of {total} runs diverged", "open") if diverged else _verdict(gain, measure)
    if gain is None:
        reason = "of no pair both runs have a finite value" if found else pairing
        return verdict, kind, f"No run of {group.title} can be paired with one of {single.title}: {reason}."
    sentence = f"{group.title}: {measure.text(gain, signed=True)} against {single.title}"
    if gain.interval is None:
        advice = "A difference of one pair may be chance: train more seeds."
        return verdict, kind, f"{sentence} in the only pair of runs. {advice}"
    alone = max(len(group.runs), len(single.runs)) - len(found)
    rest = (f" Runs without a counterpart: {alone}." if alone else "") + _confounded(group, single)
    size = f"{len(gain.values)} runs paired {gain.pairing}, {_size(gain.interval, measure)}"
    return verdict, kind, f"{sentence}, {size}.{rest}"


def _size(interval: tuple[float, float], measure: Measure) -> str:
    low, high = (measure.number(value, signed=True) for value in interval)
    return f"95 % interval {low} to {high}, {'with' if interval[0] <= 0 <= interval[1] else 'without'} 0"


def _verdict(gain: Estimate | None, measure: Measure) -> tuple[str, str]:
    if gain is None or gain.interval is None:
        return UNKNOWN if gain is None else "Can't be told from one seed", "open"
    if gain.interval[0] <= 0 <= gain.interval[1]:
        return "Not beyond chance: 0 lies in the 95 % interval", "open"
    helped = gain.mean * measure.sign > 0
    if len(gain.values) < FEW:
        return f"It seems to have {'helped' if helped else 'hurt'}: only {len(gain.values)} pairs of runs", "open"
    return ("Yes", "good") if helped else ("No, it hurt", "bad")


def _meta_gradient(evidence: Evidence, measure: Measure) -> list[str]:
    """What the meta gradient earns: results with it less those with the entropy term alone."""
    sentences = []
    for maxl in (group for group in evidence.invented if group.source == "GeneratedLabels"):
        entropy = evidence.entropy(maxl)
        gain = maxl.gain(entropy, measure.key)
        if entropy is None or gain is None:
            sentences.append("What the meta gradient itself earns can't be told without runs of EntropyLabels().")
            continue
        compared = f"{measure.text(gain, signed=True)} ({maxl.title} less {entropy.title}"
        size = "in one pair of runs, which may be chance"
        if gain.interval is not None:
            compared += f", paired {gain.pairing}"
            size = _size(gain.interval, measure)
        sentences.append(f"The meta gradient itself earns {compared}), {size}.{_confounded(maxl, entropy)}")
    return list(dict.fromkeys(sentences))


def _confounded(group: Group, other: Group) -> str:
    """A warning that names the settings in which two groups differ; empty if there are none."""
    names = differing([*group.runs, *other.runs])
    return f" Beware: their settings differ in {some(names)} too." if names else ""


def _what_is_invented(evidence: Evidence) -> Verdict:
    sentences, verdict, groups = [], "", evidence.learned
    for group in groups:
        used, hierarchy = group.estimate("sub_classes"), hierarchy_of_run(group.runs[0])
        if used is not None:
            error = "" if used.error is None else f" ± {used.error:.1f}"
            size = "" if hierarchy is None else f" of {hierarchy.num_auxiliary}"
            whose = f" ({group.title})" if len(groups) > 1 else ""
            verdict = verdict or f"{used.mean:.{int(used.error is not None)}f}{size} sub-classes in use{whose}"
            sentences.append(f"{group.title}: {used.mean:.1f}{error}{size} sub-classes in use in the last epoch.")
        agreed = {key: one.mean for key in ("nmi_within", "nmi") if (one := group.estimate(key)) is not None}
        sentences += [f"{group.title}: {_agreed(agreed, {})}"] if agreed else []
    if isinstance(evidence.samples, Samples):
        used_here = int((evidence.samples.use > 0).sum())
        verdict = verdict or f"{used_here} of {evidence.samples.hierarchy.num_auxiliary} sub-classes in use"
        sentences.append(_looked_at(evidence.samples, used_here))
        if found := agreement_of(evidence.samples):
            sentences.append(f"Among them, {_agreed(found, chance_agreement(evidence.samples, evidence.seed))}")
    if not sentences:
        return UNKNOWN, "open", [f"{evidence.samples}"]
    return verdict or "See the figures", "open", sentences


def _looked_at(samples: Samples, used: int) -> str:
    size, total = f"{len(samples.y):,} {samples.kind}", samples.hierarchy.num_auxiliary
    where = ", the first of the data" if samples.are_first else ""
    confidence = samples.labels.max(axis=1).mean()
    uniform = (1 / np.array(samples.hierarchy.psi))[samples.y].mean()
    return (
        f"In the learner looked at, {used} of {total} sub-classes are the most probable label of some of {size}"
        f"{where}; that label has a probability of {confidence:.2f} on average (uniform: {uniform:.2f})."
    )


def _agreed(found: Mapping[str, float], chance: Mapping[str, float]) -> str:
    """The agreement of invented with human classes, and what it would be by chance, if known."""
    first, *rest = [key for key in ("nmi_within", "nmi") if key in found]
    by_chance = {key: f", by chance {chance[key]:.2f}" if key in chance else "" for key in found}
    where = " inside a primary class" if first == "nmi_within" else ""
    overall = f"; overall, where the primary class helps both, {found['nmi']:.2f}{by_chance['nmi']}" if rest else ""
    scale = "normalised mutual information, 1: the same classes"
    few = "" if chance else "; with few samples chance alone gives more than 0"
    value = f"{found[first]:.2f}{by_chance[first]}"
    return f"agreement with human classes{where} is {value} ({scale}{few}){overall}."


def _is_it_collapsing(evidence: Evidence) -> Verdict:
    judged, broken, samples = dict[str, list[Collapse]](), list[str](), evidence.samples
    for group in (group for group in evidence.invented if group.source not in GIVEN):
        runs = [(record, hierarchy) for _, hierarchy, record in judged_runs(group)]
        known = [pair for pair in runs if math.isfinite(pair[0].get("relative_label_entropy", 0))]
        if lost := len(runs) - len(known):
            broken.append(f"In the last epoch of {lost} of {len(runs)} runs of {group.title} labels are not finite.")
        if known:
            where = f"the last epoch of {len(known)} run{'s' * (len(known) > 1)} of {group.title}"
            judged[where] = [collapse_of(*pair) for pair in known]
    if isinstance(samples, Samples):
        where = f"{len(samples.y):,} {samples.kind} of the learner looked at"
        judged[where] = [collapse_of(record_of(samples), samples.hierarchy)]
        if samples.dropped:
            broken.append(f"Labels of {samples.dropped:,} {samples.kind} are not finite; these are left out.")
    if not judged:
        return UNKNOWN, "open", broken or _unjudged(evidence)
    signs = [
        f"{where[0].upper()}{where[1:]}: {one}" for where, found in judged.items() for one in _signs(found, evidence)
    ]
    if signs:
        is_single = any(one.single for found in judged.values() for one in found)
        return "Yes" if is_single else "No, but labels are nearly uniform", "bad", [*signs, *broken]
    rule = "No class keeps 99 % of its samples in one sub-class, and labels are not uniform (99 % of the entropy)."
    sentences = [*broken, rule, f"Judged by {' and '.join(judged)}."]
    return ("Can't be told: some labels are not finite", "open", sentences) if broken else ("No", "good", sentences)


def _unjudged(evidence: Evidence) -> list[str]:
    """The reason why labels can't be judged."""
    advice = "Give fit(..., metrics=True), or pass maxl= and loader= here."
    if any(group.source not in GIVEN and any(group.last("use")) for group in evidence.invented):
        reason = "The use of sub-classes was recorded, but no settings with a psi that fits it."
    else:
        reason = "Nothing was recorded of learned labels."
    return [f"{reason} {advice}", *([f"As to the learner: {evidence.samples}"] if evidence.samples else [])]


def _signs(found: Sequence[Collapse], evidence: Evidence) -> list[str]:
    """What is wrong with the labels of several runs, a sentence each."""
    signs, single = [], Counter(primary for one in found for primary in one.single)
    if single:
        names = [evidence.primary_name(primary) + _part(times, found) for primary, times in single.most_common()]
        signs.append(f"at least 99 % of the samples of {some(names)} lie in one sub-class.")
    uniform = sum(one.uniform for one in found)
    if uniform:
        share = "at least 99 % of the largest entropy"
        signs.append(f"labels are nearly uniform{_part(uniform, found)}, {share}, and say hardly more than the class.")
    return signs


def _part(times: int, found: Sequence[Collapse]) -> str:
    return f" (in {times} of {len(found)})" if len(found) > 1 else ""
