"""Summary: what runs and samples say, in plain sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import some
from ..metrics import Collapse, collapse_of
from .comparison import MEASURES, Estimate, Group, Measure, differing, pairs
from .evidence import GIVEN, Evidence, agreement_of, chance_agreement, hierarchy_of_run, label_record, record_of
from .samples import Samples

FEW = 5
"""Pairs of runs below which a verdict is left open."""
UNKNOWN = "Can't be told"


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
    """Answers what a reader wants to know first."""
    return [_did_it_help(evidence), _what_is_invented(evidence), _is_it_collapsing(evidence)]


def _did_it_help(evidence: Evidence) -> Answer:
    question, measure = "Did it help?", evidence.measure
    if measure is None:
        return Answer(question, UNKNOWN, "open", [f"{_unmeasured(evidence)} Pass what fit() returned as histories=."])
    if not measure.is_of_test:
        warning = f"No run had a test_loader: {measure.name}, all there is, says nothing about generalisation. "
        advice = "Give fit(..., test_loader=...) data that are not trained on."
        return Answer(question, UNKNOWN, "open", [warning + advice, *_reached(evidence, measure)])
    if not evidence.invented:
        return Answer(question, UNKNOWN, "open", ["All runs are single-task runs.", *_reached(evidence, measure)])
    if not evidence.singles:
        advice = "There are no single-task runs to compare with: add fit(..., source=SingleTask())."
        return Answer(question, UNKNOWN, "open", [advice, *_reached(evidence, measure)])
    compared = [_compared(group, evidence.single(group), measure) for group in evidence.invented]
    sentences = [*_reached(evidence, measure), *(sentence for sentence, _, _ in compared)]
    verdicts = {group.title: (verdict, kind) for group, (_, verdict, kind) in zip(evidence.invented, compared)}
    return Answer(question, *_joint(verdicts), [*sentences, *_meta_gradient(evidence, measure)])


def _unmeasured(evidence: Evidence) -> str:
    """Why there is nothing to compare runs by."""
    if not evidence.groups:
        return "No histories were given."
    if any(group.diverged(measure.key) for group in evidence.groups for measure in MEASURES):
        return "All runs diverged: what they have recorded in the last epoch is not finite."
    return "The histories have neither accuracy nor loss."


def _joint(verdicts: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """One verdict on all groups: the same of each, or what it depends on."""
    different = set(verdicts.values())
    if len(different) > 1:
        return f"It depends. {'; '.join(f'{title}: {verdict}' for title, (verdict, _) in verdicts.items())}", "open"
    verdict, kind = different.pop()
    return (f"{verdict} ({'; '.join(verdicts)})" if len(verdicts) > 1 else verdict), kind


def _reached(evidence: Evidence, measure: Measure) -> list[str]:
    """What the groups in question reach, and which of their runs are not in it."""
    groups = [*evidence.singles, *evidence.invented]
    found = [(group, group.estimate(measure.key)) for group in groups]
    reached = [f"{group.title} {measure.text(one)}{_runs(one)}" for group, one in found if one is not None]
    sentences = [f"{measure.name.capitalize()} after the last epoch: {'; '.join(reached)}."] if reached else []
    lengths = sorted({len(run) for group in evidence.groups for run in group.runs})
    for group, one in found:
        total, diverged = len(group.runs), group.diverged(measure.key)
        unmeasured = total - diverged - (0 if one is None else len(one.values))
        if diverged:
            sentences.append(f"{diverged} of {total} runs of {group.title} diverged: no finite {measure.name}.")
        if unmeasured:
            why = "Give each fit(...) the test_loader." if measure.is_of_test else ""
            sentences.append(
                f"{unmeasured} of {total} runs of {group.title} have not recorded {measure.name}. {why}".rstrip()
            )
    if len(lengths) > 1:
        sentences.append(f"Beware: runs have between {lengths[0]} and {lengths[-1]} epochs, so they are not alike.")
    return sentences


def _runs(estimate: Estimate) -> str:
    return " (one run: its spread can't be told)" if estimate.error is None else f" ({len(estimate.values)} runs)"


def _compared(group: Group, single: Group | None, measure: Measure) -> tuple[str, str, str]:
    """What a group gains, in a sentence, and the verdict on it with its kind."""
    if single is None:
        return f"{group.title}: there are no single-task runs with these settings.", UNKNOWN, "open"
    gain, (found, pairing) = group.gain(single, measure.key), pairs(group, single)
    diverged, total = max((one.diverged(measure.key), len(one.runs)) for one in (group, single))
    cap = f"Open: {diverged} of {total} runs diverged" if diverged else ""
    if gain is None:
        reason = "of no pair both runs have a finite value" if found else pairing
        sentence = f"No run of {group.title} can be paired with one of {single.title}: {reason}."
        return sentence, cap or UNKNOWN, "open"
    text = f"{group.title}: {measure.text(gain, signed=True)} against {single.title}"
    if gain.interval is None:
        advice = "A difference of one pair may be chance: train more seeds."
        return f"{text} in the only pair of runs. {advice}", cap or "Can't be told from one seed", "open"
    size, alone = len(gain.values), max(len(group.runs), len(single.runs)) - len(found)
    rest = (f" Runs without a counterpart: {alone}." if alone else "") + _confounded(group, single)
    verdict, kind = (cap, "open") if cap else _verdict(gain, gain.interval, measure)
    return f"{text}, {size} runs paired {gain.pairing}, {_size(gain.interval, measure)}.{rest}", verdict, kind


def _size(interval: tuple[float, float], measure: Measure) -> str:
    low, high = (measure.number(value, signed=True) for value in interval)
    return f"95 % interval {low} to {high}, {'with' if _holds_zero(interval) else 'without'} 0"


def _holds_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _verdict(gain: Estimate, interval: tuple[float, float], measure: Measure) -> tuple[str, str]:
    if _holds_zero(interval):
        return "Not beyond chance: 0 lies in the 95 % interval", "open"
    helped = gain.mean * measure.sign > 0
    if len(gain.values) < FEW:
        return f"It seems to have {'helped' if helped else 'hurt'}: only {len(gain.values)} pairs of runs", "open"
    return ("Yes", "good") if helped else ("No, it hurt", "bad")


def _meta_gradient(evidence: Evidence, measure: Measure) -> list[str]:
    """What the meta gradient earns: learned labels less those of the entropy term alone."""
    sentences = []
    for maxl in (group for group in evidence.invented if group.source == "GeneratedLabels"):
        entropy = evidence.entropy(maxl)
        gain = None if entropy is None else maxl.gain(entropy, measure.key)
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
    """A warning of what else two groups differ in."""
    names = differing([*group.runs, *other.runs])
    return f" Beware: their settings differ in {some(names)} too." if names else ""


def _what_is_invented(evidence: Evidence) -> Answer:
    question, sentences, verdict, groups = "What are the invented classes?", [], "", evidence.learned
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
        used_here = sum(count > 0 for count in record_of(evidence.samples)["use"])
        verdict = verdict or f"{used_here} of {evidence.samples.hierarchy.num_auxiliary} sub-classes in use"
        sentences.append(_looked_at(evidence.samples, used_here))
        found = agreement_of(evidence.samples)
        if found:
            sentences.append(f"Among them, {_agreed(found, chance_agreement(evidence.samples, evidence.seed))}")
    if not sentences:
        return Answer(question, UNKNOWN, "open", [f"{evidence.samples}"])
    return Answer(question, verdict or "See the figures", "open", sentences)


def _looked_at(samples: Samples, used: int) -> str:
    size, total = f"{len(samples.y):,}", samples.hierarchy.num_auxiliary
    kind = "pixels" if samples.is_dense else "samples"
    where = ", the first of the data" if samples.are_first else ""
    confidence = samples.labels.max(axis=1).mean()
    uniform = (1 / np.array(samples.hierarchy.psi))[samples.y].mean()
    return (
        f"In the learner looked at, {used} of {total} sub-classes are the most probable label of some of {size} {kind}"
        f"{where}; that label has a probability of {confidence:.2f} on average (uniform: {uniform:.2f})."
    )


def _agreed(found: Mapping[str, float], chance: Mapping[str, float]) -> str:
    """How far invented classes are human ones, and what that would be by chance, if known."""
    first, *rest = [key for key in ("nmi_within", "nmi") if key in found]
    by_chance = {key: f", by chance {chance[key]:.2f}" if key in chance else "" for key in found}
    where = " inside a primary class" if first == "nmi_within" else ""
    overall = f"; overall, where the primary class helps both, {found['nmi']:.2f}{by_chance['nmi']}" if rest else ""
    scale = "normalised mutual information, 1: the same classes"
    few = "" if chance else "; with few samples chance alone gives more than 0"
    value = f"{found[first]:.2f}{by_chance[first]}"
    return f"agreement with human classes{where} is {value} ({scale}{few}){overall}."


def _is_it_collapsing(evidence: Evidence) -> Answer:
    question, judged, broken = "Is anything collapsing?", dict[str, list[Collapse]](), list[str]()
    for group in (group for group in evidence.invented if group.source not in GIVEN):
        runs = [(run.epochs[-1], hierarchy) for run in group.runs if (hierarchy := hierarchy_of_run(run))]
        records = [(one, hierarchy) for record, hierarchy in runs if (one := label_record(record, hierarchy))]
        known = [pair for pair in records if math.isfinite(pair[0].get("relative_label_entropy", 0))]
        if len(known) < len(records):
            lost = len(records) - len(known)
            broken.append(f"In the last epoch of {lost} of {len(records)} runs of {group.title} labels are not finite.")
        if known:
            where = f"the last epoch of {len(known)} run{'s' * (len(known) > 1)} of {group.title}"
            judged[where] = [collapse_of(*pair) for pair in known]
    if isinstance(evidence.samples, Samples):
        samples = evidence.samples
        kind = "pixels" if samples.is_dense else "samples"
        found = collapse_of(record_of(samples), samples.hierarchy)
        judged[f"{len(samples.y):,} {kind} of the learner looked at"] = [found]
        if samples.dropped:
            broken.append(f"Labels of {samples.dropped:,} {kind} are not finite; these are left out.")
    if not judged:
        return Answer(question, UNKNOWN, "open", broken or _unjudged(evidence))
    signs = [
        f"{where[0].upper()}{where[1:]}: {one}" for where, found in judged.items() for one in _signs(found, evidence)
    ]
    if signs:
        is_single = any(one.single for found in judged.values() for one in found)
        return Answer(question, "Yes" if is_single else "No, but labels are nearly uniform", "bad", [*signs, *broken])
    rule = "No class keeps 99 % of its samples in one sub-class, and labels are not uniform (99 % of the entropy)."
    sentences = [*broken, rule, f"Judged by {' and '.join(judged)}."]
    return Answer(
        question,
        "Can't be told: some labels are not finite" if broken else "No",
        "open" if broken else "good",
        sentences,
    )


def _unjudged(evidence: Evidence) -> list[str]:
    """Why nothing can be said of labels."""
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
