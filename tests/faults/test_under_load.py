"""What fails around a run: workers, disks, folders, memory, other runs, other threads."""

import contextlib
import copy
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import maxl_l2l.checkpoints.atomic_files
from faults import program
from maxl_l2l import MAXL, LabelGenerator, NonFiniteError, check_model, fit

TESTS = Path(__file__).parents[1]


def data(size=48):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def steps(path):
    return torch.load(path, weights_only=True)["progress"]["steps"]


def start(loader, path=None, epochs=2, **options):
    maxl = program.learner()
    history = fit(maxl, loader, epochs, **program.parts(maxl), progress=False, checkpoint=path, seed=1, **options)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs], maxl.state_dict()


def notes(caught):
    return " ".join(getattr(caught.value, "__notes__", []))


# ---- data


class Fails(TensorDataset):
    """Fails, or ends its process, at one of its samples in an epoch."""

    def __init__(self, how, epoch=1):
        super().__init__(*data().tensors)
        self.how, self.left = how, epoch

    def __getitem__(self, index):
        if index == 20:
            if self.left == 0:
                self.how()
            self.left -= 1
        return super().__getitem__(index)


def loses_its_file():
    raise FileNotFoundError("sample 20 is gone")


def test_data_that_fail_are_reported_with_the_place_and_the_run_continues_from_before(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(FileNotFoundError, match="sample 20 is gone") as caught:
        start(DataLoader(Fails(loses_its_file), 8), path)
    assert notes(caught) == (
        f"fit stopped at step 9 (epoch 2). The last checkpoint is {path}; the parameters before this step are in "
        f"{path}.stopped."
    )
    assert (steps(path), steps(f"{path}.stopped")) == (6, 8)
    whole = start(DataLoader(data(), 8))
    assert program.same(start(DataLoader(data(), 8), path, resume=True), whole)
    os.rename(f"{path}.stopped", path)
    assert program.same(start(DataLoader(data(), 8), path, resume=True), whole)


def test_data_that_fail_at_once_leave_no_file(tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(FileNotFoundError) as caught:
        start(DataLoader(Fails(loses_its_file, epoch=0), 48), path)
    assert notes(caught) == "fit stopped at step 1 (epoch 1). The last checkpoint is none yet."
    assert [file.name for file in tmp_path.iterdir()] == [".run.pt.lock"]


def test_data_that_fail_without_a_checkpoint_say_how_to_keep_a_run():
    with pytest.raises(FileNotFoundError) as caught:
        start(DataLoader(Fails(loses_its_file), 8))
    assert notes(caught).endswith("Pass checkpoint= to save a run; the learner holds the parameters before this step.")


def dies():
    time.sleep(1)  # the batches before it are to arrive
    os._exit(7)


def test_worker_that_dies_is_reported_and_the_run_continues_from_before(tmp_path):
    path = tmp_path / "run.pt"
    loader = DataLoader(Fails(dies, epoch=0), 8, num_workers=1)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*exited unexpectedly") as caught:
        start(loader, path)
    assert "fit stopped at step" in notes(caught)
    Path(f"{path}.stopped").rename(path)
    assert steps(path) == 2
    assert program.same(start(DataLoader(data(), 8), path, resume=True), start(DataLoader(data(), 8)))


def test_worker_that_is_found_dead_while_its_run_is_being_saved_is_reported_too(tmp_path):
    """As when a batch can't be read because its worker is about to end: torch's handler of SIGCHLD raises later."""

    def dead(number, frame):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    def failing():
        signal.signal(signal.SIGUSR1, dead)
        learner.network.register_state_dict_pre_hook(lambda *given: signal.raise_signal(signal.SIGUSR1))
        raise ConnectionResetError("the worker's socket is closed")

    path, learner = tmp_path / "run.pt", program.learner()
    loader = DataLoader(Fails(failing, epoch=0), 8)
    with pytest.raises(RuntimeError, match="exited unexpectedly") as caught:
        fit(learner, loader, 2, **program.parts(learner), progress=False, checkpoint=path, seed=1)
    assert isinstance(caught.value.__context__, ConnectionResetError)
    assert notes(caught).endswith(f"the parameters before this step are in {path}.stopped.")
    assert steps(f"{path}.stopped") == 2
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


# ---- disks and folders

PROGRAM = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from faults import program
    {before}
    program.trained(Path({path!r}))
"""


def run(path, before="", **options):
    """The program in a process of its own, with what is to be done before."""
    source = textwrap.dedent(PROGRAM).format(tests=str(TESTS), path=str(path), before=before)
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, **options)


def test_disk_that_fills_up_ends_the_program_with_a_message_and_both_checkpoints_whole(tmp_path):
    path = tmp_path / "run.pt"
    before = """
import maxl_l2l.checkpoints.atomic_files, resource, signal
def write(self, data, count=[0], real=maxl_l2l.checkpoints.atomic_files._Disk.write):
    count[0] += 1
    if count[0] == 100:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
    return real(self, data)
maxl_l2l.checkpoints.atomic_files._Disk.write = write
"""
    done = run(path, before)
    assert done.returncode == 1
    assert "`checkpoint` must be a file that can be written, found that " in done.stderr
    assert (
        "is intact: free disk space and go on with resume=True; the learner holds what it has learned." in done.stderr
    )
    assert steps(path) - steps(f"{path}.previous") in (0, 1)
    assert not list(tmp_path.glob(".run.pt.*.part"))


@pytest.mark.skipif(not os.path.isdir("/proc/1"), reason="a folder in which not even root can write")
def test_folder_that_is_read_only_is_reported_before_training():
    message = r"`checkpoint` must be a file that can be written, found that /proc/1/run\.pt can't: "
    maxl = program.learner()
    before = copy.deepcopy(maxl.state_dict())
    with pytest.raises(OSError, match=message):
        fit(maxl, DataLoader(data(), 8), 1, progress=False, checkpoint="/proc/1/run.pt")
    assert program.same(dict(maxl.state_dict()), dict(before))


def holds(path, ready, leave):
    def loader():
        yield from [tuple(data().tensors)]
        ready.set()
        leave.wait()

    class Once:
        def __iter__(self):
            return loader()

    fit(program.learner(), Once(), 1, progress=False, checkpoint=path)


@contextlib.contextmanager
def other_run(path):
    """A run of another process that writes this file and waits in an epoch: the process, and what lets it go on."""
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=holds, args=(path, ready, leave))
    process.start()
    try:
        assert ready.wait(60)
        yield process, leave
    finally:
        process.kill()
        process.join()


def test_second_run_on_the_same_file_is_refused_while_the_first_one_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(maxl_l2l.checkpoints.atomic_files, "PATIENCE", 0.2)
    message = (
        r"`checkpoint` must be a file that no other run writes, found that one which still runs writes .*run\.pt\."
    )
    with other_run(tmp_path / "run.pt") as (process, leave):
        with pytest.raises(BlockingIOError, match=message):
            start(DataLoader(data(), 8), tmp_path / "run.pt")
        assert len(start(DataLoader(data(), 8), tmp_path / "other.pt")[0]) == 2  # in the same folder
        leave.set()
        process.join()
        assert process.exitcode == 0
    assert len(start(DataLoader(data(), 8), tmp_path / "run.pt")[0]) == 2


def test_first_run_being_killed_lets_the_second_one_begin_and_its_parts_are_removed(tmp_path):
    with other_run(tmp_path / "run.pt") as (process, _):
        (tmp_path / ".run.pt.abcdefgh.part").write_bytes(b"half")
        process.kill()
        process.join()
        start(DataLoader(data(), 8), tmp_path / "run.pt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".run.pt.lock", "run.pt", "run.pt.previous"]


def test_file_system_without_links_keeps_the_previous_checkpoint_too(tmp_path, monkeypatch):
    def link(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "run.pt"
    start(DataLoader(data(), 8), path)
    assert (steps(path), steps(f"{path}.previous")) == (12, 6)


# ---- memory

MEMORY = """
    import resource, sys
    import torch
    sys.path.insert(0, {tests!r})
    from faults import program
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from maxl_l2l import MAXL, fit

    class Greedy(nn.Linear):
        count = 0
        def forward(self, x):
            Greedy.count += 1
            if Greedy.count == {call}:
                with open("/proc/self/statm") as file:
                    used = int(file.read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, -1))
                torch.zeros(2**27).sum()
            return super().forward(x)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), Greedy(8, 8), nn.Linear(8, 2)), [2, 3])
    x = torch.randn(32, 4)
    fit(maxl, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8), 2, progress=False, checkpoint={path!r})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory")
def test_memory_that_is_not_enough_in_a_hypergradient_is_reported_with_advice(tmp_path):
    path = tmp_path / "run.pt"
    source = textwrap.dedent(MEMORY).format(tests=str(TESTS), path=str(path), call=22)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "can't allocate memory" in done.stderr
    if sys.version_info >= (3, 11):
        assert "The memory was not enough: micro_batches=2 halves what a step needs of it." in done.stderr
    assert steps(path) == 4
    assert steps(f"{path}.stopped") >= 5


@pytest.mark.parametrize("call", range(1, 7))
def test_memory_that_is_not_enough_anywhere_in_a_step_leaves_everything_as_it_was(call):
    class Greedy(nn.Linear):
        left = -1

        def forward(self, x):
            self.__class__.left -= 1
            if self.left == 0:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), Greedy(8, 8), nn.ReLU(), nn.Linear(8, 2)), [2, 3])
    optimizer = torch.optim.Adam(maxl.network.parameters())
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters())
    x, y = data(8).tensors
    maxl.step(x, y, optimizer, generator_optimizer)
    kept = [dict(maxl.state_dict()), optimizer.state_dict(), generator_optimizer.state_dict(), torch.get_rng_state()]
    before = copy.deepcopy(kept)
    Greedy.left = call
    try:
        maxl.step(x, y, optimizer, generator_optimizer)
    except torch.cuda.OutOfMemoryError:
        assert program.same(kept[:3], before[:3])
        assert torch.equal(torch.get_rng_state(), before[3])
    else:
        assert Greedy.left > 0, "the step has fewer passes than that"
    Greedy.left = -1
    assert maxl.step(x, y, optimizer, generator_optimizer).primary_loss.isfinite()


# ---- threads


def stepping(seed, count=20):
    """Steps of a learner of its own, without random numbers, so that they can be compared."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))
    maxl = MAXL(model, [2, 3])
    optimizer = torch.optim.Adam(maxl.network.parameters(), lr=0.01)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
    x, y = data().tensors

    def steps():
        for number in range(count):
            maxl.step(x, y, optimizer, generator_optimizer, method=("forward", "unrolled")[number % 2])
            maxl.hypergradient(x, y, optimizer=optimizer)
            learner = maxl.clone()
            learner.adapt(learner.loss(x, y))
            learner.meta_loss(x, y).backward()
        assert check_model(maxl, x, y).ok

    return maxl, steps


def in_threads(*functions):
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_two_learners_in_two_threads_get_their_own_results():
    made = [stepping(seed) for seed in (1, 2, 3)]
    assert in_threads(*(steps for _, steps in made)) == []
    for seed, (maxl, _) in zip((1, 2, 3), made):
        alone, steps = stepping(seed)
        steps()
        torch.testing.assert_close(maxl.state_dict(), alone.state_dict(), rtol=0, atol=0)
        for own, other in zip(maxl.parameters(), alone.parameters()):
            torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=0)


def test_dropout_masks_of_one_thread_are_not_those_of_another():
    """The forward-mode pass repeats the mask of the inner gradient, so it must be exact under disturbance too."""

    def exact(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2)).double()
        maxl = MAXL(model, [2, 3])
        x, y = data().tensors

        def compare():
            for _ in range(20):
                assert check_model(maxl, x.double(), y).ok

        return compare

    assert in_threads(*(exact(seed) for seed in range(3))) == []


def test_second_fit_in_a_process_is_refused_clearly():
    refused = []

    class Nested:
        def __iter__(self):
            with pytest.raises(
                RuntimeError, match="`fit` must be the only one at work in a process, as runs share its"
            ):
                start(DataLoader(data(), 8))
            refused.extend(in_threads(lambda: start(DataLoader(data(), 8))))
            return iter(DataLoader(data(), 8))

    start(Nested(), epochs=1)
    assert [type(error) for error in refused] == [RuntimeError]
    assert len(start(DataLoader(data(), 8))[0]) == 2


def test_process_that_is_forked_while_a_thread_computes_can_compute_too():
    _, steps = stepping(1, count=10)
    statuses, done = [], threading.Event()

    def fork():
        while not done.is_set() and len(statuses) < 3:
            process = multiprocessing.get_context("fork").Process(target=stepping(2, count=1)[1])
            process.start()
            process.join(60)
            statuses.append(process.exitcode)
            process.kill()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of a fork in a process with threads
        assert in_threads(steps, fork) == []
    done.set()
    assert statuses == [0] * len(statuses) != []


# ---- what a checkpoint holds


def wave(epoch):
    return 0.5 * (1 + np.cos(epoch / 4))


def numpys(**given):
    """A run whose numbers are NumPy's."""
    maxl = MAXL(program.learner().module, [2, 3], gamma=np.float64(2.0), entropy_weight=np.float32(0.25))
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=np.float64(0.1), momentum=0.9)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, wave)]
    options = {"optimizer": optimizer, "schedulers": schedulers, "max_grad_norm": np.float64(1.0), "progress": False}
    history = fit(maxl, DataLoader(data(), 8), 2, seed=1, **options, **given)
    return [record["primary_loss"] for record in history.epochs], maxl.state_dict()


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    whole = numpys()
    numpys(checkpoint=tmp_path / "run.pt", time_limit=1e-9)
    assert program.same(numpys(checkpoint=tmp_path / "run.pt", resume=True), whole)


def test_state_that_could_not_be_loaded_again_is_reported_before_training(tmp_path):
    class Places:
        def __init__(self):
            self.path = tmp_path

        def __call__(self, epoch):
            return 1.0

    maxl = program.learner()
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, Places())]
    message = "must hold tensors and plain data alone, found something else in the state of scheduler 0: .*Path"
    with pytest.raises(ValueError, match=message):
        fit(
            maxl, [tuple(data().tensors)], 1, optimizer=optimizer, schedulers=schedulers, checkpoint=tmp_path / "run.pt"
        )


class Unusual(nn.Module):
    """A frozen parameter of integers, one that is infinite on purpose, and a buffer that state_dict leaves out."""

    def __init__(self):
        super().__init__()
        self.order = nn.Parameter(torch.tensor([3, 2, 1, 0]), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([0.0, 0.0, 0.0, -torch.inf]), requires_grad=False)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return self.head((x[:, self.order] - self.mean) * self.mask.exp())


def test_unusual_parameters_and_buffers_are_gone_on_from(tmp_path):
    def run(**options):
        torch.manual_seed(0)
        maxl = MAXL(Unusual(), [2, 3], generator=LabelGenerator(nn.Linear(4, 5), [2, 3]))
        adam = torch.optim.Adam(maxl.network.parameters(), lr=0.1)
        history = fit(maxl, DataLoader(data(), 8), 2, optimizer=adam, seed=1, progress=False, **options)
        return [record["primary_loss"] for record in history.epochs], dict(maxl.named_buffers()), maxl.state_dict()

    whole = run()
    run(checkpoint=tmp_path / "run.pt", time_limit=1e-9)
    assert program.same(run(checkpoint=tmp_path / "run.pt", resume=True), whole)
    maxl = MAXL(Unusual(), [2, 3], generator=LabelGenerator(nn.Linear(4, 5), [2, 3]))
    x, y = data(8).tensors
    with pytest.raises(NonFiniteError) as caught:
        maxl.hypergradient(x * torch.nan, y)
    assert caught.value.term == "input"


def test_checkpoint_whose_earlier_one_alone_is_left_is_asked_for(tmp_path):
    path = tmp_path / "run.pt"
    start(DataLoader(data(), 8), path)
    path.unlink()
    message = r"`checkpoint` must be there to go on from, found .*run\.pt\.previous alone\. Rename it to run\.pt to go"
    with pytest.raises(FileNotFoundError, match=message):
        start(DataLoader(data(), 8), path, resume=True)
    assert steps(f"{path}.previous") == 6


def test_parts_of_another_run_s_file_are_left_alone(tmp_path):
    (tmp_path / ".run.pt.seed1.abcdefgh.part").write_bytes(b"half")
    (tmp_path / ".run.pt.abcdefgh.part").write_bytes(b"half")
    start(DataLoader(data(), 8), tmp_path / "run.pt")
    assert [file.name for file in tmp_path.glob(".*.part")] == [".run.pt.seed1.abcdefgh.part"]


def test_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert len(start(DataLoader(data(), 8), tmp_path / "run.pt")[0]) == 2


def test_link_to_a_checkpoint_stays_one_and_a_folder_that_changes_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run.pt").symlink_to(tmp_path / "scratch" / "run.pt")
    monkeypatch.chdir(tmp_path)

    class Moves(TensorDataset):
        def __getitem__(self, index):
            monkeypatch.chdir(tmp_path.parent)
            return super().__getitem__(index)

    start(DataLoader(Moves(*data().tensors), 8), "run.pt")
    assert (tmp_path / "run.pt").is_symlink()
    assert steps(tmp_path / "scratch" / "run.pt") == 12


def test_random_numbers_without_a_state_are_left_alone():
    dataset = data()
    dataset.numbers = random.SystemRandom()
    assert len(start(DataLoader(dataset, 8))[0]) == 2
