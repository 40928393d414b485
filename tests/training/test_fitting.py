"""The training loop: schedules, evaluation, history, seeds, checkpoints, and what stops it."""

import copy
import io
import json
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import maxl_l2l.training.progress
from maxl_l2l import (
    MAXL,
    AuxiliaryLabelGenerator,
    GeneratedLabels,
    History,
    NonFiniteError,
    SingleTask,
    evaluate,
    fit,
)

PSI = [2, 3]


def learner():
    torch.manual_seed(0)
    return MAXL(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2)), PSI)


def data(size=40, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=numbers)
    return TensorDataset(x, (x[:, 0] > 0).long())


def loader(size=40, seed=0):
    return DataLoader(data(size, seed), batch_size=10, shuffle=True)


def optimizers(maxl):
    return {
        "optimizer": torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9),
        "generator_optimizer": torch.optim.Adam(maxl.generator.parameters(), lr=0.01),
    }


@pytest.mark.parametrize("schedule", ["batch", "epoch"])
def test_training_generalises_and_records(schedule):
    maxl = learner()
    history = fit(
        maxl,
        loader(),
        15,
        **optimizers(maxl),
        schedule=schedule,
        test_loader=loader(200, 1),
        seed=0,
        progress=False,
    )
    assert len(history) == 15
    record = history.epochs[-1]
    expected = {"epoch", "primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "accuracy", "sub_classes"}
    assert set(record) == expected | {"hypergradient_norm", "test_loss", "test_accuracy", "lr", "seconds"}
    assert record["test_accuracy"] > 0.85
    assert history["primary_loss"][-1] < history["primary_loss"][0]
    assert 2 <= record["sub_classes"] <= 5
    assert -math.log(5) <= record["regularizer"] / 0.2 <= 0
    assert history.settings["schedule"] == schedule


def test_batch_schedule_is_the_fused_step():
    maxl, batches = learner(), DataLoader(data(), batch_size=10)
    twin = copy.deepcopy(maxl)
    fit(maxl, batches, 2, **optimizers(maxl), seed=3, progress=False)
    made = optimizers(twin)
    torch.manual_seed(3)
    for _ in range(2):
        for x, y in batches:
            twin.step(x, y, made["optimizer"], made["generator_optimizer"])
    torch.testing.assert_close(maxl.state_dict(), twin.state_dict(), rtol=0, atol=0)


def test_epoch_schedule_is_network_steps_then_generator_steps():
    maxl, batches, meta = (
        learner(),
        list(DataLoader(data(), batch_size=10)),
        list(DataLoader(data(16, 5), batch_size=8)),
    )
    twin = copy.deepcopy(maxl)
    fit(maxl, batches, 1, **optimizers(maxl), schedule="epoch", meta_loader=meta, seed=3, progress=False)
    made = optimizers(twin)
    torch.manual_seed(3)
    for x, y in batches:
        twin.network_step(x, y, made["optimizer"])
    metas = [*meta, *meta]
    network = copy.deepcopy(twin.network.state_dict())
    for (x, y), meta_batch in zip(batches, metas):
        twin.generator_step(x, y, made["optimizer"], made["generator_optimizer"], meta_batch=meta_batch)
    torch.testing.assert_close(maxl.state_dict(), twin.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(maxl.network.state_dict(), network, rtol=0, atol=0)


def test_defaults_are_the_papers():
    maxl = learner()
    history = fit(maxl, loader(), 1, progress=False)
    settings = history.settings
    assert (settings["optimizer"], settings["lr"]) == ("SGD", maxl.lr)
    assert (settings["generator_optimizer"], settings["generator_lr"]) == ("SGD", 1e-3)
    assert settings["source"] == "GeneratedLabels"


def test_schedulers_are_stepped_once_an_epoch():
    maxl = learner()
    made = optimizers(maxl)
    scheduler = torch.optim.lr_scheduler.StepLR(made["optimizer"], step_size=2, gamma=0.5)
    history = fit(maxl, loader(), 4, **made, schedulers=[scheduler], progress=False)
    assert history["lr"] == [0.1, 0.1, 0.05, 0.05]


def test_seed_decides_the_run_and_leaves_the_random_state():
    found = []
    for noise in (1, 2):
        maxl = learner()
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        fit(maxl, loader(), 2, **optimizers(maxl), seed=5, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(maxl.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_evaluate_matches_plain_pytorch_and_restores_modes():
    maxl = learner()
    maxl.network.module[1].eval()  # a frozen BatchNorm stays as the user set it
    x, y = data().tensors
    found = evaluate(maxl, DataLoader(data(), batch_size=16))
    assert maxl.training
    assert not maxl.network.module[1].training
    logits = maxl.module.eval()(x)
    probs = logits.softmax(1)[torch.arange(40), y]
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert found["loss"] == pytest.approx((-((1 - probs) ** 2) * probs.log()).mean().item(), rel=1e-5)


def test_loaders_without_length_will_do():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.randn(4), torch.tensor(number % 2)) for number in range(12)])

    history = fit(learner(), DataLoader(Stream(), batch_size=4), 2, progress=True)
    assert len(history) == 2


def test_regression_has_no_accuracy():
    class Targets(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 2)

        def forward(self, x, y):
            return self.body(x)

    maxl = AuxiliaryLabelGenerator(
        nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)),
        Targets(),
        2,
        primary_loss=F.mse_loss,
        auxiliary_loss=F.mse_loss,
    )
    x = torch.randn(20, 4)
    batches = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=5)
    history = fit(maxl, batches, 30, test_loader=batches, progress=False)
    assert "accuracy" not in history.epochs[-1]
    assert "test_accuracy" not in history.epochs[-1]
    assert history["test_loss"][-1] < 0.5 * history["test_loss"][0]


def test_progress_bar_shows_losses_accuracy_and_sub_classes(monkeypatch):
    written = io.StringIO()
    monkeypatch.setenv("COLUMNS", "300")
    bars = maxl_l2l.training.progress.tqdm
    monkeypatch.setattr(maxl_l2l.training.progress, "tqdm", lambda **options: bars(**options, file=written, ncols=300))
    fit(learner(), loader(), 2, test_loader=loader(), schedule="epoch", progress=True)
    last = written.getvalue().split("\r")[-1]
    assert "16/16" in last  # two epochs of two stages of four batches
    for name in ("primary_loss=", "auxiliary_loss=", "meta_loss=", "accuracy=", "test_accuracy=", "sub_classes="):
        assert name in last


def test_history_round_trips_as_json(tmp_path):
    history = fit(learner(), loader(), 2, progress=False)
    path = tmp_path / "runs" / "history.json"
    history.save(path)
    assert History.load(path) == history
    assert json.loads(path.read_text())["epochs"][1]["epoch"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["history.json"]
    with pytest.raises(KeyError, match=r"no 'test_loss'; it has recorded epoch, primary_loss"):
        history["test_loss"]
    with pytest.raises(KeyError, match="nothing yet"):
        History()["epoch"]


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "history.json"
    History({"seed": 1}).save(path)
    with pytest.raises(TypeError):
        History({"seed": object()}).save(path)
    assert History.load(path).settings == {"seed": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["history.json"]


def test_inputs_may_be_nested():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(x["left"] + x["rest"][0])

    dataset = [({"left": x, "rest": [x, 3.0]}, y) for x, y in zip(*data().tensors)]
    batches = DataLoader(dataset, batch_size=10)
    history = fit(MAXL(Summed(), PSI, lr=0.5), batches, 10, test_loader=batches, progress=False)
    assert history["test_accuracy"][-1] > 0.9


# ---- checkpoints


def run(epochs, path, resume=False):
    maxl = learner()
    made = optimizers(maxl)
    order = torch.Generator().manual_seed(1)
    batches = DataLoader(data(), batch_size=10, shuffle=True, generator=order)
    history = fit(
        maxl,
        batches,
        epochs,
        **made,
        schedulers=[torch.optim.lr_scheduler.StepLR(made["optimizer"], 2)],
        meta_loader=loader(16, 5),
        seed=4,
        progress=False,
        checkpoint=path,
        resume=resume,
    )
    return maxl, [{key: value for key, value in record.items() if key != "seconds"} for record in history.epochs]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, expected = run(5, tmp_path / "whole.pt")
    run(2, tmp_path / "part.pt")
    resumed, found = run(5, tmp_path / "part.pt", resume=True)
    assert found == expected
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_resumed_run_keeps_the_distance_of_finite_differences(tmp_path):
    def trained(epochs, path):
        torch.manual_seed(0)
        maxl = MAXL(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)), [2, 2])
        data = [(torch.randn(8, 8), torch.randint(0, 2, (8,))) for _ in range(3)]
        options = {
            "source": GeneratedLabels("finite-difference"),
            "progress": False,
            "checkpoint": path,
            "resume": True,
        }
        fit(maxl, data, epochs, **options, **optimizers(maxl))
        return maxl.state_dict()

    whole = trained(4, tmp_path / "whole.pt")
    trained(2, tmp_path / "part.pt")
    torch.testing.assert_close(trained(4, tmp_path / "part.pt"), whole, rtol=0, atol=0)


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    _, found = run(2, tmp_path / "none.pt", resume=True)
    assert [record["epoch"] for record in found] == [1, 2]


def test_checkpoint_loads_as_plain_tensors(tmp_path):
    run(1, tmp_path / "run.pt")
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert state["format"] == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == [".run.pt.lock", "run.pt"]


def test_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"`checkpoint` must be of format 4, found one of format 99 in .*run.pt"):
        run(1, tmp_path / "run.pt", resume=True)


def test_checkpoint_of_a_run_without_these_schedulers_is_refused(tmp_path):
    maxl = learner()
    fit(maxl, loader(), 1, **optimizers(maxl), progress=False, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"must hold .*scheduler 0, found"):
        run(1, tmp_path / "run.pt", resume=True)


# ---- what stops a run


class Spoiled(TensorDataset):
    """Data with a NaN in its 26th sample."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return (x * math.nan if index == 25 else x), y


def test_non_finite_loss_names_step_term_and_checkpoint_and_loses_nothing(tmp_path):
    maxl, path = learner(), tmp_path / "run.pt"
    made = optimizers(maxl)
    clean = DataLoader(data(), batch_size=10)
    fit(maxl, clean, 1, **made, seed=0, progress=False, checkpoint=path)
    spoiled = DataLoader(Spoiled(*data().tensors), batch_size=10)
    message = (
        r"stopped at step 7 \(epoch 2\): the primary loss is nan, as the input x is NaN in 1 of 10 samples, first in "
        r"number 5; no parameter was updated with it\. Check the data\. The last checkpoint is .*run\.pt; the "
        r"parameters before this step are in .*run\.pt\.stopped"
    )
    with pytest.raises(NonFiniteError, match=message) as caught:
        fit(maxl, spoiled, 3, **made, seed=0, progress=False, checkpoint=path, resume=True)
    assert caught.value.term == "input"
    assert len(caught.value.history) == 1
    assert len(torch.load(path, weights_only=True)["progress"]["history"]["epochs"]) == 1
    kept = torch.load(f"{path}.stopped", weights_only=True)
    assert kept["progress"]["steps"] == 6
    torch.testing.assert_close(dict(maxl.state_dict()), dict(kept["parts"]["maxl"]), rtol=0, atol=0)
    assert all(value.isfinite().all() for value in maxl.state_dict().values())


def test_non_finite_loss_without_a_checkpoint_says_how_to_keep_one():
    with pytest.raises(
        NonFiniteError, match=r"stopped at step 3 \(epoch 1\).*Pass checkpoint= to save a run"
    ) as caught:
        fit(learner(), DataLoader(Spoiled(*data().tensors), batch_size=10), 1, progress=False)
    assert len(caught.value.history) == 0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"epochs": 0}, ValueError, r"`epochs` must be at least 1, found 0"),
        ({"schedule": "week"}, ValueError, r"`schedule` must be one of 'batch', 'epoch', found 'week'"),
        ({"resume": True}, ValueError, r"`resume` needs `checkpoint`, found None"),
        ({"loader": []}, ValueError, r"`loader` must yield at least one batch, found none"),
        ({"loader": [torch.zeros(2, 4)]}, TypeError, r"`loader` must yield batches \(x, y\).*found Tensor"),
        ({"meta_loader": []}, ValueError, r"`meta_loader` must yield at least one batch, found none"),
        ({"test_loader": []}, ValueError, r"`test_loader` must yield at least one batch, found none"),
        ({"loader": None}, TypeError, r"`loader` must yield batches \(x, y\), found NoneType"),
        ({"epochs": 1.5}, TypeError, r"`epochs` must be an integer, found 1.5 \(float\)"),
        ({"source": SingleTask}, TypeError, r"`source` must be an instance of LabelSource, found the class SingleTask"),
        ({"schedulers": 3}, TypeError, r"`schedulers` must be a list, found int"),
        ({"maxl": nn.Linear(4, 2)}, TypeError, r"`maxl` must be an instance of AuxiliaryLabelGenerator, found Linear"),
    ],
)
def test_bad_arguments_are_refused(options, kind, message):
    arguments = {"maxl": learner(), "loader": loader(), "epochs": 1, "progress": False, **options}
    with pytest.raises(kind, match=message):
        fit(**arguments)


def test_iterator_that_is_used_up_is_not_taken_for_a_loader():
    with pytest.raises(ValueError, match=r"at least one batch in each epoch, found none in epoch 2.*used up"):
        fit(learner(), iter(loader()), 2, progress=False)


def test_evaluate_refuses_bad_batches_and_empty_loaders():
    maxl = learner()
    with pytest.raises(ValueError, match=r"`y` must hold primary class indices in 0..1, found 2"):
        evaluate(maxl, [(torch.zeros(1, 4), torch.tensor([2]))])
    with pytest.raises(ValueError, match="`loader` must yield at least one batch, found none"):
        evaluate(maxl, iter([]))
    assert maxl.training


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    for content in (b"garbage", b"", b"PK\x03\x04 not really"):
        (tmp_path / "run.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"`checkpoint` must be a file that fit\(\) wrote, found that .*run.pt is"):
            run(1, tmp_path / "run.pt", resume=True)
    torch.save([1, 2], tmp_path / "run.pt")
    with pytest.raises(ValueError, match="found a list of another program"):
        run(1, tmp_path / "run.pt", resume=True)


def test_training_starts_in_training_mode_and_keeps_frozen_parts_in_theirs():
    maxl = learner().eval()
    fit(maxl, loader(), 1, **optimizers(maxl), test_loader=loader(), progress=False)
    norm = maxl.module[1]
    assert norm.training
    assert int(norm.num_batches_tracked) == 4
    norm.eval()
    fit(maxl, loader(), 2, **optimizers(maxl), test_loader=loader(), progress=False)
    assert int(norm.num_batches_tracked) == 4
    assert maxl.module[3].training


def test_missing_tqdm_names_the_extra_only_if_a_bar_is_asked_for():
    code = (
        "import sys; sys.modules['tqdm'] = None\n"
        "import torch; from maxl_l2l import MAXL, fit\n"
        "batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))]\n"
        "print(len(fit(MAXL(torch.nn.Linear(3, 2), [2, 2]), batches, 1)))\n"
        "fit(MAXL(torch.nn.Linear(3, 2), [2, 2]), batches, 1, progress=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert "progress=True needs tqdm" in done.stderr
    assert "pip install 'maxl_l2l[progress]'" in done.stderr


def test_generator_learns_on_every_nth_batch():
    maxl, twin = learner(), learner()
    made, its = optimizers(maxl), optimizers(twin)
    ordered = DataLoader(data(50), batch_size=10)
    history = fit(maxl, ordered, 1, **made, meta_every=2, seed=0, progress=False)
    torch.manual_seed(0)
    meta_losses = []
    for index, (x, y) in enumerate(ordered):
        if index % 2 == 0:
            meta_losses.append(twin.step(x, y, its["optimizer"], its["generator_optimizer"]).meta_loss.item())
        else:
            twin.network_step(x, y, its["optimizer"])
    torch.testing.assert_close(maxl.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert history.epochs[0]["meta_loss"] == pytest.approx(sum(meta_losses) / 3)
    assert history.settings["meta_every"] == 2


def test_generator_stage_of_the_epoch_schedule_takes_every_nth_batch():
    maxl, steps = learner(), []
    maxl.generator_step = lambda *args, **kwargs: steps.append(1) or MAXL.generator_step(maxl, *args, **kwargs)
    fit(maxl, loader(50), 2, **optimizers(maxl), schedule="epoch", meta_every=2, seed=0, progress=False)
    assert len(steps) == 2 * 3


def test_meta_batch_can_be_the_next_one():
    maxl, twin = learner(), learner()
    made, its = optimizers(maxl), optimizers(twin)
    ordered = DataLoader(data(30), batch_size=10)
    fit(maxl, ordered, 1, **made, meta_loader="next", seed=0, progress=False)
    torch.manual_seed(0)
    batches = list(ordered)
    for (x, y), meta_batch in zip(batches, [*batches[1:], batches[0]]):
        twin.step(x, y, its["optimizer"], its["generator_optimizer"], meta_batch=tuple(meta_batch))
    torch.testing.assert_close(maxl.state_dict(), twin.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["batch", "epoch"])
def test_options_of_the_step_reach_it_and_the_scaler_is_saved(schedule, tmp_path):
    states = []
    for stop in (2, 4):
        maxl = learner()
        made = optimizers(maxl)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
        options = {"micro_batches": 2, "max_grad_norm": 1, "scaler": scaler, "schedule": schedule, "seed": 0}
        options |= {"checkpoint": tmp_path / f"{stop}.pt", "progress": False}
        history = fit(maxl, loader(), stop, **made, **options)
        if stop == 2:
            maxl = learner()
            made = optimizers(maxl)
            options["scaler"] = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
            history = fit(maxl, loader(), 4, **made, **options, resume=True)
        states.append((maxl.state_dict(), scaler.state_dict()))
        assert history.epochs[-1]["skipped"] == 0
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert states[0][1]["scale"] > 2.0**4
    plain = learner()
    fit(plain, loader(), 4, **optimizers(plain), schedule=schedule, seed=0, progress=False)
    assert any(not torch.equal(one, plain.state_dict()[key]) for key, one in states[0][0].items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"meta_every": 0}, ValueError, "`meta_every` must be at least 1, found 0"),
        ({"meta_every": 1.5}, TypeError, "`meta_every` must be an integer, found 1.5"),
        ({"micro_batches": 0}, ValueError, "`micro_batches` must be at least 1, found 0"),
        ({"meta_loader": 3}, TypeError, "`meta_loader` must yield batches"),
    ],
)
def test_bad_options_of_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(learner(), loader(), 1, progress=False, **options)


def test_non_finite_error_comes_out_of_another_process():
    error = NonFiniteError("meta loss", "the meta loss is nan", History(epochs=[{"epoch": 1}]))
    found = pickle.loads(pickle.dumps(error))
    assert (found.term, str(found), found.history) == ("meta loss", "the meta loss is nan", error.history)


def test_model_that_ends_in_a_softmax_is_reported_once():
    maxl = MAXL(nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=1)), PSI, head="0")
    with pytest.warns(RuntimeWarning, match="`model` must return logits, found rows that are non-negative") as found:
        fit(maxl, loader(), 2, progress=False)
    assert [one.filename for one in found] == [__file__]


def test_checkpoint_that_can_t_be_written_is_reported_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    maxl = learner()
    before = copy.deepcopy(maxl.state_dict())
    with pytest.raises(OSError, match=r"`checkpoint` must be a file that can be written, found that .* can't"):
        fit(maxl, loader(), 2, progress=False, checkpoint=tmp_path / "file" / "run.pt")
    assert all(torch.equal(value, before[name]) for name, value in maxl.state_dict().items())


def test_batch_without_labels_is_reported():
    with pytest.raises(TypeError, match=r"must yield batches \(x, y\) or \(x, y, label\), found a list of 1\."):
        fit(learner(), DataLoader(TensorDataset(data().tensors[0]), batch_size=10), 1, progress=False)


def test_history_says_how_to_have_a_test_accuracy():
    with pytest.raises(KeyError, match=r"the history has no 'test_accuracy'; .*; give fit a test_loader"):
        fit(learner(), loader(), 1, progress=False)["test_accuracy"]


def test_evaluate_takes_a_learner():
    with pytest.raises(TypeError, match=r"`maxl` must be .*, found Linear\. Pass the learner, MAXL\(model, psi\)\."):
        evaluate(nn.Linear(4, 2), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "sgd"},
            "`optimizer` must be a torch.optim.Optimizer, found str. Make one with torch.optim.SGD(",
        ),
        (
            {"generator_optimizer": torch.optim.SGD},
            "`generator_optimizer` must be a torch.optim.Optimizer, found type.",
        ),
        ({"seed": [0, 1]}, "`seed` must be an integer, found [0, 1]. Train once for each of several seeds."),
    ],
)
def test_optimizers_and_seed_are_checked_before_training(options, message):
    with pytest.raises(TypeError) as raised:
        fit(learner(), loader(), 1, progress=False, **options)
    assert message in str(raised.value)


def test_swapped_optimizers_are_reported():
    maxl = learner()
    pair = optimizers(maxl)
    with pytest.raises(ValueError, match="holds those of the other network: perhaps two optimizers are swapped"):
        maxl.step(*data().tensors, pair["generator_optimizer"], pair["optimizer"])
