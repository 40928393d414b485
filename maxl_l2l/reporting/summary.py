"""Summary: what runs and samples say, in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import some
from ..watch import Collapse, collapse_of
from .comparison import Estimate, Group, Measure
from .evidence import Evidence, agreement_of, hierarchy_of_run
from .samples import Samples

FEW = 5
"""Below so many pairs of runs a standard error is itself a guess."""


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
    unknown = "Can't be told"
    if measure is None:
        reason = "No histories were given." if not evidence.groups else "The histories have neither accuracy nor loss."
        return Answer(question, unknown, "open", [f"{reason} Pass what fit() returned as histories=."])
    if not measure.is_of_test:
        warning = f"No run had a test_loader: {measure.name}, all there is, says nothing about generalisation. "
        advice = "Give fit(..., test_loader=...) data that are not trained on."
        return Answer(question, unknown, "open", [warning + advice, *_reached(evidence, measure)])
    single = evidence.single
    others = [group for group in evidence.invented if group.estimate(measure.key)]
    if single is None or single.estimate(measure.key) is None:
        advice = "There are no single-task runs to compare with: add fit(..., source=SingleTask())."
        return Answer(question, unknown, "open", [advice, *_reached(evidence, measure)])
    if not others:
        return Answer(question, unknown, "open", ["All runs are single-task runs.", *_reached(evidence, measure)])
    gains = {group.title: group.gain(single, measure.key) for group in others}
    sentences = [*_reached(evidence, measure)]
    for title, gain in gains.items():
        if gain is None:
            sentences.append(
                f"No run of {title} can be paired with one of {single.title}: they have no seed in common."
            )
        else:
            sentences.append(_compared(title, single.title, gain, measure))
    first = next(iter(gains.values()))
    verdict, kind = (unknown, "open") if first is None else _verdict(first, measure)
    return Answer(question, verdict, kind, [*sentences, *_meta_gradient(evidence, measure)])


def _reached(evidence: Evidence, measure: Measure) -> list[str]:
    """What the groups in question reach."""
    groups = [*([evidence.single] if evidence.single else []), *evidence.invented]
    found = [(group, group.estimate(measure.key)) for group in groups]
    reached = [f"{group.title} {measure.text(one)}{_runs(one)}" for group, one in found if one is not None]
    sentences = [f"{measure.name.capitalize()} after the last epoch: {'; '.join(reached)}."]
    lengths = sorted({len(run) for group in evidence.groups for run in group.runs})
    lost = [
        f"{group.title} {len(group.runs) - len(one.values)}"
        for group, one in found
        if one and len(one.values) < len(group.runs)
    ]
    if lost:
        sentences.append(f"Runs without a finite value there are left out: {', '.join(lost)}.")
    if len(lengths) > 1:
        sentences.append(f"Beware: runs have between {lengths[0]} and {lengths[-1]} epochs, so they are not alike.")
    return sentences


def _runs(estimate: Estimate) -> str:
    return " (one run: its spread can't be told)" if estimate.error is None else f" ({len(estimate.values)} runs)"


def _compared(title: str, other: str, gain: Estimate, measure: Measure) -> str:
    text = measure.text(gain, signed=True)
    paired = f"{text} against {other}"
    if gain.error is None:
        return f"{title}: {paired} in the only pair of runs. A difference of one pair may be chance: train more seeds."
    few = f" With {len(gain.values)} pairs the error itself is uncertain." if len(gain.values) < FEW else ""
    return f"{title}: {paired}, {len(gain.values)} runs paired {gain.pairing}, {_size(gain)}.{few}"


def _size(gain: Estimate) -> str:
    error = gain.error or 0.0
    if abs(gain.mean) <= error:
        return "which is within its standard error"
    return "more than its standard error" + (", and more than twice that" if abs(gain.mean) > 2 * error else "")


def _verdict(gain: Estimate, measure: Measure) -> tuple[str, str]:
    if gain.error is None:
        return "Can't be told from one seed", "open"
    if abs(gain.mean) <= 2 * gain.error:
        return "Not beyond chance: less than two standard errors", "open"
    helped = gain.mean * measure.sign > 0
    if len(gain.values) < FEW:
        return f"It seems to have {'helped' if helped else 'hurt'}: only {len(gain.values)} pairs of runs", "open"
    return ("Yes", "good") if helped else ("No, it hurt", "bad")


def _meta_gradient(evidence: Evidence, measure: Measure) -> list[str]:
    """What the meta gradient earns: learned labels less those of the entropy term alone."""
    maxl = next((group for group in evidence.invented if group.source == "GeneratedLabels"), None)
    if maxl is None:
        return []
    gain = None if evidence.entropy is None else maxl.gain(evidence.entropy, measure.key)
    if evidence.entropy is None or gain is None:
        return ["What the meta gradient itself earns can't be told without runs of EntropyLabels()."]
    compared = f"{measure.text(gain, signed=True)} ({maxl.title} less {evidence.entropy.title}"
    if gain.error is None:
        return [f"The meta gradient itself earns {compared}), in one pair of runs, which may be chance."]
    return [f"The meta gradient itself earns {compared}, paired {gain.pairing}), {_size(gain)}."]


def _what_is_invented(evidence: Evidence) -> Answer:
    sentences, verdict = [], ""
    for group in evidence.invented:
        used, hierarchy = group.estimate("sub_classes"), hierarchy_of_run(group.runs[0])
        if used is not None:
            error = "" if used.error is None else f" ± {used.error:.1f}"
            size = "" if hierarchy is None else f" of {hierarchy.num_auxiliary}"
            verdict = verdict or f"{used.mean:.{int(used.error is not None)}f}{size} sub-classes in use"
            sentences.append(f"{group.title}: {used.mean:.1f}{error}{size} sub-classes in use in the last epoch.")
        agreed = {key: one for key in ("nmi_within", "nmi") if (one := group.estimate(key)) is not None}
        sentences += [f"{group.title}: {_agreed({key: one.mean for key, one in agreed.items()})}"] if agreed else []
    if isinstance(evidence.samples, Samples):
        used_here = sum(count > 0 for count in evidence.samples.record()["use"])
        verdict = verdict or f"{used_here} of {evidence.samples.hierarchy.num_auxiliary} sub-classes in use"
        sentences.append(_looked_at(evidence.samples, used_here))
        found = agreement_of(evidence.samples)
        sentences += [f"Among them, {_agreed(found)}"] if found else []
    if not sentences:
        return Answer("What are the invented classes?", "Can't be told", "open", [f"{evidence.samples}"])
    return Answer("What are the invented classes?", verdict or "See the figures", "open", sentences)


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


def _agreed(found: dict[str, float]) -> str:
    scale = "normalised mutual information, 0: not at all, 1: the same classes"
    if "nmi_within" not in found:
        return f"agreement with human classes is {found['nmi']:.2f} ({scale})."
    overall = f"; overall, where the primary class helps both, {found['nmi']:.2f}" if "nmi" in found else ""
    return f"agreement with human classes inside a primary class is {found['nmi_within']:.2f} ({scale}){overall}."


def _is_it_collapsing(evidence: Evidence) -> Answer:
    question, judged = "Is anything collapsing?", {}
    for group in evidence.invented:
        runs = [(run.epochs[-1], hierarchy_of_run(run)) for run in group.runs]
        known = [collapse_of(record, hierarchy) for record, hierarchy in runs if hierarchy and "use" in record]
        if known:
            judged[f"the last epoch of {len(known)} run{'s' * (len(known) > 1)} of {group.title}"] = known
    if isinstance(evidence.samples, Samples):
        samples = evidence.samples
        kind = "pixels" if samples.is_dense else "samples"
        found = collapse_of(samples.record(), samples.hierarchy)
        judged[f"{len(samples.y):,} {kind} of the learner looked at"] = [found]
    if not judged:
        advice = "Give fit(..., metrics=True), or pass maxl= and loader= here."
        return Answer(question, "Can't be told", "open", [f"Nothing was recorded of the labels. {advice}"])
    signs = [
        f"{where[0].upper()}{where[1:]}: {one}" for where, found in judged.items() for one in _signs(found, evidence)
    ]
    if not signs:
        rule = "No class keeps 99 % of its samples in one sub-class, and labels are not uniform (99 % of the entropy)."
        return Answer(question, "No", "good", [rule, f"Judged by {' and '.join(judged)}."])
    is_single = any(one.single for found in judged.values() for one in found)
    return Answer(question, "Yes" if is_single else "No, but labels are nearly uniform", "bad", signs)


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


def focus(evidence: Evidence) -> Group | None:
    """Returns the runs whose labels are shown over the epochs: the first that have recorded their use."""
    return next((group for group in [*evidence.invented, *evidence.groups] if any(group.last("use"))), None)
