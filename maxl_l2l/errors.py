"""The package's one exception of its own, in a leaf that every room may import."""

from __future__ import annotations


class NonFiniteError(ArithmeticError):
    """A loss or gradient became NaN or infinite; training stopped before it was used.

    Attributes:
        term: Which one: ``"primary loss"``, ``"auxiliary loss"``, ``"network gradient"``, ``"meta loss"``,
            ``"regularizer"`` or ``"hypergradient"``.
    """

    def __init__(self, term: str, message: str) -> None:
        super().__init__(message)
        self.term = term
