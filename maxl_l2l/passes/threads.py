"""Threads: what threads of one process must not do at the same time."""

import contextlib
import os
import threading
from collections.abc import Iterator

COMPUTING = threading.RLock()
"""Held while derivatives are computed. Random numbers that are drawn again, levels of forward-mode derivatives, kernels
that are chosen and modules whose tensors are swapped are the process's: two threads would get each other's."""
_RUNNING = threading.Lock()


def _after_fork() -> None:
    global _RUNNING
    COMPUTING.release()
    _RUNNING = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A process that is forked in the midst of another thread's step would find the lock held, and what it guards.
    os.register_at_fork(before=COMPUTING.acquire, after_in_parent=COMPUTING.release, after_in_child=_after_fork)


@contextlib.contextmanager
def only_run() -> Iterator[None]:
    """Surrounds a run.

    Raises:
        RuntimeError: There is one in this process already: both would draw from the same random numbers, so that
            neither could be repeated or resumed.
    """
    lock = _RUNNING
    if not lock.acquire(blocking=False):
        raise RuntimeError(
            "`fit` must be the only one at work in a process, as runs share its random numbers, found another one that "
            "has not returned. Start a process for each run, or train with maxl.step() in threads."
        )
    try:
        yield
    finally:
        lock.release()
