"""A pool of processes that form a gloo group, and run on request the same function with their ranks."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import coverage
import torch
import torch.distributed as dist


def _serve(connection: Any, rank: int, size: int, store: str, seconds: float, covered: bool) -> None:
    measured = coverage.Coverage(data_suffix=True) if covered else None
    if measured is not None:  # pytest-cov joins the files in the end
        measured.start()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
    )
    while (request := connection.recv()) is not None:
        function, args = request
        torch.manual_seed(0)
        try:
            connection.send((True, function(rank, *args)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    dist.destroy_process_group()
    if measured is not None:
        measured.stop()
        measured.save()


class Pool:
    """Processes with a group of their own; a context manager that stops them in the end.

    Args:
        size: How many.
        seconds: Timeout of their group.
    """

    def __init__(self, size: int = 2, seconds: float = 30) -> None:
        self.seconds = seconds
        context = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name) / "store")
        ends = [context.Pipe() for _ in range(size)]
        covered = coverage.Coverage.current() is not None
        self.connections = [ours for ours, _ in ends]
        self.processes = [
            context.Process(target=_serve, args=(theirs, rank, size, store, seconds, covered), daemon=True)
            for rank, (_, theirs) in enumerate(ends)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in ends:
            theirs.close()  # so that a process that has died is noticed

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        for process in self.processes:
            process.join(timeout=10)
            process.kill()
            process.join()
        self.folder.cleanup()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Returns what ``function(rank, *args)`` returned in each process; fails with the first error."""
        for ok, result in (found := self.attempt(function, *args)):
            assert ok, result
        return [result for _, result in found]

    def attempt(self, function: Callable[..., Any], *args: Any) -> list[tuple[bool, Any]]:
        """Returns for each process whether the function returned, and what; or its error and traceback as text.

        A process that has died has neither: ``(False, "")``.
        """
        for connection in self.connections:
            connection.send((function, args))
        return [self._answer(connection) for connection in self.connections]

    def _answer(self, connection: Any) -> tuple[bool, Any]:
        assert connection.poll(10 * self.seconds + 60), "a process hangs"
        try:
            answer: tuple[bool, Any] = connection.recv()
        except EOFError:
            return False, ""
        return answer
