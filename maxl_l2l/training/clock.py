"""The clock of a run: when its next checkpoint is due, and when it has to stop."""

import contextlib
from collections.abc import Iterator
from time import monotonic

RESERVE = 2
"""How many times the longest step and the longest save so far must fit into the time left, as their times vary."""


class Clock:
    """Measures the time of a run, which can save and stop between two steps, at a step boundary.

    Args:
        checkpoint_minutes: How long after a checkpoint the next one is due; never due if None.
        time_limit: When to stop, in minutes from now on; never if None.
    """

    def __init__(self, checkpoint_minutes: float | None = None, time_limit: float | None = None) -> None:
        self.checkpoint_minutes, self.time_limit = checkpoint_minutes, time_limit
        self.started = self.boundary = self.saved = monotonic()
        self.longest_step = 0.0
        self.longest_save: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether there is a limit or an interval."""
        return self.checkpoint_minutes is not None or self.time_limit is not None

    def start_step(self) -> None:
        """Begins to measure the time to the next step boundary."""
        self.boundary = monotonic()

    def end_step(self) -> None:
        """Measures the time to this step boundary, where the next step begins."""
        now = monotonic()
        self.longest_step, self.boundary = max(self.longest_step, now - self.boundary), now

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measures how long it takes to save."""
        begun = monotonic()
        yield
        self.saved = self.boundary = monotonic()
        self.longest_save = max(self.longest_save or 0.0, self.saved - begun)

    def checkpoint_is_due(self) -> bool:
        """Whether to save now: because an interval has passed, or to measure how long it takes before it is urgent."""
        if self.time_limit is not None and self.longest_save is None:
            return True
        return self.checkpoint_minutes is not None and monotonic() - self.saved >= 60 * self.checkpoint_minutes

    def time_is_up(self) -> bool:
        """Whether what is left may not be enough for another step and for saving after it."""
        if self.time_limit is None:
            return False
        left = self.started + 60 * self.time_limit - monotonic()
        return left < RESERVE * (self.longest_step + (self.longest_save or 0.0))
