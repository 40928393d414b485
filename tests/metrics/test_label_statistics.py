"""What is measured of labels while training: by hand, by other libraries, over ranks, and at no cost when off."""

import copy
import json
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pool import Pool
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import maxl_l2l.metrics.class_agreement
from benchmarks import metrics_overhead
from maxl_l2l import (
    MAXL,
    AuxiliaryLabelGenerator,
    EntropyLabels,
    Hierarchy,
    History,
    HumanLabels,
    LabelSource,
    Metrics,
    RandomLabels,
    SingleTask,
    fit,
)
from maxl_l2l.metrics.class_agreement import agreement
from maxl_l2l.metrics.collapse import Collapse, collapse_of, warn_of_collapse
from maxl_l2l.metrics.label_statistics import LabelMeter
from maxl_l2l.training.loggers import Loggers, scalars

PSI = [2, 3, 1]
CPU = torch.device("cpu")
LABELS = {
    "auxiliary_accuracy",
    "label_entropy",
    "relative_label_entropy",
    "relative_label_entropy_per_class",
    "mean_label_entropy",
    "use",
    "sub_classes_per_class",
}


def learner(*layers, **options):
    torch.manual_seed(0)
    return MAXL(nn.Sequential(nn.Linear(8, 16), *layers, nn.Tanh(), nn.Linear(16, 3)), PSI, **options)


def data(size=24, with_labels=False):
    numbers = torch.Generator().manual_seed(0)
    x, y = torch.randn(size, 8, generator=numbers), torch.arange(size) % 3
    return TensorDataset(x, y, torch.randint(0, 7, (size,), generator=numbers)) if with_labels else TensorDataset(x, y)


def loader(size=24, with_labels=False):
    return DataLoader(data(size, with_labels), batch_size=6)


def run(maxl, loader, epochs=2, **options):
    return fit(maxl, loader, epochs, seed=0, progress=False, **options)


class TestLabelMeter:
    def test_values_by_hand(self):
        meter = LabelMeter(Hierarchy([2, 2]), CPU)
        targets = torch.tensor([[0.5, 0.5, 0, 0], [0.75, 0.25, 0, 0], [0, 0, 0, 1.0], [0, 0, 0.1, 0.9]])
        predicted = torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
        meter.add(targets[:3], torch.tensor([0, 0, 1]), predicted[:3])
        meter.add(targets[3:], torch.tensor([1]), predicted[3:])
        found = meter.values()
        single = [math.log(2)] + [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.25, 0.1)]
        mean = [1.25 / 4, 0.75 / 4, 0.1 / 4, 1.9 / 4]
        assert set(found) == LABELS | {"sub_classes"}
        assert found["sub_classes"] == 2
        assert found["auxiliary_accuracy"] == 0.75
        shares = [sum(single[:2]) / 2 / math.log(2), sum(single[2:]) / 2 / math.log(2)]
        assert found["relative_label_entropy_per_class"] == pytest.approx(shares, rel=1e-6)
        assert found["label_entropy"] == pytest.approx(sum(single) / 4, rel=1e-6)
        assert found["relative_label_entropy"] == pytest.approx(sum(single) / 4 / math.log(2), rel=1e-6)
        assert found["mean_label_entropy"] == pytest.approx(-sum(p * math.log(p) for p in mean), rel=1e-6)
        assert found["use"] == [2, 0, 0, 2]
        assert found["sub_classes_per_class"] == [1, 1]

    def test_class_that_is_not_split_has_no_relative_entropy(self):
        meter = LabelMeter(Hierarchy([1, 2]), CPU)
        meter.add(torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]), torch.tensor([0, 1]))
        assert meter.values()["relative_label_entropy"] == pytest.approx(1.0)
        meter = LabelMeter(Hierarchy([1, 1]), CPU)
        meter.add(torch.tensor([[1.0, 0]]), torch.tensor([0]))
        assert "relative_label_entropy" not in meter.values()

    def test_weighted_labels_count_as_what_they_are_weights_of(self):
        labels, y = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]]), torch.tensor([0, 1])
        meters = [LabelMeter(Hierarchy([2, 2]), CPU) for _ in range(2)]
        meters[0].add(labels, y)
        meters[1].add(labels * torch.tensor([[4.0], [0.25]]), y)
        first, second = (meter.values() for meter in meters)
        assert all(first[name] == pytest.approx(second[name]) for name in first)

    def test_classes_are_one_hot_and_dense_labels_are_counted_by_pixel(self):
        indices, y = torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 0], [1, 1]]])
        meters = [LabelMeter(Hierarchy([2, 2]), CPU) for _ in range(2)]
        meters[0].add(indices, y, given=torch.tensor([[[0, 1], [2, 2]]]))
        meters[1].add(F.one_hot(indices, 4).movedim(-1, 1).float(), y, given=torch.tensor([[[0, 1], [2, 2]]]))
        found = meters[0].values()
        assert found == meters[1].values()
        assert found["use"] == [1, 1, 2, 0]
        assert found["label_entropy"] == 0
        assert found["purity"] == 1

    @pytest.mark.parametrize(
        "targets",
        [
            torch.zeros(2, dtype=torch.int32),
            torch.rand(2),
            torch.rand(2, 3),
            torch.rand(3, 4),
            torch.zeros(2, 1).long(),
        ],
        ids=["int32", "one-dimensional", "other-width", "other-size", "other-shape"],
    )
    def test_targets_of_another_kind_are_passed_over(self, targets):
        meter = LabelMeter(Hierarchy([2, 2]), CPU)
        meter.add(targets, torch.tensor([0, 1]))
        assert meter.values() == {}

    def test_labels_of_no_mass_count_as_none(self):
        meter = LabelMeter(Hierarchy([2]), CPU)
        meter.add(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]), torch.rand(2, 2), torch.tensor([1, 0]))
        found = meter.values()
        assert found["use"] == [0, 1]
        assert meter.sums["table"].tolist() == [[0, 0], [1, 0]]
        assert found["label_entropy"] == 0

    def test_accuracy_of_nothing_predicted_is_left_out(self):
        meter = LabelMeter(Hierarchy([2]), CPU)
        meter.add(torch.tensor([[0.3, 0.7]]), torch.tensor([0]))
        assert "auxiliary_accuracy" not in meter.values()

    def test_a_table_that_has_grown_too_large_is_given_up(self):
        meter, y = LabelMeter(Hierarchy([2]), CPU), torch.zeros(2, dtype=torch.long)
        meter.add(torch.rand(2, 2), y, given=torch.tensor([0, 1]))
        with pytest.warns(RuntimeWarning, match="it goes up to 9000000, so that it is no label"):
            meter.add(torch.rand(2, 2), y, given=torch.tensor([0, 9_000_000]))
        assert "nmi" not in meter.values()

    def test_without_labels_there_are_no_values(self):
        meter = LabelMeter(Hierarchy([2, 2]), CPU)
        meter.add(None, torch.tensor([0]))
        assert meter.values() == {}

    def test_given_labels_grow_skip_what_is_unknown_and_must_be_classes_of_y(self):
        meter, y = LabelMeter(Hierarchy([2]), CPU), torch.zeros(2, dtype=torch.long)
        targets = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        meter.add(targets, y, given=torch.tensor([0, -1]))
        meter.add(targets, y, given=torch.tensor([0, 4]))
        meter.add(targets, y, given=torch.tensor([0, 4], dtype=torch.uint8))
        for other in (torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]]), torch.tensor([True, False]), ["a", "b"]):
            meter.add(targets, y, given=other)
        assert meter.sums["table"].tolist() == [[3, 0, 0, 0, 0], [0, 0, 0, 0, 2]]

    def test_state_goes_on(self):
        batches = [(torch.rand(4, 6), torch.randint(0, 3, (4,)), torch.randint(0, 9, (4,))) for _ in range(4)]
        whole, first, second = (LabelMeter(Hierarchy(PSI), CPU) for _ in range(3))
        for number, (targets, y, given) in enumerate(batches):
            whole.add(targets, y, given=given)
            (first if number < 2 else second).add(targets, y, given=given)
            if number == 1:
                second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert second.values() == whole.values()


class TestAgreement:
    def test_nmi_is_that_of_scikit_learn(self):
        table = torch.randint(0, 20, (6, 5))
        invented, given = (
            part.repeat_interleave(table.flatten())
            for part in torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
            for part in [part.flatten()]
        )
        expected = normalized_mutual_info_score(invented, given)
        assert agreement(table, Hierarchy([3, 3]))["nmi"] == pytest.approx(expected, rel=1e-9)

    def test_knowing_the_class_alone_is_no_agreement_within_it(self):
        table = torch.zeros(4, 4, dtype=torch.long)
        table[0, :2], table[2, 2:] = 10, 10  # each class keeps to one sub-class of two, with two given labels
        found = agreement(table, Hierarchy([2, 2]))
        assert found["nmi"] == pytest.approx(2 / 3)
        assert found["nmi_within"] == 0
        assert found["purity"] == 0.5

    def test_within_is_weighted_by_samples_and_leaves_out_classes_with_one_given_label(self):
        table = torch.tensor([[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
        table = F.pad(table, (0, 1))
        table[4, 4] = 50
        assert agreement(table, Hierarchy([2, 2, 1]))["nmi_within"] == pytest.approx(6 / 8)
        assert "nmi_within" not in agreement(table[4:], Hierarchy([1]))
        assert agreement(table[4:], Hierarchy([1]))["nmi"] == 1.0

    def test_purity_is_of_the_best_matching_not_the_greedy_one(self):
        assert agreement(torch.tensor([[5, 4], [4, 0]]), Hierarchy([2]))["purity"] == pytest.approx(8 / 13)

    def test_without_scipy_there_is_no_purity(self, monkeypatch):
        monkeypatch.setattr(maxl_l2l.metrics.class_agreement, "HAS_SCIPY", False)
        assert set(agreement(torch.tensor([[5, 4], [4, 0]]), Hierarchy([2]))) == {"nmi", "nmi_within"}

    def test_nothing_of_nothing(self):
        assert agreement(torch.zeros(2, 3, dtype=torch.long), Hierarchy([2])) == {}


class TestGradientCosine:
    @pytest.mark.parametrize("micro_batches", [1, 3])
    def test_is_that_of_two_backward_passes(self, micro_batches):
        maxl = learner().double()
        x, y = torch.randn(6, 8, dtype=torch.float64), torch.arange(6) % 3
        found = maxl.gradient_cosine(x, y, micro_batches=micro_batches)
        labels = maxl.generator(x, y).detach()
        primary, auxiliary = maxl.network(x)
        shared = list(maxl.module[0].parameters())
        sides = [
            torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, shared, retain_graph=True)])
            for loss in (maxl.objective.primary(primary, y), maxl.objective.auxiliary(auxiliary, labels))
        ]
        assert found == pytest.approx(float(F.cosine_similarity(*sides, dim=0)), rel=1e-5)

    def test_the_task_itself_as_auxiliary_task_pulls_the_same_way(self):
        maxl = MAXL(nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)), [1, 1, 1])
        with torch.no_grad():
            for own, other in zip(maxl.module[2].parameters(), maxl.network.auxiliary_head.parameters()):
                other.copy_(own)
        assert maxl.gradient_cosine(torch.randn(6, 8), torch.arange(6) % 3) == pytest.approx(1.0)

    def test_changes_nothing(self):
        maxl = learner(nn.BatchNorm1d(16), nn.Dropout(0.5))
        before, random = copy.deepcopy(maxl.state_dict()), torch.get_rng_state()
        maxl.gradient_cosine(torch.randn(6, 8, generator=torch.Generator()), torch.arange(6) % 3)
        assert all(torch.equal(value, before[name]) for name, value in maxl.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in maxl.parameters())

    def test_none_without_a_shared_parameter_or_with_a_zero_gradient(self):
        x, y = torch.randn(6, 8), torch.arange(6) % 3
        assert MAXL(nn.Linear(8, 3), PSI).gradient_cosine(x, y) is None
        maxl = learner()
        nn.init.zeros_(maxl.network.auxiliary_head.weight)
        assert maxl.gradient_cosine(x, y) is None

    def test_takes_given_targets_and_checks_them(self):
        maxl, x, y = learner(), torch.randn(6, 8), torch.arange(6) % 3
        starts = torch.tensor([0, 2, 5])
        one_hot = F.one_hot(starts[y], 6).float()
        found = maxl.gradient_cosine(x, y, targets=starts[y])
        assert found == pytest.approx(float(maxl.gradient_cosine(x, y, targets=one_hot)))
        with pytest.raises(ValueError, match="`targets` must lie in the block of their primary class, found label 5"):
            maxl.gradient_cosine(x, y, targets=torch.full((6,), 5))


class TestFit:
    def test_records_what_it_says_and_trains_the_same(self):
        plain, measured = learner(nn.Dropout(0.3)), learner(nn.Dropout(0.3))
        without = run(plain, loader())
        history = run(measured, loader(), metrics=Metrics(gradient_cosine=2))
        for one, other in zip(plain.parameters(), measured.parameters()):
            assert torch.equal(one, other)
        extra = LABELS | {"steps_per_second", "gradient_cosine"}
        every = {record["gradient_cosine"] for record in history.epochs}
        assert len(every) == 2
        for record, bare in zip(history.epochs, without.epochs):
            assert set(record) == set(bare) | extra
            assert {name: record[name] for name in bare if name != "seconds"} == {
                name: value for name, value in bare.items() if name != "seconds"
            }
            assert sum(record["use"]) == 24
            assert record["sub_classes"] == sum(record["sub_classes_per_class"])
            assert 0 < record["label_entropy"] <= math.log(3)
            assert record["hypergradient_norm"] > 0
            assert -1 <= record["gradient_cosine"] <= 1
        json.dumps(history.epochs)

    def test_hypergradient_norm_is_that_of_the_gradient(self):
        maxl = learner()
        x, y = data().tensors
        result = maxl.hypergradient(x, y)
        grads = torch.cat([parameter.grad.flatten() for parameter in maxl.generator.parameters()])
        assert float(result.hypergradient_norm) == pytest.approx(float(grads.norm()), rel=1e-5)
        history = fit(learner(), [(x, y)], 1, progress=False)
        assert history["hypergradient_norm"][0] == pytest.approx(float(grads.norm()), rel=1e-5)

    def test_cosine_is_of_the_parameters_that_the_step_starts_from(self):
        x, y = data().tensors
        expected = learner().gradient_cosine(x, y)
        history = fit(learner(), [(x, y)], 1, progress=False, metrics=Metrics(gradient_cosine=1))
        assert history["gradient_cosine"][0] == pytest.approx(float(expected), rel=1e-6)

    def test_agreement_with_the_last_element_of_a_batch(self):
        history = run(learner(), loader(with_labels=True), metrics=True)
        assert {"nmi", "nmi_within", "purity"} < set(history.epochs[-1])
        assert "nmi" not in run(learner(), loader(), metrics=True).epochs[-1]

    @pytest.mark.parametrize(
        "source", [RandomLabels(0), HumanLabels(torch.tensor([0, 2, 5] * 8))], ids=["random", "human"]
    )
    def test_fixed_labels_are_compared_with_the_element_behind_them(self, source):
        dataset = source.label(data(with_labels=True), PSI)
        history = run(learner(), DataLoader(dataset, batch_size=6), source=source, metrics=Metrics(gradient_cosine=1))
        record = history.epochs[-1]
        labels, given = dataset.labels, data(with_labels=True).tensors[2]
        assert record["nmi"] == pytest.approx(normalized_mutual_info_score(labels, given), rel=1e-9)
        assert record["use"] == torch.bincount(labels, minlength=6).tolist()
        assert record["label_entropy"] == 0
        assert -1 <= record["gradient_cosine"] <= 1

    def test_single_task_has_no_labels_to_measure(self):
        history = run(learner(), loader(), source=SingleTask(), metrics=Metrics(gradient_cosine=1))
        assert "steps_per_second" in history.epochs[-1]
        assert not (LABELS | {"gradient_cosine", "hypergradient_norm"}) & set(history.epochs[-1])

    def test_targets_that_are_no_classes_are_not_measured(self):
        class Generator(nn.Linear):
            def forward(self, x, y):
                return super().forward(x)

        maxl = AuxiliaryLabelGenerator(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1)),
            Generator(8, 2),
            2,
            primary_loss=F.mse_loss,
            auxiliary_loss=F.mse_loss,
        )
        batches = [(torch.randn(4, 8), torch.randn(4, 1))]
        history = run(maxl, batches, metrics=Metrics(gradient_cosine=1))
        assert {"steps_per_second", "gradient_cosine", "hypergradient_norm"} < set(history.epochs[-1])
        assert not LABELS & set(history.epochs[-1])

    def test_schedule_by_epochs_measures_the_labels_that_the_network_was_trained_with(self):
        history = run(learner(), loader(), schedule="epoch", metrics=Metrics(gradient_cosine=1))
        assert sum(history["use"][0]) == 24

    def test_resume_inside_an_epoch_measures_the_whole_of_it(self, tmp_path, monkeypatch):
        now = iter(range(0, 10**6, 60))
        monkeypatch.setattr("maxl_l2l.training.clock.monotonic", lambda: next(now))
        options = {"metrics": Metrics(gradient_cosine=2), "checkpoint": tmp_path / "run.pt", "resume": True}
        expected = run(learner(), loader(with_labels=True), metrics=Metrics(gradient_cosine=2))
        first = run(learner(), loader(with_labels=True), time_limit=6, **options)
        assert len(first) < 2
        second = run(learner(), loader(with_labels=True), **options)
        timed = {"seconds", "steps_per_second"}
        for found, record in zip(second.epochs, expected.epochs, strict=True):
            assert {k: v for k, v in found.items() if k not in timed} == {
                k: v for k, v in record.items() if k not in timed
            }

    def test_metrics_asked_for_inside_an_epoch_begin_with_the_next(self, tmp_path, monkeypatch):
        now = iter(range(0, 10**6, 60))
        monkeypatch.setattr("maxl_l2l.training.clock.monotonic", lambda: next(now))
        options = {"checkpoint": tmp_path / "run.pt", "resume": True}
        assert len(run(learner(), loader(), time_limit=6, **options)) == 0
        content = torch.load(options["checkpoint"], weights_only=True)
        del content["ranks"][0]["inside"]["measured"]["labels"]  # as files had it before there were metrics
        torch.save(content, options["checkpoint"])
        first, second = run(learner(), loader(), metrics=True, **options).epochs
        assert not LABELS & set(first)
        assert set(second) > LABELS

    def test_metrics_given_up_inside_an_epoch_leave_its_sub_classes(self, tmp_path, monkeypatch):
        now = iter(range(0, 10**6, 60))
        monkeypatch.setattr("maxl_l2l.training.clock.monotonic", lambda: next(now))
        options = {"checkpoint": tmp_path / "run.pt", "resume": True}
        assert len(run(learner(), loader(), metrics=True, time_limit=6, **options)) == 0
        assert run(learner(), loader(), **options)["sub_classes"] == run(learner(), loader())["sub_classes"]

    def test_steps_per_second_are_steps_by_time(self):
        record = run(learner(), loader(), 1, metrics=True).epochs[0]
        assert 4 / record["seconds"] == pytest.approx(record["steps_per_second"], rel=0.5)

    def test_cosine_is_measured_on_every_so_manyth_step(self, monkeypatch):
        taken = []
        original = MAXL.gradient_cosine
        monkeypatch.setattr(
            MAXL, "gradient_cosine", lambda *args, **kwargs: taken.append(1) or original(*args, **kwargs)
        )
        run(learner(), loader(), metrics=Metrics(gradient_cosine=3))
        assert len(taken) == 4  # the first and the fourth of each epoch's four

    def test_generators_gradient_is_measured_before_it_is_clipped(self):
        x, y = data().tensors
        maxl = learner()
        optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (maxl.network, maxl.generator)]
        result = maxl.step(x, y, *optimizers, max_grad_norm=1e-3)
        grads = torch.cat([parameter.grad.flatten() for parameter in maxl.generator.parameters()])
        assert float(grads.norm()) == pytest.approx(1e-3, rel=1e-3)
        assert result.hypergradient_norm > 2e-3

    def test_micro_batches_measure_the_same(self):
        whole, parts = (run(learner(), loader(), 1, metrics=True, micro_batches=number).epochs[0] for number in (1, 3))
        for name in LABELS - {"relative_label_entropy_per_class"}:
            assert parts[name] == pytest.approx(whole[name], rel=1e-5), name

    @pytest.mark.skipif(torch.__version__ < "2.9", reason="maxl.compile() needs torch 2.9")
    def test_compiled_passes_measure_the_same(self):
        plain, compiled = learner(nn.BatchNorm1d(16)), learner(nn.BatchNorm1d(16))
        compiled.compile(backend="aot_eager")
        x, y = data().tensors
        assert compiled.gradient_cosine(x, y) == pytest.approx(float(plain.gradient_cosine(x, y)), rel=1e-4)
        run(compiled, loader(), 1, metrics=Metrics(gradient_cosine=1))

    def test_step_that_a_scaler_skips_leaves_no_infinity_in_the_history(self):
        maxl = learner()
        with torch.autocast("cpu", torch.float16), pytest.warns(RuntimeWarning, match="`scaler` skipped all"):
            history = run(maxl, loader(), 1, metrics=True, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))
        assert history.epochs[0]["skipped"] > 0
        assert math.isfinite(history.epochs[0].get("hypergradient_norm", 0.0))
        assert math.isfinite(history.epochs[0].get("meta_loss", 0.0))

    @pytest.mark.parametrize("numbers", [torch.arange(24) * 10**6, torch.full((24,), 2**63 - 1)], ids=["ids", "hashes"])
    def test_numbers_that_are_no_labels_are_left_out_with_a_warning(self, numbers):
        batches = DataLoader(TensorDataset(*data().tensors, numbers), batch_size=6)
        with pytest.warns(RuntimeWarning, match="`metrics` leaves out the agreement with the element behind x and y"):
            record = run(learner(), batches, 1, metrics=True).epochs[0]
        assert "nmi" not in record
        assert set(record) > LABELS

    def test_source_that_does_not_say_what_it_takes_is_compared_with_nothing(self):
        class Own(LabelSource):
            def network_step(self, maxl, batch, optimizer, **options):
                x, y, labels = batch
                return maxl.network_step(x, y, optimizer, targets=labels, **options)

        dataset = RandomLabels(0).label(data(), PSI)
        record = run(learner(), DataLoader(dataset, batch_size=6), 1, source=Own(), metrics=Metrics(gradient_cosine=1))
        assert "nmi" not in record.epochs[0]
        assert set(record.epochs[0]) > LABELS

    def test_history_keeps_them(self, tmp_path):
        history = run(learner(), loader(), metrics=True)
        history.save(tmp_path / "history.json")
        assert History.load(tmp_path / "history.json").epochs == history.epochs

    def test_bar_shows_them(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "300")
        fit(learner(), loader(), 1, progress=True, metrics=Metrics(gradient_cosine=1))
        shown = capsys.readouterr().err
        assert "label_entropy=" in shown
        assert "gradient_cosine=" in shown

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"metrics": "all"}, TypeError, "`metrics` must be True, False or Metrics(...), found str. Write metrics="),
            ({"metrics": 1}, TypeError, "`metrics` must be True, False or Metrics(...), found int."),
            ({"logger": "runs"}, TypeError, "`logger` must be a SummaryWriter of torch.utils.tensorboard, a logger of"),
            ({"logger": [object()]}, TypeError, "or a list of these, found object. Write logger=SummaryWriter("),
            ({"logger": Hierarchy}, TypeError, "or a list of these, found the class Hierarchy. Write logger="),
            ({"log_every": 0}, ValueError, "`log_every` must be at least 1, found 0. Use 1 to log every step."),
        ],
    )
    def test_bad_arguments_are_refused_before_training(self, options, error, message):
        maxl = learner()
        before = copy.deepcopy(maxl.state_dict())
        with pytest.raises(error) as raised:
            run(maxl, loader(), **options)
        assert message in str(raised.value)
        assert all(torch.equal(value, before[name]) for name, value in maxl.state_dict().items())

    @pytest.mark.parametrize("name", ["gradient_cosine", "patience"])
    def test_metrics_count_in_whole_numbers(self, name):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, found 0"):
            Metrics(**{name: 0})


class Recorder:
    """What a Lightning logger is asked to log."""

    def __init__(self):
        self.logged, self.saved = [], 0

    def log_metrics(self, metrics, step=None):
        self.logged.append((step, metrics))

    def save(self):
        self.saved += 1


class TestLoggers:
    def test_steps_in_turn_and_epochs_by_steps_taken(self):
        recorder = Recorder()
        history = run(learner(), loader(), metrics=True, logger=recorder, log_every=3)
        steps = [step for step, found in recorder.logged if "step/primary_loss" in found]
        epochs = [(step, found) for step, found in recorder.logged if "epoch" in found]
        assert steps == [3, 6]
        assert [step for step, _ in epochs] == [4, 8]
        assert set(recorder.logged[0][1]) == {
            f"step/{name}"
            for name in ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "hypergradient_norm")
        }
        assert epochs[1][1] == scalars(history.epochs[1])
        assert recorder.saved == 2

    def test_records_are_single_numbers(self):
        record = {"epoch": 1, "primary_loss": 0.5, "use": [3, 4, 5], "sub_classes_per_class": [1, 2]}
        expected = {"epoch": 1, "primary_loss": 0.5, "sub_classes_per_class/0": 1, "sub_classes_per_class/1": 2}
        assert scalars(record) == expected

    def test_tensorboard_reads_them_back(self, tmp_path):
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(tmp_path) as writer:
            history = run(learner(), loader(), metrics=True, logger=[writer, Recorder()], log_every=1)
        read = EventAccumulator(str(tmp_path))
        read.Reload()
        found = read.Scalars("label_entropy")
        assert [event.step for event in found] == [4, 8]
        assert [event.value for event in found] == pytest.approx(history["label_entropy"], rel=1e-6)
        assert len(read.Scalars("step/meta_loss")) == 8

    def test_lightnings_own_logger_takes_them(self, tmp_path):
        logger = pytest.importorskip("lightning.pytorch.loggers").CSVLogger(tmp_path)
        run(learner(), loader(), metrics=True, logger=logger)
        text = next(tmp_path.rglob("metrics.csv")).read_text()
        assert "label_entropy" in text.splitlines()[0]
        assert len(text.splitlines()) == 3

    def test_logger_that_raises_is_left_out_and_training_goes_on(self, tmp_path):
        class Full(Recorder):
            def log_metrics(self, metrics, step=None):
                raise OSError(28, "No space left on device")

        recorder = Recorder()
        with pytest.warns(
            RuntimeWarning, match=r"`logger` Full raised OSError\(28, .* is left out from now on"
        ) as found:
            history = run(learner(), loader(), logger=[Full(), recorder], log_every=1)
        assert len(found) == 1
        assert len(history) == 2
        assert len(recorder.logged) == 10

    def test_steps_go_on_after_a_resume(self, tmp_path):
        recorder, options = Recorder(), {"checkpoint": tmp_path / "run.pt", "resume": True}
        run(learner(), loader(), 1, **options)
        run(learner(), loader(), 2, logger=recorder, log_every=3, **options)
        assert [step for step, _ in recorder.logged] == [6, 8]

    def test_an_epoch_is_written_at_once(self):
        class Writer:
            added = flushed = 0

            def add_scalar(self, name, value, step):
                self.added += 1

            def flush(self):
                self.flushed += 1

        writer = Writer()
        run(learner(), loader(), logger=writer)
        assert writer.flushed == 2
        assert writer.added > 10

    def test_none_is_silent(self):
        Loggers(None, 1).epoch(1, {"epoch": 1})


class TestWatch:
    def test_judges_an_epoch(self):
        hierarchy = Hierarchy([2, 2, 1, 3])
        record = {"use": [99, 1, 98, 2, 50, 1, 0, 0], "relative_label_entropy": 0.5}
        assert collapse_of(record, hierarchy) == Collapse((0,), False)
        assert collapse_of({"relative_label_entropy": 0.995}, hierarchy) == Collapse((), True)
        assert collapse_of({"relative_label_entropy": 0.985}, hierarchy) == Collapse()
        assert collapse_of({}, hierarchy) == Collapse()

    def test_class_of_unsure_labels_or_few_samples_has_not_collapsed(self):
        shares = [0.95, 0.85, None, 0.0]
        record = {"use": [50, 0, 50, 0, 50, 9, 0, 0], "relative_label_entropy_per_class": shares}
        assert collapse_of(record, Hierarchy([2, 2, 1, 3])).single == (1,)

    def test_warns_once_a_streak(self):
        bad, good = {"use": [10, 0]}, {"use": [5, 5]}
        hierarchy = Hierarchy([2])
        told = []
        records = []
        for record in (bad, bad, good, bad, bad, bad, bad, good, bad, bad, bad):
            records.append(record)
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                warn_of_collapse(records, hierarchy, 3)
            told += [len(records)] * len(found)
        assert told == [6, 11]

    def test_says_which_classes_and_what_to_change(self):
        records = [{"use": [10, 0, 5, 5, 0, 70]}] * 2
        with pytest.warns(RuntimeWarning) as found:
            warn_of_collapse(records, Hierarchy([2, 2, 2]), 2)
        assert str(found[0].message) == (
            "labels have collapsed: primary class 0, 2 has kept to a single sub-class for 2 epochs. "
            "Raise entropy_weight, lower the generator's learning rate, or give such a class fewer sub-classes in psi."
        )

    def test_fit_warns_of_labels_that_stay_uniform_at_the_callers_line(self):
        maxl = learner()
        nn.init.zeros_(maxl.generator.body[2].weight)
        nn.init.zeros_(maxl.generator.body[2].bias)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        with pytest.warns(RuntimeWarning, match="labels have stayed uniform for 2 epochs: they say no more") as found:
            fit(maxl, loader(), 4, generator_optimizer=frozen, metrics=Metrics(patience=2), progress=False)
        assert [one.filename for one in found] == [__file__]

    @pytest.mark.parametrize("options", [{"metrics": Metrics(patience=None)}, {"metrics": False}])
    def test_can_be_turned_off(self, options):
        maxl = learner()
        nn.init.zeros_(maxl.generator.body[2].weight)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        fit(maxl, loader(), 7, generator_optimizer=frozen, progress=False, **options)

    def test_fixed_labels_are_not_watched(self):
        source = HumanLabels(torch.tensor([0, 2, 5] * 8))
        dataset = source.label(data(), PSI)
        run(learner(), DataLoader(dataset, batch_size=6), 3, source=source, metrics=Metrics(patience=1))

    def test_the_control_is_not_watched_as_its_labels_are_to_be_uniform(self):
        maxl = learner()
        nn.init.zeros_(maxl.generator.body[2].weight)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        fit(
            maxl,
            loader(),
            1,
            generator_optimizer=frozen,
            source=EntropyLabels(),
            metrics=Metrics(patience=1),
            progress=False,
        )


def measured_by(rank):
    """Metrics of a run of which a rank, or a process alone, has its part of each batch."""
    maxl = learner()
    if rank is not None:
        maxl.distribute()
    batches = []
    for x, y, given in loader(with_labels=True):
        where = slice(None) if rank is None else (slice(0, 2), slice(2, 6))[rank]
        batches.append((x[where], y[where], given[where]))
    history = run(maxl, batches, metrics=Metrics(gradient_cosine=1))
    return [{k: v for k, v in record.items() if k not in ("seconds", "steps_per_second")} for record in history.epochs]


class Branching(nn.Module):
    """A model whose second layer runs on more than three samples alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.first(x).tanh()
        return self.head(hidden + self.second(hidden) if len(x) > 3 else hidden)


def cosine_by(rank):
    """The cosine of a rank with two or four samples, of which the latter alone use all of the model."""
    torch.manual_seed(0)
    maxl = MAXL(Branching(), PSI)
    maxl.distribute()
    x, y = data(6).tensors
    where = (slice(0, 2), slice(2, 6))[rank]
    return float(maxl.gradient_cosine(x[where], y[where]))


def logged_by(rank):
    """What a rank logs; its first logger raises."""
    maxl = learner()
    maxl.distribute()
    recorder = Recorder()
    run(maxl, [(x[rank::2], y[rank::2]) for x, y in loader()], logger=recorder, log_every=1)
    return len(recorder.logged)


def differing(rank):
    maxl = learner()
    maxl.distribute()
    run(maxl, loader(), metrics=rank == 0)


@pytest.fixture(scope="module")
def pool():
    with Pool() as processes:
        yield processes


def test_ranks_that_use_other_parameters_agree_on_the_cosine(pool):
    first, second = pool.run(cosine_by)
    assert first == second
    assert -1 <= first <= 1


def test_rank_0_alone_logs(pool):
    assert pool.run(logged_by) == [10, 0]


def test_ranks_that_measure_different_things_are_refused(pool):
    for is_fine, answer in pool.attempt(differing):
        assert not is_fine
        assert "metrics" in answer


def test_ranks_measure_what_one_process_does(pool):
    both = pool.run(measured_by)
    assert both[0] == both[1]
    for found, expected in zip(both[0], measured_by(None)):
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert np.allclose(np.array(found[name], float), np.array(value, float), rtol=1e-4, equal_nan=True), name


def test_what_metrics_cost_is_measured():
    pytest.importorskip("tensorboard")
    found = metrics_overhead.measure("mlp", batch=4, iterations=2, repeats=2)
    assert [row["entrant"] for row in found["rows"]] == list(metrics_overhead.TITLES)
    assert all(row["seconds"]["median"] > 0 for row in found["rows"])
    assert found["rows"][0]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
