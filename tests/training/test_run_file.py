"""Runs that last: resumed at any step, they end as uninterrupted ones do; time limits, settings, full disks."""

import copy
import errno
import io
import math
import os
import random
import tempfile

import numpy as np
import pytest
import torch
from faults import program
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

import maxl_l2l.training.clock
import maxl_l2l.training.progress
from maxl_l2l import MAXL, AuxiliaryLabelGenerator, NonFiniteError, fit
from maxl_l2l.training.replay import Pairs

PSI = [2, 3]
EPOCHS, BATCHES = 2, 3


def learner(width=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 2))
    return MAXL(model, PSI)


def data(size=24, seed=0):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x[:, 0] > 0).long())


class Augmented(Dataset):
    """Items with noise from torch's random numbers."""

    def __init__(self, size=24, seed=0):
        self.data = data(size, seed)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + 0.1 * torch.randn(4), y


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(24):
            x = torch.randn(4)
            yield x, (x[0] > 0).long()


class Drawing:
    """Indices that are drawn when they are asked for, from torch's random numbers."""

    def __iter__(self):
        return (int(torch.randint(24, ())) for _ in range(24))

    def __len__(self):
        return 24


def numbers():
    return torch.Generator().manual_seed(7)


def with_shared_generator():
    shared = numbers()
    return (
        DataLoader(Augmented(), 8, shuffle=True, generator=shared),
        DataLoader(Augmented(10, 5), 5, shuffle=True, generator=shared),
    )


def meta():
    return DataLoader(Augmented(10, 5), 5, shuffle=True)  # two batches, so that its second pass begins inside an epoch


LOADERS = {
    "shuffled": lambda: (DataLoader(data(), 8, shuffle=True), None),
    "own generator": lambda: (DataLoader(data(), 8, shuffle=True, generator=numbers()), None),
    "sampler's generator": lambda: (DataLoader(data(), 8, sampler=RandomSampler(data(), generator=numbers())), None),
    "replacement": lambda: (DataLoader(data(), 8, sampler=RandomSampler(data(), True, generator=numbers())), None),
    "weighted": lambda: (DataLoader(data(), 8, sampler=WeightedRandomSampler([1.0, 2.0] * 12, 24)), None),
    "augmented": lambda: (DataLoader(Augmented(), 8, shuffle=True), None),
    "drawing": lambda: (DataLoader(Augmented(), 8, sampler=Drawing()), None),
    "stream": lambda: (DataLoader(Stream(), 8), None),
    "list": lambda: (list(DataLoader(data(), 8)), None),
    "cycled": lambda: (DataLoader(Augmented(), 8, shuffle=True), meta()),
    "cycled list": lambda: (DataLoader(Augmented(), 8, shuffle=True), list(DataLoader(data(10, 5), 5))),
    "shared generator": with_shared_generator,
    "next": lambda: (DataLoader(Augmented(), 8, shuffle=True), "next"),
    "next of a list": lambda: (list(DataLoader(data(), 8)), "next"),
    "next with a generator": lambda: (DataLoader(Augmented(), 8, shuffle=True, generator=numbers()), "next"),
}
WITH_WORKERS = {
    "workers": lambda: (DataLoader(Augmented(), 4, shuffle=True, num_workers=2), None),
    "workers, next": lambda: (DataLoader(Augmented(), 4, shuffle=True, num_workers=2), "next"),
    "workers, cycled": lambda: (
        DataLoader(Augmented(), 4, shuffle=True, num_workers=2, generator=numbers()),
        DataLoader(Augmented(10, 5), 5, shuffle=True, num_workers=1),
    ),
    "workers, drawing": lambda: (DataLoader(Augmented(), 4, sampler=Drawing(), num_workers=2, prefetch_factor=1), None),
}
WITH_GENERATORS = {  # torch's, Python's, NumPy's, and a dataset's own
    "every generator": lambda: (DataLoader(program.Noisy(24), 8, shuffle=True), None),
    "every generator of a part": lambda: (DataLoader(Subset(program.Noisy(30), range(24)), 8), meta()),
}


@pytest.fixture
def minutes(monkeypatch):
    """A clock that advances by a minute with each batch, and not otherwise."""
    elapsed, mark = [0.0], Pairs.mark

    def ticking(pairs):
        elapsed[0] += 1
        mark(pairs)

    monkeypatch.setattr(Pairs, "mark", ticking)
    monkeypatch.setattr(maxl_l2l.training.clock, "monotonic", lambda: 60 * elapsed[0])
    return elapsed


def trained(kind, schedule="batch", epochs=EPOCHS, noise=0, **options):
    """What a program that is started anew trains, with all that a run can carry."""
    loader, meta_loader = {**LOADERS, **WITH_WORKERS, **WITH_GENERATORS}[kind]()
    maxl = learner()
    optimizers = {
        "optimizer": torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9),
        "generator_optimizer": torch.optim.Adam(maxl.generator.parameters(), lr=0.01),
    }
    parts = {
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizers["optimizer"], 1, 0.5),
        "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3),
        **optimizers,
    }
    torch.manual_seed(1000 + noise)
    random.seed(1000 + noise)
    np.random.seed(1000 + noise)
    history = fit(
        maxl,
        loader,
        epochs,
        **optimizers,
        schedulers=[parts["scheduler"]],
        scaler=parts["scaler"],
        schedule=schedule,
        meta_loader=meta_loader,
        meta_every=2,
        test_loader=DataLoader(Augmented(10, 9), 4, shuffle=True, generator=numbers()),
        progress=False,
        **options,
    )
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in history.epochs]
    states = {name: part.state_dict() for name, part in parts.items()}
    return {"records": records, "maxl": maxl.state_dict(), "random": torch.get_rng_state(), **states}


def assert_same(found, expected):
    assert found["records"] == expected["records"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def visible(folder):
    """What one sees in a folder."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def stopped_after(count, kind, schedule, path):
    """The same program, stopped by its time limit after so many batches, and started again."""
    part = trained(kind, schedule, checkpoint=path, time_limit=count + 1.5)
    return part, trained(kind, schedule, checkpoint=path, resume=True, noise=1)


# ---- a run that is resumed


@pytest.mark.parametrize("schedule", ["batch", "epoch"])
@pytest.mark.parametrize("kind", LOADERS)
def test_run_stopped_at_any_batch_and_resumed_equals_an_uninterrupted_one(kind, schedule, minutes, tmp_path):
    whole = trained(kind, schedule)
    batches = EPOCHS * BATCHES * (2 if schedule == "epoch" else 1)
    assert minutes[0] == batches
    for count in range(1, batches):
        minutes[0] = 0.0
        part, found = stopped_after(count, kind, schedule, tmp_path / f"{count}.pt")
        assert minutes[0] == batches, "each batch is trained on once"
        assert len(part["records"]) < EPOCHS
        assert_same(found, whole)


SOME = {(kind, schedule): (1, 3, 4) for kind in WITH_GENERATORS for schedule in ("batch", "epoch")}
SOME |= {(kind, "batch"): (2, 6, 9) for kind in WITH_WORKERS} | {("workers", "epoch"): (2, 6, 9)}


@pytest.mark.parametrize(("kind", "schedule"), SOME)
def test_run_with_generators_or_workers_stopped_and_resumed_equals_an_uninterrupted_one(
    kind, schedule, minutes, tmp_path
):
    whole = trained(kind, schedule)
    for count in SOME[kind, schedule]:
        minutes[0] = 0.0
        _, found = stopped_after(count, kind, schedule, tmp_path / f"{count}.pt")
        assert_same(found, whole)


@pytest.mark.parametrize("schedule", ["batch", "epoch"])
@pytest.mark.parametrize("kind", ["augmented", "cycled", "next", "shared generator", "workers"])
def test_run_stopped_after_every_batch_equals_an_uninterrupted_one(kind, schedule, minutes, tmp_path):
    whole, batches = trained(kind, schedule, checkpoint=tmp_path / "whole.pt"), minutes[0]
    path, found = tmp_path / "run.pt", {"records": []}
    for start in range(int(batches) + 1):
        if len(found["records"]) == EPOCHS:
            break
        found = trained(kind, schedule, checkpoint=path, resume=True, noise=start, time_limit=0.001)
    assert minutes[0] == 2 * batches
    assert_same(found, whole)
    assert saved_steps(path) == saved_steps(tmp_path / "whole.pt")


def test_seed_of_a_resumed_run_leaves_the_random_state(minutes, tmp_path):
    whole = trained("augmented", seed=5)
    trained("augmented", seed=5, checkpoint=tmp_path / "run.pt", time_limit=2.5)
    found = trained("augmented", seed=5, checkpoint=tmp_path / "run.pt", resume=True)
    assert_same(found, whole)
    torch.manual_seed(1000)
    assert torch.equal(found["random"], torch.get_rng_state())


def test_checkpoint_inside_an_epoch_loads_as_plain_tensors(minutes, tmp_path):
    trained("cycled", checkpoint=tmp_path / "run.pt", time_limit=3.5)
    content = torch.load(tmp_path / "run.pt", weights_only=True)
    assert content["progress"]["steps"] == content["ranks"][0]["inside"]["place"]["done"] == 2
    assert visible(tmp_path) == ["run.pt", "run.pt.previous"]


def test_longer_run_may_go_on_from_inside_a_shorter_one(minutes, tmp_path):
    whole = trained("augmented", epochs=3)
    trained("augmented", checkpoint=tmp_path / "run.pt", time_limit=5.5)
    assert_same(trained("augmented", epochs=3, checkpoint=tmp_path / "run.pt", resume=True), whole)


def test_run_goes_on_from_before_the_step_that_was_not_finite(tmp_path):
    class Spoiled(Augmented):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x * math.nan if self.spoiled and index == 20 else x), y

    def run(spoiled, path, resume=False):
        maxl, dataset = learner(), Spoiled()
        dataset.spoiled = spoiled
        history = fit(maxl, DataLoader(dataset, 8), 1, seed=3, progress=False, checkpoint=path, resume=resume)
        return maxl.state_dict(), history["primary_loss"]

    whole = run(False, tmp_path / "whole.pt")
    with pytest.raises(NonFiniteError, match=r"step 3 \(epoch 1\)"):
        run(True, tmp_path / "run.pt")
    torch.testing.assert_close(run(False, tmp_path / "run.pt.stopped", resume=True), whole, rtol=0, atol=0)


def test_loader_that_has_become_shorter_is_refused(minutes, tmp_path):
    maxl, path = learner(), tmp_path / "run.pt"
    fit(maxl, DataLoader(data(), 4), 1, progress=False, checkpoint=path, time_limit=6.5)
    message = (
        r"`loader` must yield the batches of the run that `checkpoint` is of, found 3 in an epoch of which 5 were done"
    )
    with pytest.raises(ValueError, match=message):
        fit(learner(), DataLoader(data(), 8), 1, progress=False, checkpoint=path, resume=True)


@pytest.mark.parametrize("schedule", ["batch", "epoch"])
def test_progress_bar_of_a_resumed_run_begins_where_that_stands(schedule, minutes, tmp_path, monkeypatch):
    bars, made = maxl_l2l.training.progress.tqdm, []

    def bar(**options):
        made.append(bars(**options, file=io.StringIO()))
        return made[-1]

    monkeypatch.setattr(maxl_l2l.training.progress, "tqdm", bar)
    options = {"schedule": schedule, "meta_every": 2, "progress": True, "checkpoint": tmp_path / "run.pt"}
    fit(learner(), DataLoader(data(), 8), 2, **options, time_limit=6.5)
    fit(learner(), DataLoader(data(), 8), 2, **options, resume=True)
    total = EPOCHS * BATCHES * (2 if schedule == "epoch" else 1)
    assert [(one.initial, one.n, one.total) for one in made] == [(0, 5, total), (5, total, total)]


# ---- when a run saves, and when it stops


def saved_steps(path):
    return torch.load(path, weights_only=True)["progress"]["steps"] if path.exists() else None


@pytest.mark.parametrize(
    ("checkpoint_minutes", "expected"),
    [(None, [None, None, None, 3, 3, 3, 6]), (2, [None, None, 2, 2, 4, 4, 6]), (60, [None] * 6 + [6])],
)
def test_checkpoint_is_written_when_its_minutes_have_passed(
    checkpoint_minutes, expected, minutes, monkeypatch, tmp_path
):
    path, seen, mark = tmp_path / "run.pt", [], Pairs.mark
    monkeypatch.setattr(Pairs, "mark", lambda pairs: seen.append(saved_steps(path)) or mark(pairs))
    fit(
        learner(),
        DataLoader(data(), 8),
        EPOCHS,
        progress=False,
        checkpoint=path,
        checkpoint_minutes=checkpoint_minutes,
    )
    assert [*seen, saved_steps(path)] == expected


@pytest.mark.parametrize(("limit", "steps"), [(1e-9, 1), (2.9, 1), (3, 2), (4.1, 3), (7.9, 6), (60, 6)])
def test_run_stops_while_there_is_time_for_two_more_steps(limit, steps, minutes, tmp_path):
    path = tmp_path / "run.pt"
    history = fit(learner(), DataLoader(data(), 8), EPOCHS, progress=False, checkpoint=path, time_limit=limit)
    assert minutes[0] == saved_steps(path) == steps
    assert len(history) == (2 if limit == 60 else (steps - 1) // BATCHES)  # an epoch's last step is not yet its end


def test_evaluation_and_saving_count_for_the_time_limit(minutes, monkeypatch, tmp_path):
    """A step takes a minute, evaluation two and saving half of one, so five are kept."""

    def slow_save(content, file, save=torch.save):
        minutes[0] += 0.5 * ("format" in content)
        save(content, file)

    class Test:
        def __iter__(self):
            minutes[0] += 2
            return iter(DataLoader(data(), 8))

    monkeypatch.setattr(torch, "save", slow_save)
    path = tmp_path / "run.pt"
    options = {"progress": False, "checkpoint": path, "checkpoint_minutes": 60, "test_loader": Test()}
    history = fit(learner(), DataLoader(data(), 8), EPOCHS, **options, time_limit=10)
    # 1 + 0.5 for the first step and a save to measure, 2 for the others, 2 for evaluation: 5.5, and 4.5 are too few.
    assert len(history) == 1
    assert minutes[0] == 6
    assert saved_steps(path) == 3


def test_time_limit_without_a_checkpoint_warns_of_what_is_lost(minutes):
    maxl = learner()
    before = copy.deepcopy(maxl.state_dict())
    with pytest.warns(
        RuntimeWarning, match=r"`time_limit` ended the run inside epoch 2. Without a checkpoint"
    ) as caught:
        history = fit(maxl, DataLoader(data(), 8), EPOCHS, progress=False, time_limit=5.5)
    assert caught[0].filename == __file__
    assert len(history) == 1
    assert not torch.equal(maxl.state_dict()["network.module.0.weight"], before["network.module.0.weight"])


def test_run_that_is_done_is_not_stopped_nor_saved_again(minutes, tmp_path):
    path = tmp_path / "run.pt"
    expected = trained("shuffled", checkpoint=path, time_limit=60)
    inode = path.stat().st_ino
    assert_same(
        trained("shuffled", checkpoint=path, resume=True, time_limit=1e-9) | {"random": 0}, expected | {"random": 0}
    )
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"time_limit": 0}, ValueError, "`time_limit` must be a finite number > 0, found 0. It is in minutes"),
        ({"time_limit": "1h"}, TypeError, "`time_limit` must be a number, found '1h'"),
        ({"checkpoint_minutes": -1, "checkpoint": "x"}, ValueError, "`checkpoint_minutes` must be a finite number > 0"),
        ({"checkpoint_minutes": 5}, ValueError, "`checkpoint_minutes` needs `checkpoint`, found None"),
        ({"settings": [1]}, TypeError, "`settings` must be a mapping of names to plain data, found list"),
        ({"settings": {"lr": 1, "width": 2}}, ValueError, "`settings` must not name what is recorded anyway, found lr"),
        ({"settings": {"model": nn.ReLU()}}, TypeError, "`settings` must be plain data that JSON can hold, found that"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        fit(learner(), DataLoader(data(), 8), 1, progress=False, **options)


# ---- settings


def test_settings_join_the_history():
    maxl = learner()
    history = fit(maxl, DataLoader(data(), 8), 1, progress=False, settings={"width": 0.5, "sizes": (1, 2)})
    assert history.settings["width"] == 0.5
    assert history.settings["sizes"] == [1, 2]
    assert history.settings["psi"] == PSI
    assert history.settings["parameters"] == [
        sum(p.numel() for p in maxl.network.parameters()),
        sum(p.numel() for p in maxl.generator.parameters()),
    ]


def test_learner_without_a_hierarchy_has_no_psi_even_if_its_model_has_something_of_that_name():
    class Targets(nn.Linear):
        def forward(self, x, y):
            return super().forward(x)

    model = nn.Sequential(nn.Linear(4, 2))
    model.hierarchy = "of wolves"
    maxl = AuxiliaryLabelGenerator(model, Targets(4, 2), 2)
    assert "psi" not in fit(maxl, DataLoader(data(), 8), 1, progress=False).settings


GIVEN = {"width": 0.5, "sizes": (1, 2)}


def resumed(path, maxl, epochs=2, lr=0.1, **options):
    options = {"seed": 1, "settings": GIVEN, **options}
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    options |= {"optimizer": optimizer, "schedulers": [scheduler], "progress": False}
    return fit(maxl, DataLoader(data(), 8), epochs, **options, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr": 0.01, "settings": GIVEN | {"width": 1}},
            "lr 0.1 where this run has 0.01, width 0.5 where this run has 1",
        ),
        ({"settings": GIVEN | {"depth": 3}}, "depth not given where this run has 3"),
        ({"settings": {"width": 0.5}}, r"sizes \[1, 2\] where this run has none"),
        ({"settings": GIVEN | {"sizes": [2, 1]}}, r"sizes \[1, 2\] where this run has \[2, 1\]"),
        ({"seed": None}, "seed 1 where this run has None"),
        ({"width": 16}, r"parameters \[119, 101\] where this run has \[231, 197\]"),
        ({"schedule": "epoch"}, "schedule batch where this run has epoch"),
        ({"meta_loader": "next"}, "meta_loader missing where this run has next"),
        ({"max_grad_norm": 1.0}, "max_grad_norm None where this run has 1.0"),
    ],
)
def test_checkpoint_of_other_settings_is_refused_before_anything_is_loaded(changes, message, tmp_path):
    path = tmp_path / "run.pt"
    resumed(path, learner(), epochs=1)
    maxl = learner(changes.get("width", 8))
    before, random = copy.deepcopy(maxl.state_dict()), torch.get_rng_state()
    with pytest.raises(
        ValueError,
        match=rf"`checkpoint` must be of a run with the same settings, found {message} in .*run\.pt\. Use these",
    ):
        resumed(path, maxl, **{name: value for name, value in changes.items() if name != "width"})
    torch.testing.assert_close(maxl.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_settings_inside_settings_are_compared_one_by_one(tmp_path):
    path, kept = tmp_path / "run.pt", {"recipe": {"rate": 1, "decay": "none"}}
    resumed(path, learner(), epochs=1, settings=kept)
    with pytest.raises(ValueError, match=r"found recipe\.rate 1 where this run has 2 in"):
        resumed(path, learner(), settings={"recipe": {"rate": 2, "decay": "none"}})


def test_epochs_lists_for_tuples_and_the_version_are_no_differences(tmp_path):
    path, maxl = tmp_path / "run.pt", learner()
    assert len(resumed(path, maxl, epochs=1)) == 1
    content = torch.load(path, weights_only=True)
    content["progress"]["history"]["settings"]["torch"] = "0.0"
    torch.save(content, path)
    assert len(resumed(path, maxl, epochs=3, settings=GIVEN | {"sizes": [1, 2]})) == 3


def test_learning_rate_that_a_scheduler_has_moved_is_no_difference(tmp_path):
    maxl = learner()
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
    options = {"optimizer": optimizer, "schedulers": [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]}
    options |= {"progress": False, "checkpoint": tmp_path / "run.pt", "resume": True}
    fit(maxl, DataLoader(data(), 8), 1, **options)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert fit(maxl, DataLoader(data(), 8), 2, **options)["lr"] == [0.1, 0.05]


# ---- a disk that is full


@pytest.fixture
def full_disk(monkeypatch):
    """Lets a number of files be written, which a test sets; then the disk is full."""
    make, left = tempfile.mkstemp, [0]

    def mkstemp(*args, **kwargs):
        handle, name = make(*args, **kwargs)
        left[0] -= 1
        if left[0] < 0:
            os.close(handle)
            handle = os.open("/dev/full", os.O_WRONLY)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    return left


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")


@needs_full
@pytest.mark.parametrize("width", [8, 400])  # a small file fails when it is flushed, a large one inside torch.save
def test_full_disk_names_checkpoint_cause_and_what_is_left_and_loses_nothing(width, full_disk, tmp_path):
    path, maxl = tmp_path / "run.pt", learner(width)
    loader = DataLoader(data(), 8)
    message = r"`checkpoint` must be a file that can be written, found that .*run\.pt can't: No space left on device\. "
    with pytest.raises(
        OSError, match=message + "There is no checkpoint yet: free disk space or name another file"
    ) as caught:
        fit(maxl, loader, 3, seed=0, progress=False, checkpoint=path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__cause__ is not None
    assert visible(tmp_path) == []

    whole, maxl = learner(width), learner(width)
    fit(whole, loader, 3, seed=0, progress=False)
    full_disk[0] = 1
    message += (
        "The former checkpoint, of epoch 1, is intact: free disk space and go on with resume=True; the learner holds"
    )
    with pytest.raises(OSError, match=message):
        fit(maxl, loader, 3, seed=0, progress=False, checkpoint=path)
    assert visible(tmp_path) == ["run.pt"]
    assert saved_steps(path) == 3
    two = learner(width)
    fit(two, loader, 2, seed=0, progress=False)
    torch.testing.assert_close(maxl.state_dict(), two.state_dict(), rtol=0, atol=0)

    full_disk[0] = 9
    fit(maxl, loader, 3, seed=0, progress=False, checkpoint=path, resume=True)
    torch.testing.assert_close(maxl.state_dict(), whole.state_dict(), rtol=0, atol=0)


@needs_full
def test_full_disk_of_a_resumed_run_names_the_place_it_came_from(full_disk, minutes, tmp_path):
    full_disk[0] = 1
    path = tmp_path / "run.pt"
    fit(learner(), DataLoader(data(), 8), 2, progress=False, checkpoint=path, time_limit=2.5)
    with pytest.raises(OSError, match="The former checkpoint, of a place inside epoch 1, is intact"):
        fit(learner(), DataLoader(data(), 8), 2, progress=False, checkpoint=path, resume=True)


@needs_full
def test_full_disk_does_not_hide_a_loss_that_is_not_finite(full_disk, tmp_path):
    x, y = data().tensors
    batches = [(x, y), (x * math.nan, y)]
    message = (
        r"stopped at step 2 .*The last checkpoint is none yet; .*run\.pt\.stopped could not be written: .*No space"
    )
    with pytest.raises(NonFiniteError, match=message):
        fit(learner(), batches, 1, progress=False, checkpoint=tmp_path / "run.pt")
    assert visible(tmp_path) == []


def test_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`checkpoint` must be a file that can be written, found that .*run\.pt can't: "):
        fit(learner(), DataLoader(data(), 8), 1, progress=False, checkpoint=tmp_path / "file" / "run.pt")
