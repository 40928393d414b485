"""Runs that are killed with SIGKILL at random moments, or in the midst of writing a checkpoint, and resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch

from . import program

MEMORY = "/dev/shm"
CONTEXT = multiprocessing.get_context("forkserver")  # each process starts at once, with torch imported


def start_server() -> None:
    """Starts the process that the others are forked from. It finds modules by the environment alone."""
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        CONTEXT.set_forkserver_preload([program.__name__, "torch._dynamo"])  # which the first step imports
        ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if inherited is not None:
            os.environ["PYTHONPATH"] = inherited


def killed_or_done(folder: Path, moment: int | None, workers: int) -> None:
    """The program; it dies at a moment of writing checkpoints, counted from its start, and saves what it ends with.

    Args:
        folder: Where its checkpoint is.
        moment: Which one: each write to a file, each time one is to be put safely on the disk, linked or renamed, is
            one; None to live.
        workers: Of the data loader.
    """
    # With a server of their own, which does not end with this process, the loader's workers would stay behind.
    multiprocessing.set_start_method("fork", force=True)
    if moment is not None:
        _die_at(moment)
    result = program.trained(folder / "run.pt", workers)
    torch.save(result, folder / "result.part")
    (folder / "result.part").rename(folder / "result.pt")  # it may be killed here too


def _die_at(moment: int) -> None:
    import maxl_l2l.checkpoints.atomic_files

    left = [moment]

    def mortal(function: Callable[..., Any], is_write: bool = False) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if is_write:
                    file, data = args
                    function(file, bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    disk = maxl_l2l.checkpoints.atomic_files._Disk
    disk.write = mortal(disk.write, is_write=True)  # type: ignore[method-assign]
    os.fsync, os.link, os.replace = mortal(os.fsync), mortal(os.link), mortal(os.replace)


def attempt(folder: Path, moment: int | None, seconds: float, workers: int = 0) -> bool:
    """Starts the program and kills it after some seconds; returns whether it was killed and not done before."""
    process = CONTEXT.Process(target=killed_or_done, args=(folder, moment, workers))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the program failed with status {process.exitcode}")
    return process.exitcode != 0


def figures(kills: int = 50, seed: int = 0, workers: int = 0) -> dict[str, Any]:
    """Kills and resumes runs until there were so many kills and all have ended.

    Returns:
        ``kills``, ``writing`` (of these, in the midst of writing), ``runs``, and ``identical``, how many of the runs
        ended with the parameters, buffers, optimizers, history and random states of one that nothing has killed.
    """
    start_server()
    numbers = random.Random(seed)
    # In memory where there is such a folder: a killed process loses nothing of it, and disks are slow to be certain.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as name:
        root = Path(name)
        (root / "whole").mkdir()
        attempt(root / "whole", None, 60, workers)  # which imports what is imported late
        for left in (root / "whole").iterdir():
            left.unlink()
        begun = time.perf_counter()
        assert not attempt(root / "whole", None, 60, workers)
        longest = time.perf_counter() - begun
        whole = torch.load(root / "whole" / "result.pt")
        found = {"kills": 0, "writing": 0, "runs": 0, "identical": 0}
        while found["kills"] < kills:
            found["runs"] += 1
            folder = root / str(found["runs"])
            folder.mkdir()
            while not (folder / "result.pt").exists():
                moment = numbers.randrange(400) if numbers.random() < 0.5 else None
                if found["kills"] >= kills:
                    killed = attempt(folder, None, 60, workers)
                elif moment is not None:
                    killed = attempt(folder, moment, 60, workers)
                    found["writing"] += killed
                else:
                    killed = attempt(folder, None, longest * numbers.uniform(0.3, 1.0), workers)
                found["kills"] += killed
            found["identical"] += program.same(torch.load(folder / "result.pt"), whole)
    return found


if __name__ == "__main__":
    print(json.dumps(figures(int(sys.argv[1]) if len(sys.argv) > 1 else 50)))
