"""The package's own exceptions, in a module that imports no other of the package, so that all can import it."""

import sys
from typing import Any

import torch


class NonFiniteError(ArithmeticError):
    """A loss, gradient or parameter became NaN or infinite; training stopped before it was used.

    Attributes:
        term: What was not finite: ``"primary loss"``, ``"auxiliary loss"``, ``"network gradient"``, ``"meta loss"``,
            ``"regularizer"`` or ``"hypergradient"``. If their cause was there before the step: ``"input"``,
            ``"network parameters"``, ``"generator parameters"``, ``"network buffers"`` or ``"generator buffers"``. If
            the update would have caused it: parameters, ``"state of the network's optimizer"``, ``"state of the
            generator's optimizer"`` or ``"buffers"``. In ``adapt``: ``"loss"`` or ``"gradient"``.
        history: The epochs that :func:`fit` had recorded; None if the error does not come from fit.
    """

    def __init__(self, term: str, message: str, history: Any = None) -> None:
        super().__init__(message)
        self.term = term
        self.history = history

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes it picklable: an exception is rebuilt from its arguments."""
        return type(self), (self.term, str(self), self.history)


class UnsupportedOperatorError(NotImplementedError):
    """A network has an operator that a method can't differentiate; the message names it."""


class FallBackWarning(RuntimeWarning):
    """A method does not work for a network, and another one is used instead."""


class RankError(RuntimeError):
    """Processes that train together no longer make the same calls; the message says which of them, and why."""


def add_note(error: Exception, text: str) -> None:
    """Adds a note to an error, which its traceback shows; Python 3.10 has no notes, so there it is printed."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:
        print(text, file=sys.stderr)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that the memory of a device or of this computer was not enough."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
