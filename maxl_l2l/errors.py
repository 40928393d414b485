"""The package's exceptions of its own, in a leaf that every room may import."""

from __future__ import annotations

from typing import Any


class NonFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; training stopped before it was used.

    Attributes:
        term: Which one: ``"primary loss"``, ``"auxiliary loss"``, ``"network gradient"``, ``"meta loss"``,
            ``"regularizer"`` or ``"hypergradient"``.
        history: What :func:`fit` had recorded until then; None if the error is not from there.
    """

    def __init__(self, term: str, message: str, history: Any = None) -> None:
        super().__init__(message)
        self.term = term
        self.history = history

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets it come out of another process: exceptions are made anew from what they were given."""
        return type(self), (self.term, str(self), self.history)


class UnsupportedOperatorError(NotImplementedError):
    """An operator of a network has no forward-mode rule; the message names it."""


class RankError(RuntimeError):
    """Processes that train together are not in step any more; the message says which of them, and why."""
