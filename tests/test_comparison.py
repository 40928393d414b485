"""What a report says of runs: means, errors and paired gains by hand, and sentences that claim no more."""

import math

import numpy as np
import pytest

from maxl_l2l import Hierarchy, History
from maxl_l2l.reporting.comparison import MEASURES, Estimate, grouped, measure_of
from maxl_l2l.reporting.evidence import Evidence, agreement_of, human_table
from maxl_l2l.reporting.samples import Samples
from maxl_l2l.reporting.summary import answers


def run(source, seed, *values, key="test_accuracy", **settings):
    """A run with one value an epoch; a value may be a whole record."""
    records = [value if isinstance(value, dict) else {key: value} for value in values]
    return History({"source": source, "seed": seed, **settings}, records)


def answered(histories, samples="no learner was given to look at."):
    return answers(Evidence(grouped(histories), samples))


def said(answer):
    return " ".join([answer.verdict, *answer.sentences])


SINGLE = [run("SingleTask", seed, value) for seed, value in enumerate((0.90, 0.92, 0.94))]
MAXL = [run("GeneratedLabels", seed, value) for seed, value in enumerate((0.92, 0.93, 0.96))]
ENTROPY = [run("EntropyLabels", seed, value) for seed, value in enumerate((0.92, 0.92, 0.97))]


def test_estimate_has_mean_and_standard_error_by_hand():
    # Deviations -1, -1, 2 from 3: variance 6 / 2 = 3, divided by 3 runs.
    estimate = Estimate((2.0, 2.0, 5.0))
    assert estimate.mean == 3
    assert estimate.error == pytest.approx(1)
    assert Estimate((2.0,)).error is None


@pytest.mark.parametrize(
    ("key", "values", "signed", "text"),
    [
        ("test_accuracy", (0.94, 0.96), False, "95.00 ± 1.00 %"),
        ("test_accuracy", (0.01,), True, "+1.00 pp"),
        ("test_loss", (0.5, 0.7), False, "0.6000 ± 0.1000"),
        ("test_loss", (-0.25,), True, "-0.2500"),
    ],
)
def test_measures_write_values_and_differences_with_units(key, values, signed, text):
    measure = next(measure for measure in MEASURES if measure.key == key)
    assert measure.text(Estimate(values), signed) == text


def test_gain_is_paired_by_seed_whatever_the_order():
    maxl, single = grouped([*reversed(MAXL), *SINGLE])
    gain = maxl.gain(single, "test_accuracy")
    assert sorted(gain.values) == pytest.approx([0.01, 0.02, 0.02])
    assert gain.mean == pytest.approx(0.05 / 3)
    assert gain.error == pytest.approx(0.01 / 3)
    assert gain.pairing == "by seed"


def test_gain_leaves_out_seeds_that_one_group_lacks():
    maxl, single = grouped([*MAXL[1:], *SINGLE[:2]])
    assert maxl.gain(single, "test_accuracy").values == pytest.approx([0.01])


def test_gain_without_seeds_is_paired_in_the_order_given():
    single, maxl = grouped([run("SingleTask", None, 0.5), run("GeneratedLabels", None, 0.75)])
    gain = maxl.gain(single, "test_accuracy")
    assert gain.values == pytest.approx([0.25])
    assert gain.pairing == "in the order given"


def test_gain_without_a_common_seed_or_value_is_none():
    maxl, single = grouped([MAXL[0], SINGLE[1]])
    assert maxl.gain(single, "test_accuracy") is None
    assert grouped(MAXL)[0].gain(grouped(SINGLE)[0], "nmi") is None


def test_histories_are_told_apart_by_source_or_title():
    assert [group.title for group in grouped([*SINGLE, *MAXL])] == ["Single task", "MAXL"]
    assert [len(group.runs) for group in grouped([*SINGLE, *MAXL])] == [3, 3]
    assert [group.title for group in grouped({"a": MAXL, "b": MAXL[0]})] == ["a", "b"]
    assert [group.title for group in grouped(History({}, [{"accuracy": 1}]))] == ["Runs"]
    assert [group.title for group in grouped(run("MyLabels", 0, 0.5))] == ["MyLabels"]
    assert grouped(None) == []


def test_runs_without_an_epoch_are_left_out():
    assert grouped([run("SingleTask", 0), run("GeneratedLabels", 0, 0.5)])[0].title == "MAXL"
    assert grouped({"MAXL": run("GeneratedLabels", 0)}) == []


@pytest.mark.parametrize(
    ("histories", "error", "message"),
    [
        (3, TypeError, "`histories` must hold instances of History, found int. Pass what fit"),
        ("runs.json", TypeError, "`histories` must hold instances of History, found str. Pass what fit"),
        ([1], TypeError, "`histories` must be an instance of History, found int. Pass what fit"),
        ({"MAXL": 3}, TypeError, "`histories` must hold instances of History, found int. Pass what fit"),
        ({"MAXL": []}, ValueError, "`histories` must have a history for each title, found none for 'MAXL'. Write"),
    ],
)
def test_wrong_histories_raise(histories, error, message):
    with pytest.raises(error, match=message):
        grouped(histories)


def test_curves_have_nan_where_nothing_was_recorded():
    group = grouped([run("SingleTask", 0, 0.5, {"accuracy": 1}, 0.75), run("SingleTask", 1, 0.25)])[0]
    np.testing.assert_equal(group.curves("test_accuracy"), [[0.5, np.nan, 0.75], [0.25, np.nan, np.nan]])


def test_values_that_are_not_finite_are_left_out_and_told():
    diverged = [run("GeneratedLabels", seed, 0.5, value) for seed, value in enumerate((math.nan, 0.93, 0.96))]
    single, maxl = groups = grouped([*SINGLE, *diverged])
    np.testing.assert_equal(maxl.curves("test_accuracy")[0], [0.5, np.nan])
    assert maxl.estimate("test_accuracy").values == (0.93, 0.96)
    assert maxl.gain(single, "test_accuracy").values == pytest.approx([0.01, 0.02])
    assert "Runs without a finite value there are left out: MAXL 1." in said(answers(Evidence(groups, ""))[0])


def test_the_most_telling_measure_is_taken():
    record = {"primary_loss": 1.0, "accuracy": 0.5, "test_loss": 1.0, "test_accuracy": 0.5}
    for key in ("test_accuracy", "test_loss", "accuracy", "primary_loss"):
        assert measure_of(grouped(run("SingleTask", 0, record))).key == key
        del record[key]
    assert measure_of(grouped(run("SingleTask", 0, {"epoch": 1}))) is None


def test_summary_tells_gain_error_and_what_the_meta_gradient_earns():
    answer = answered([*SINGLE, *MAXL, *ENTROPY])[0]
    assert answer.verdict == "It seems to have helped: only 3 pairs of runs"
    assert answer.kind == "open"
    text = said(answer)
    assert "Single task 92.00 ± 1.15 % (3 runs); MAXL 93.67 ± 1.20 % (3 runs)" in text
    assert "MAXL: +1.67 ± 0.33 pp against Single task, 3 runs paired by seed, more than its standard error" in text
    assert "and more than twice that. With 3 pairs the error itself is uncertain." in text
    # Differences 0, 1 and -1 points.
    assert "earns +0.00 ± 0.58 pp (MAXL less Entropy term alone, paired by seed), which is within its" in text


@pytest.mark.parametrize(
    ("values", "verdict", "kind", "words"),
    [
        ((0.88, 0.91, 0.92), "It seems to have hurt: only 3 pairs of runs", "open", "-1.67 ± 0.33 pp"),
        (
            (0.91, 0.91, 0.94),
            "Not beyond chance: less than two standard errors",
            "open",
            "which is within its standard",
        ),
        ((0.92, 0.92, 0.95), "Not beyond chance: less than two standard errors", "open", "than its standard error."),
    ],
)
def test_summary_claims_no_more_than_the_error_allows(values, verdict, kind, words):
    maxl = [run("GeneratedLabels", seed, value) for seed, value in enumerate(values)]
    answer = answered([*SINGLE, *maxl])[0]
    assert (answer.verdict, answer.kind) == (verdict, kind)
    assert words in said(answer)
    assert "can't be told without runs of EntropyLabels()" in said(answer)


@pytest.mark.parametrize(("sign", "verdict", "kind"), [(1, "Yes", "good"), (-1, "No, it hurt", "bad")])
def test_five_pairs_and_two_standard_errors_are_an_answer(sign, verdict, kind):
    runs = [run("SingleTask", seed, 0.5) for seed in range(5)]
    runs += [run("GeneratedLabels", seed, 0.5 + sign * (0.1 + seed / 100)) for seed in range(5)]
    answer = answered(runs)[0]
    assert (answer.verdict, answer.kind) == (verdict, kind)
    assert "uncertain" not in said(answer)


def test_a_lower_loss_helps():
    runs = [run(source, seed, loss + seed / 100, key="test_loss") for source, loss in
            (("SingleTask", 0.5), ("GeneratedLabels", 0.4)) for seed in (0, 1)]  # fmt: skip
    runs[-1].epochs[-1]["test_loss"] += 0.001
    assert answered(runs)[0].verdict == "It seems to have helped: only 2 pairs of runs"


@pytest.mark.parametrize(
    ("histories", "words"),
    [
        (None, "No histories were given"),
        (run("SingleTask", 0, {"epoch": 1}), "The histories have neither accuracy nor loss"),
        (
            run("GeneratedLabels", 0, 0.5, key="accuracy"),
            "No run had a test_loader: accuracy in training, all",
        ),
        (MAXL, "There are no single-task runs to compare with: add fit(..., source=SingleTask())"),
        (SINGLE, "All runs are single-task runs"),
        ([SINGLE[0], MAXL[1]], "No run of MAXL can be paired with one of Single task: they have no seed in common"),
    ],
)
def test_summary_says_when_help_cannot_be_told_and_why(histories, words):
    answer = answered(histories)[0]
    assert answer.verdict == "Can't be told"
    assert answer.kind == "open"
    assert words in said(answer)


def test_one_seed_tells_nothing_of_the_error():
    answer = answered([SINGLE[0], MAXL[0], ENTROPY[0]])[0]
    assert answer.verdict == "Can't be told from one seed"
    assert "MAXL 92.00 % (one run: its spread can't be told)" in said(answer)
    assert "+2.00 pp against Single task in the only pair of runs" in said(answer)
    assert "+0.00 pp (MAXL less Entropy term alone), in one pair of runs, which may be chance" in said(answer)


def test_runs_of_different_lengths_are_told():
    assert "runs have between 1 and 2 epochs" in said(answered([SINGLE[0], run("GeneratedLabels", 0, 0.5, 0.6)])[0])


def test_without_learned_labels_the_other_sources_are_compared():
    answer = answered([*SINGLE, *(run("RandomLabels", seed, 0.5 + seed / 50) for seed in range(3))])[0]
    assert answer.verdict == "It seems to have hurt: only 3 pairs of runs"
    assert "EntropyLabels" not in said(answer)


def with_labels(use, relative, **more):
    return {"use": use, "relative_label_entropy": relative, "sub_classes": sum(n > 0 for n in use), **more}


def test_summary_tells_collapse_and_uniform_labels_from_the_last_epoch():
    runs = [
        run("GeneratedLabels", 0, with_labels([100, 0, 50, 50], 0.3), with_labels([50, 50, 99, 1], 0.3), psi=[2, 2]),
        run("GeneratedLabels", 1, with_labels([50, 50, 60, 40], 0.995), psi=[2, 2]),
    ]
    answer = answered(runs)[2]
    assert answer.verdict == "Yes"
    assert answer.sentences == [
        "The last epoch of 2 runs of MAXL: at least 99 % of the samples of class 1 (in 1 of 2) lie in one sub-class.",
        "The last epoch of 2 runs of MAXL: labels are nearly uniform (in 1 of 2), at least 99 % of the largest "
        "entropy, and say hardly more than the class.",
    ]


def test_summary_says_that_nothing_collapses_and_what_that_rests_on():
    runs = run("GeneratedLabels", None, with_labels([50, 50, 98, 2], 0.98, nmi=0.5, nmi_within=0.25), psi=[2, 2])
    found = answered(runs)
    assert found[2].verdict == "No"
    assert found[2].sentences[-1] == "Judged by the last epoch of 1 run of MAXL."
    assert found[1].verdict == "4 of 4 sub-classes in use"
    assert "human classes inside a primary class is 0.25" in said(found[1])
    assert "overall, where the primary class helps both, 0.50" in said(found[1])


def test_uniform_labels_alone_are_no_collapse_but_are_told():
    answer = answered([run("GeneratedLabels", seed, with_labels([50, 50], 0.995), psi=[2]) for seed in range(10)])[2]
    assert answer.verdict == "No, but labels are nearly uniform"
    assert answer.kind == "bad"
    assert "The last epoch of 10 runs of MAXL: labels are nearly uniform (in 10 of 10)" in said(answer)


def test_summary_says_what_is_missing_to_judge_labels():
    found = answered(MAXL)
    assert found[1].verdict == found[2].verdict == "Can't be told"
    assert "Give fit(..., metrics=True), or pass maxl= and loader= here." in said(found[2])
    assert "no learner was given to look at." in said(found[1])


def looked_at(human=None, times=1):
    # Six samples, so many times; class 0 has sub-classes 0 and 1, class 1 has 2 and 3, of which 3 is never used.
    labels = np.array([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0], [0.6, 0.4, 0, 0], *[[0, 0, 0.7, 0.3]] * 3])
    given = {"features": None, "images": None, "is_dense": False, "are_first": True}
    y = np.tile([0, 0, 0, 1, 1, 1], times)
    return Samples(Hierarchy([2, 2]), y, np.tile(labels, (times, 1)), human, **given)


def test_summary_of_samples_tells_use_and_collapse():
    found = answered(None, looked_at(times=10))
    assert found[1].verdict == "3 of 4 sub-classes in use"
    assert "3 of 4 sub-classes are the most probable label of some of 60 samples, the first of the data" in said(
        found[1]
    )
    assert "a probability of 0.73 on average (uniform: 0.50)" in said(found[1])
    assert found[2].verdict == "Yes"
    words = "60 samples of the learner looked at: at least 99 % of the samples of class 1 lie in one sub-class."
    assert words in said(found[2])


def test_human_classes_are_counted_in_the_order_of_their_primary_classes():
    # Human class 7 belongs to primary class 0, and 2 to primary class 1; one sample has none.
    samples = looked_at(np.array([7, 9, 7, 2, 2, -1]))
    counts, order = human_table(samples)
    assert order.tolist() == [7, 9, 2]
    assert counts.tolist() == [[2, 0, 0], [0, 1, 0], [0, 0, 2], [0, 0, 0]]
    found = agreement_of(samples)
    assert found["nmi"] == pytest.approx(1)
    assert found["nmi_within"] == pytest.approx(1)
    assert "agreement with human classes inside a primary class is 1.00" in said(answered(None, samples)[1])


def test_agreement_overall_is_told_where_no_class_has_several_human_classes():
    text = said(answered(None, looked_at(np.array([0, 0, 0, 1, 1, 1])))[1])
    expected = 2 * math.log(2) / (math.log(2) + (math.log(2) + (1 / 2) * (math.log(3) - (2 / 3) * math.log(2))))
    assert f"agreement with human classes is {expected:.2f} (" in text


@pytest.mark.parametrize("human", [None, np.full(6, -1)])
def test_no_human_labels_no_agreement(human):
    assert human_table(looked_at(human)) is None
    assert agreement_of(looked_at(human)) == {}
