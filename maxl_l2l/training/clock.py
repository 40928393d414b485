"""The clock of a run: when its next checkpoint is due, and when it has to stop."""

import contextlib
from collections.abc import Iterator
from time import monotonic

RESERVE = 2
"""How many times the longest step and the longest save so far must fit into the time left: no two take the same."""


class Clock:
    """Tells a run the time. Step boundaries are the moments at which it can save and stop.

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
        """Whether there is anything to tell."""
        return self.checkpoint_minutes is not None or self.time_limit is not None

    def start_step(self) -> None:
        """Begins to measure the way to the next step boundary."""
        self.boundary = monotonic()

    def end_step(self) -> None:
        """Measures the way to this step boundary, which is where the next one begins."""
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
        """Whether to save now: for its own sake, or to learn how long that takes before it is urgent."""
        if self.time_limit is not None and self.longest_save is None:
            return True
        return self.checkpoint_minutes is not None and monotonic() - self.saved >= 60 * self.checkpoint_minutes

    def time_is_up(self) -> bool:
        """Whether what is left may not be enough for another step and for saving after it."""
        if self.time_limit is None:
            return False
        left = self.started + 60 * self.time_limit - monotonic()
        return left < RESERVE * (self.longest_step + (self.longest_save or 0.0))
