"""Signals: the step is finished, the run is saved, and the process ends as the signal would have it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from faults import program
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import fit
from maxl_l2l.training.interrupts import Interrupted, Interrupts

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _usual_handlers():
    """A program that was started in the background of a shell ignores SIGINT, and so would those that it starts."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, previous[0])
    signal.signal(signal.SIGTERM, previous[1])


class Signals(TensorDataset):
    """Data that send this process a signal with one of their samples, the first time."""

    def __init__(self, number, index=20):
        x = program.Noisy().x
        super().__init__(x, (x[:, 0] > 0).long())
        self.number, self.index = number, index

    def __getitem__(self, index):
        if index == self.index and self.number:
            number, self.number = self.number, 0
            os.kill(os.getpid(), number)
        return super().__getitem__(index)


def start(data, test=None, epochs=2, **options):
    """Trains the small learner; with samples in order, number 20 is in the third batch."""
    maxl = program.learner()
    test_loader = None if test is None else DataLoader(test, 8)
    history = fit(
        maxl, DataLoader(data, 8), epochs, **program.parts(maxl), test_loader=test_loader, progress=False, **options
    )
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs]
    return records, maxl.state_dict(), torch.get_rng_state()


def steps(path):
    return torch.load(path, weights_only=True)["progress"]["steps"]


def whole(**options):
    torch.manual_seed(5)
    return start(Signals(0), **options)


@pytest.mark.parametrize(
    ("number", "error", "status"), [("SIGINT", KeyboardInterrupt, None), ("SIGTERM", SystemExit, 143)]
)
@pytest.mark.parametrize("schedule", ["batch", "epoch"])
def test_signal_ends_a_run_after_its_step_and_it_goes_on_as_if_there_had_been_none(
    number, error, status, schedule, tmp_path, capsys
):
    path, number = tmp_path / "run.pt", getattr(signal, number)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    torch.manual_seed(5)
    with pytest.raises(error) as caught:
        start(Signals(number), checkpoint=path, schedule=schedule)
    assert status is None or caught.value.code == status
    assert steps(path) == 3  # the step on the batch that was loaded when it came
    assert capsys.readouterr().err == (
        f"fit: stopped by {number.name} after step 3 (epoch 1). The run is saved in {path}: go on with resume=True.\n"
    )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    found = start(Signals(0), checkpoint=path, resume=True, schedule=schedule)
    assert program.same(found, whole(schedule=schedule))


def test_signal_inside_evaluation_does_not_wait_for_its_end_nor_step_schedulers_twice(tmp_path):
    path, seen = tmp_path / "run.pt", []

    class Test(Signals):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        start(Signals(0), Test(signal.SIGINT, index=9), checkpoint=path)
    assert len(seen) == 16  # of 48: its second batch is the last one
    found = start(Signals(0), Signals(0), checkpoint=path, resume=True)
    assert program.same(found, whole(test=Signals(0)))
    assert [record["lr"] for record in found[0]] == [0.1, 0.05]


def test_signal_without_a_checkpoint_says_that_nothing_is_saved(capsys):
    with pytest.raises(KeyboardInterrupt):
        start(Signals(signal.SIGINT))
    assert "There is no checkpoint to go on from: pass checkpoint= the next time." in capsys.readouterr().err


def test_program_s_own_handler_gets_the_signal_after_the_run_has_saved(tmp_path):
    path, seen = tmp_path / "run.pt", []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append((number, steps(path))))
    try:
        records, *_ = start(Signals(signal.SIGTERM), checkpoint=path)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert seen == [(signal.SIGTERM, 3)]
    assert records == []


def test_signal_that_the_program_ignores_stays_ignored(tmp_path):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        records, *_ = start(Signals(signal.SIGINT), checkpoint=tmp_path / "run.pt")
    finally:
        signal.signal(signal.SIGINT, previous)
    assert len(records) == 2


def test_second_signal_ends_the_run_at_once():
    late = []

    class Twice(Signals):
        def __getitem__(self, index):
            if index == 21:
                os.kill(os.getpid(), signal.SIGINT)
                late.append(index)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        start(Twice(signal.SIGINT))
    assert late == []


def test_signal_is_not_lost_in_a_run_that_fails_of_something_else(capsys):
    class Spoiled(Signals):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x * float("nan") if index == 21 else x), y

    with pytest.raises(SystemExit) as caught:
        start(Spoiled(signal.SIGTERM))
    assert caught.value.code == 143
    assert "NonFiniteError: stopped at step 3 (epoch 1)" in capsys.readouterr().err


def sleeps(started):
    started.set()
    time.sleep(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that are forked")
def test_process_that_is_forked_in_a_run_ends_by_signals_as_ever():
    class Forks(Signals):
        def __getitem__(self, index):
            if index == 9:
                started = multiprocessing.Event()
                process = multiprocessing.get_context("fork").Process(target=sleeps, args=(started,))
                process.start()
                assert started.wait(10)  # Python drops signals that come while it forks
                process.terminate()
                process.join(10)
                statuses.append(process.exitcode)
                process.kill()
            return super().__getitem__(index)

    statuses = []
    start(Forks(0), epochs=1)
    assert statuses == [-signal.SIGTERM]


def test_signal_is_looked_at_while_an_epoch_is_gone_over_again(tmp_path):
    path, seen = tmp_path / "run.pt", []
    start(Signals(0), checkpoint=path, time_limit=1e-9)  # one batch
    start(Signals(0), checkpoint=path, time_limit=1e-9, resume=True)
    before = path.read_bytes()

    class Slow(Signals):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        start(Slow(signal.SIGINT, index=4), checkpoint=path, resume=True)
    assert len(seen) == 8  # one of the two batches that were done
    assert path.read_bytes() == before


def test_workers_that_a_terminal_ends_too_do_not_hide_the_signal(tmp_path):
    """Ctrl-C reaches the workers of a data loader, which end, and the next batch never comes."""

    class Broken(Signals):
        def __getitem__(self, index):
            if index == 21:
                raise RuntimeError("DataLoader worker exited unexpectedly")
            return super().__getitem__(index)

    path = tmp_path / "run.pt"
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        start(Broken(signal.SIGINT), checkpoint=path)
    assert steps(path) == 2
    assert program.same(start(Signals(0), checkpoint=path, resume=True), whole())


def test_run_in_a_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    class Looks(Signals):
        def __getitem__(self, index):
            seen.append(signal.getsignal(signal.SIGTERM))
            return super().__getitem__(index)

    thread = threading.Thread(target=start, args=(Looks(0),))
    thread.start()
    thread.join()
    assert set(seen) == {before}


def test_batches_are_left_once_a_signal_has_come():
    interrupts = Interrupts()
    batches = interrupts.watched([1, 2, 3])
    assert next(batches) == 1
    interrupts.received = signal.SIGINT
    with pytest.raises(Interrupted):
        next(batches)


PROGRAM = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from faults import program
    program.EPOCHS = 10**6
    program.trained(Path({path!r}))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_process_saves_and_ends_with_the_customary_status(number, status, tmp_path):
    path = tmp_path / "run.pt"
    source = textwrap.dedent(PROGRAM.format(tests=str(TESTS), path=str(path)))
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "run.pt.previous").exists():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status
    assert f"fit: stopped by {number.name} after step {steps(path)} " in errors
