"""What fit records of labels, on request: by hand, over ranks, and at no cost when off."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measured_runs import LABELS, PSI, data, learner, loader, run
from sklearn.metrics import normalized_mutual_info_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import metrics_overhead
from maxl_l2l import (
    MAXL,
    AuxiliaryLabelGenerator,
    Hierarchy,
    History,
    HumanLabels,
    LabelSource,
    Metrics,
    RandomLabels,
    SingleTask,
    fit,
)


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


def differing(rank):
    maxl = learner()
    maxl.distribute()
    run(maxl, loader(), metrics=rank == 0)


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
