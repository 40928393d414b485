"""What a report says of runs: means, errors and paired gains by hand, and sentences that claim no more."""

import math

import numpy as np
import pytest

from maxl_l2l import Hierarchy, History
from maxl_l2l.reporting.comparison import MEASURES, Estimate, grouped, measure_of
from maxl_l2l.reporting.evidence import Evidence, agreement_of, chance_agreement, human_table
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
        ("test_loss", (1e270,), False, "1e+270"),
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


def test_runs_of_one_source_are_split_by_their_settings_and_compared_with_those_of_the_same():
    runs = [run("SingleTask", seed, 0.5 + lr, lr=lr) for lr in (0.1, 0.01) for seed in (0, 1)]
    runs += [run("GeneratedLabels", seed, 0.6 + lr + seed / 1000, lr=lr, torch=f"{seed}") for lr in (0.01, 0.1)
             for seed in (0, 1)]  # fmt: skip
    evidence = Evidence(groups := grouped(runs), "")
    assert [group.title for group in groups] == [
        "Single task, lr 0.1", "Single task, lr 0.01", "MAXL, lr 0.01", "MAXL, lr 0.1",
    ]  # fmt: skip
    assert [evidence.single(group).title for group in groups[2:]] == ["Single task, lr 0.01", "Single task, lr 0.1"]
    for group in groups[2:]:
        assert group.gain(evidence.single(group), "test_accuracy").values == pytest.approx([0.1, 0.101])
    other = grouped(run("GeneratedLabels", 0, 0.6, lr=0.5))[0]
    assert evidence.single(other) is None
    assert "there are no single-task runs with these settings" in said(answers(Evidence([*groups[:2], other], ""))[0])


def test_runs_are_never_paired_by_place_if_a_seed_is_known_or_comes_twice():
    twice = {"Single task": SINGLE[:2], "MAXL": [MAXL[0], MAXL[0], run("GeneratedLabels", 0, 0.9)]}
    single, maxl = grouped(twice)
    assert maxl.gain(single, "test_accuracy") is None
    assert "No run of MAXL can be paired with one of Single task: seed 0 comes twice among" in said(answered(twice)[0])
    single, maxl = grouped([*SINGLE, *(run("GeneratedLabels", None, 0.9) for _ in range(3))])
    assert maxl.gain(single, "test_accuracy") is None


def test_interval_is_that_of_student():
    low, high = Estimate((2.0, 2.0, 5.0)).interval
    assert (low, high) == pytest.approx((3 - 4.303, 3 + 4.303))
    values = tuple(float(number % 2) for number in range(40))
    assert Estimate(values).interval[1] == pytest.approx(0.5 + 1.96 * math.sqrt(10 / 39 / 40))
    assert Estimate((1e270, 3e270)).error == pytest.approx(1e270)
    assert Estimate((1.0,)).interval is None


def test_two_standard_errors_of_five_pairs_are_no_answer():
    runs = [run("SingleTask", seed, 0.5) for seed in range(5)]
    # Mean 2.3 standard errors above 0; Student's t asks for 2.776.
    gains = (0.03, 0.01, 0.005, 0.0, 0.02)
    runs += [run("GeneratedLabels", seed, 0.5 + gain) for seed, gain in enumerate(gains)]
    assert 2 < (gain := Estimate(gains)).mean / gain.error < 2.776
    assert answered(runs)[0].verdict == "Not beyond chance: 0 lies in the 95 % interval"


def test_rounding_is_no_difference():
    runs = [run("SingleTask", seed, 0.8) for seed in range(6)]
    runs += [run("GeneratedLabels", seed, 0.7 + 0.1) for seed in range(6)]
    assert answered(runs)[0].verdict == "Not beyond chance: 0 lies in the 95 % interval"


def test_diverged_runs_and_runs_that_were_not_measured_are_told_apart():
    single = [run("SingleTask", seed, 0.5) for seed in range(6)]
    lost = answered([*single, *(run("GeneratedLabels", seed, math.nan) for seed in range(6))])[0]
    assert lost.verdict == "Open: 6 of 6 runs diverged"
    assert "All runs are single-task runs" not in said(lost)
    unmeasured = answered([*single, *(run("GeneratedLabels", seed, 0.9, key="accuracy") for seed in range(6))])[0]
    assert unmeasured.verdict == "Can't be told"
    assert "6 of 6 runs of MAXL have not recorded test accuracy. Give each fit(...) the test_loader" in said(unmeasured)
    values = [math.inf, math.nan, *[0.6 + seed / 100 for seed in range(5)]]
    some = answered([*single, *(run("GeneratedLabels", seed, value) for seed, value in enumerate(values))])[0]
    assert (some.verdict, some.kind) == ("Open: 2 of 7 runs diverged", "open")
    assert "All runs diverged" in said(answered(run("SingleTask", 0, math.nan))[0])


def test_other_settings_in_which_compared_runs_differ_are_told():
    runs = [run("SingleTask", seed, 0.5, lr=0.1) for seed in (0, 1)]
    runs += [run("EntropyLabels", seed, 0.6, lr=0.1) for seed in (0, 1)]
    same = [run("GeneratedLabels", seed, 0.7, lr=0.1) for seed in (0, 1)]
    assert "Beware" not in said(answered([*runs, *same])[0])
    others = [run("GeneratedLabels", seed, 0.7, lr=0.2) for seed in (0, 1)]
    assert said(answered([*runs, *others])[0]).count("Beware: their settings differ in lr too.") == 2


def test_several_groups_are_named_and_may_disagree():
    def learned(lr, gain):
        return [run("GeneratedLabels", seed, 0.5 + gain + seed / 100, lr=lr) for seed in range(5)]

    single = [run("SingleTask", seed, 0.5) for seed in range(5)]
    agreed = answered([*single, *learned(0.1, 0.2), *learned(0.2, 0.1)])[0]
    assert (agreed.verdict, agreed.kind) == ("Yes (MAXL, lr 0.1; MAXL, lr 0.2)", "good")
    answer = answered([*single, *learned(0.1, 0.2), *learned(0.2, -0.2)])[0]
    assert (answer.verdict, answer.kind) == ("It depends. MAXL, lr 0.1: Yes; MAXL, lr 0.2: No, it hurt", "open")


def test_what_is_no_number_was_not_recorded():
    odd = {"test_accuracy": "0.9", "use": [1, 2, 3], "sub_classes": [1], "relative_label_entropy": "high"}
    single, maxl = grouped([run("SingleTask", [1], 0.5), run("GeneratedLabels", [1], odd, psi=[2, 2])])
    assert maxl.estimate("test_accuracy") is None
    assert single.gain(single, "test_accuracy").values == (0.0,)
    assert [answer.verdict for answer in answers(Evidence([maxl], ""))] == ["Can't be told"] * 3
    unknown = run("GeneratedLabels", 0, {"use": [50, 50]}, psi=None)
    assert "was recorded, but no settings with a psi that fits" in said(answered(unknown)[2])


def test_labels_that_are_not_finite_leave_the_answer_open():
    runs = [
        run("GeneratedLabels", seed, with_labels([50, 50], value), psi=[2]) for seed, value in ((0, 0.5), (1, math.nan))
    ]
    answer = answered(runs)[2]
    assert (answer.verdict, answer.kind) == ("Can't be told: some labels are not finite", "open")
    assert "In the last epoch of 1 of 2 runs of MAXL labels are not finite." in answer.sentences
    samples = Samples(**{**vars(looked_at(times=10)), "y": np.zeros(60, dtype=int), "dropped": 7})
    assert "Labels of 7 samples are not finite; these are left out." in answered(None, samples)[2].sentences


def test_labels_that_nobody_has_learned_are_not_called_invented():
    runs = [run(source, 0, with_labels([100, 0], 0.5), psi=[2]) for source in ("HumanLabels", "KMeansLabels")]
    assert [answer.verdict for answer in answered(runs)[1:]] == ["Can't be told", "Can't be told"]
    learned = run("EntropyLabels", 0, with_labels([60, 40], 0.5), psi=[2])
    assert answered([*runs, learned])[1].verdict == "2 of 2 sub-classes in use"


def test_agreement_by_chance_stands_beside_that_of_the_samples():
    rng = np.random.RandomState(0)
    y = np.repeat([0, 1], 15)
    labels = np.eye(4)[2 * y + rng.randint(0, 2, 30)]
    human = np.where(rng.rand(30) < 0.1, -1, 3 * y + rng.randint(0, 3, 30))
    samples = Samples(Hierarchy([2, 2]), y, labels, human, None, None, is_dense=False, are_first=False)
    chance = chance_agreement(samples, 0)
    assert 0 < chance["nmi_within"] < 0.3
    assert chance["nmi"] > 0.5
    text = said(answered(None, samples)[1])
    assert f"by chance {chance['nmi_within']:.2f} (normalised" in text
    assert "not at all" not in text
    found = looked_at(np.tile([0, 1, 0, 2, 2, 2], 50), times=50)
    assert chance_agreement(found, 0)["nmi_within"] < 0.02 < agreement_of(found)["nmi_within"]


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
    answer = answers(Evidence(groups, ""))[0]
    assert (answer.verdict, answer.kind) == ("Open: 1 of 3 runs diverged", "open")
    assert "1 of 3 runs of MAXL diverged: no finite test accuracy." in said(answer)


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
    # 4.303 standard errors to either side, by Student's t with two degrees of freedom.
    assert "MAXL: +1.67 ± 0.33 pp against Single task, 3 runs paired by seed, 95 % interval +0.23 to +3.10, wit" in text
    # Differences 0, 1 and -1 points.
    assert "earns +0.00 ± 0.58 pp (MAXL less Entropy term alone, paired by seed), 95 % interval -2.48 to +2.48" in text


@pytest.mark.parametrize(
    ("values", "verdict", "kind", "words"),
    [
        ((0.88, 0.91, 0.92), "It seems to have hurt: only 3 pairs of runs", "open", "-1.67 ± 0.33 pp"),
        ((0.91, 0.91, 0.94), "Not beyond chance: 0 lies in the 95 % interval", "open", "+0.00 ± 0.58 pp"),
        ((0.92, 0.92, 0.95), "Not beyond chance: 0 lies in the 95 % interval", "open", "+1.00 ± 0.58 pp"),
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
    assert f"agreement with human classes is {expected:.2f}, by chance {expected:.2f} (" in text


@pytest.mark.parametrize("human", [None, np.full(6, -1)])
def test_no_human_labels_no_agreement(human):
    assert human_table(looked_at(human)) is None
    assert agreement_of(looked_at(human)) == {}
