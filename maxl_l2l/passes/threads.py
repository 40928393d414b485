"""Threads: what threads of one process must not do at the same time."""

import contextlib
import os
import threading
from collections.abc import Iterator

COMPUTING = threading.RLock()
"""Held while derivatives are computed: random states, levels of forward-mode derivatives, the choice of kernels and
swapped tensors belong to the whole process, so that a second thread would disturb them."""
_RUNNING = threading.Lock()


def _after_fork() -> None:
    global _RUNNING
    COMPUTING.release()
    _RUNNING = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A process that is forked during another thread's step would inherit the held lock, and what it guards.
    os.register_at_fork(before=COMPUTING.acquire, after_in_parent=COMPUTING.release, after_in_child=_after_fork)


@contextlib.contextmanager
def only_run() -> Iterator[None]:
    """Surrounds a run; raises RuntimeError if there is one in this process already.

    Two would draw from the same random numbers, so that neither could be repeated or resumed.
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
