"""The package's exceptions of its own, in a leaf that every room may import."""

import sys
from typing import Any

import torch


class NonFiniteError(ArithmeticError):
    """A loss, gradient or parameter became NaN or infinite; training stopped before it was used.

    Attributes:
        term: Which one: ``"primary loss"``, ``"auxiliary loss"``, ``"network gradient"``, ``"meta loss"``,
            ``"regularizer"`` or ``"hypergradient"``; where these come from, if that was not finite before: ``"input"``,
            ``"network parameters"``, ``"generator parameters"``, ``"network buffers"`` or ``"generator buffers"``; or
            what a step would have made so: parameters, ``"state of the network's optimizer"``, ``"state of the
            generator's optimizer"`` or ``"buffers"``. Of ``adapt``: ``"loss"`` or ``"gradient"``.
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
    """A network has something that a method can't differentiate; the message names it."""


class FallBackWarning(RuntimeWarning):
    """A method does not work for a network, and another one takes its place."""


class RankError(RuntimeError):
    """Processes that train together are not in step any more; the message says which of them, and why."""


def add_note(error: Exception, text: str) -> None:
    """Adds a note to an error, which a traceback shows; Python 3.10 has none yet, so that it is printed there."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:
        print(text, file=sys.stderr)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory was not enough, of a device or of this computer."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
