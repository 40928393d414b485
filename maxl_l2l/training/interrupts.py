"""Interrupts: signals that ask a run to end, held back until it has saved."""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

HELD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name))
ENTERED: "list[Interrupts]" = []
"""The instances that hold back signals now."""


class Interrupted(Exception):
    """Raised to leave work that can be repeated, when a signal has come."""


class Interrupts:
    """Holds back SIGINT (Ctrl-C) and SIGTERM while it is entered, until :meth:`deliver`.

    Only the first is held back: a second one acts at once. Signals that the process ignores stay ignored, and outside
    the main thread, where Python does not receive any, nothing is held back.

    Attributes:
        received: The signal that has come; 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        ENTERED.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in HELD:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    self._handlers[number] = signal.signal(number, self._hold)
        return self

    def __exit__(self, *error: object) -> None:
        while self._handlers:  # a signal may come meanwhile
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)
        if self in ENTERED:
            ENTERED.remove(self)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.received = number

    def deliver(self, number: int) -> None:
        """Does what a signal would have done; returns if the program has a handler that does.

        A SIGTERM that would have killed the process ends it with status 143.
        """
        self.__exit__()
        if signal.getsignal(number) == signal.SIG_DFL:
            _exit(number)
        signal.raise_signal(number)

    def watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Goes through batches; raises Interrupted before the next one once a signal has come."""
        for batch in batches:
            if self.received:
                raise Interrupted
            yield batch


def _after_fork() -> None:
    for one in tuple(ENTERED):
        one.__exit__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)  # processes that a run starts react to signals as usual


def _exit(number: int) -> NoReturn:
    """Ends the process in an orderly way, with the status that shells give for a signal."""
    sys.exit(128 + number)
