"""The hierarchy psi: how many auxiliary classes belong to each primary class, and which."""

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor


class Hierarchy:
    """A two-level class hierarchy: primary class ``i`` owns ``psi[i]`` auxiliary classes (sub-classes).

    Auxiliary classes are numbered block by block: primary class 0 owns ``0 .. psi[0] - 1``, primary class 1 the next
    ``psi[1]``, and so on (Liu et al. 2019, section 3.2).

    Args:
        psi: Sub-classes per primary class, C integers >= 1.

    Attributes:
        psi: The sizes as a tuple of C integers.
        num_primary: C.
        num_auxiliary: K, the sum of psi.

    Raises:
        TypeError: psi is not a sequence, or an entry is not an integer.
        ValueError: psi is empty or an entry is below 1.

    Example:
        >>> hierarchy = Hierarchy([2, 3])
        >>> hierarchy.num_primary, hierarchy.num_auxiliary
        (2, 5)
        >>> hierarchy.block(1)
        range(2, 5)
        >>> hierarchy.mask(torch.tensor([0, 1])).int()
        tensor([[1, 1, 0, 0, 0],
                [0, 0, 1, 1, 1]], dtype=torch.int32)
    """

    def __init__(self, psi: Iterable[int]) -> None:
        self.psi = _checked_sizes(psi)
        self.num_primary = len(self.psi)
        self.num_auxiliary = sum(self.psi)

    @classmethod
    def of(cls, psi: "Hierarchy | Iterable[int]") -> "Hierarchy":
        """Returns psi itself if it is a hierarchy, otherwise the hierarchy of these sizes."""
        return psi if isinstance(psi, Hierarchy) else cls(psi)

    def block(self, primary: int) -> range:
        """Returns the auxiliary classes of one primary class.

        Args:
            primary: A primary class in 0 .. C - 1.

        Raises:
            ValueError: There is no such primary class.
        """
        if not 0 <= primary < self.num_primary:
            raise ValueError(
                f"`primary` must be a class in 0..{self.num_primary - 1}, found {primary}. "
                f"psi has {self.num_primary} entries."
            )
        start = sum(self.psi[:primary])
        return range(start, start + self.psi[primary])

    def primary_of_auxiliary(self, device: torch.device | str | None = None) -> Tensor:
        """Returns the primary class that owns each auxiliary class: int64, shape ``[K]``."""
        owners = [primary for primary, size in enumerate(self.psi) for _ in range(size)]
        return torch.tensor(owners, dtype=torch.long, device=device)

    def mask(self, y: Tensor) -> Tensor:
        """Marks the auxiliary classes that belong to each sample's primary class.

        Args:
            y: Primary classes, int64, shape ``[N, ...]``.

        Returns:
            Boolean, shape ``[N, K, ...]``: true inside the block of y.

        Raises:
            TypeError: y is not an int64 tensor.
            ValueError: A label is outside 0 .. C - 1.
        """
        self.check_labels(y)
        return block_mask(y, self.primary_of_auxiliary(y.device))

    def check_labels(self, y: Tensor, argument: str = "y") -> None:
        """Checks that y holds primary classes of this hierarchy.

        Args:
            y: Primary classes, int64, any shape.
            argument: The name that an error gives to y.

        Raises:
            TypeError: y is not an int64 tensor.
            ValueError: A label is outside 0 .. C - 1.
        """
        check_indices(y, self.num_primary, argument, "primary class")

    def check_auxiliary(self, labels: Tensor, y: Tensor, argument: str = "labels") -> None:
        """Checks that every auxiliary label lies in the block of its sample's primary class.

        Args:
            labels: Auxiliary classes, int64, the shape of y.
            y: Primary classes, int64.
            argument: The name that an error gives to labels.

        Raises:
            TypeError: labels or y is not an int64 tensor.
            ValueError: The shapes differ, or a label is out of range or outside its block.
        """
        self.check_labels(y)
        check_indices(labels, self.num_auxiliary, argument, "auxiliary class")
        if labels.shape != y.shape:
            raise ValueError(
                f"`{argument}` must have the shape of `y`, {list(y.shape)}, found {list(labels.shape)}. "
                "Give one auxiliary class per primary label."
            )
        stray = (self.primary_of_auxiliary(y.device)[labels] != y).flatten().nonzero()
        if len(stray):
            at = int(stray[0])
            label, primary = int(labels.flatten()[at]), int(y.flatten()[at])
            block = self.block(primary)
            raise ValueError(
                f"`{argument}` must lie in the block of their primary class, found label {label} at position {at}, "
                f"where y is {primary} and the block is {block.start}..{block.stop - 1}. "
                "Number the sub-classes block by block, as Hierarchy does."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hierarchy) and other.psi == self.psi

    def __hash__(self) -> int:
        return hash(self.psi)

    def __len__(self) -> int:
        return self.num_primary

    def __repr__(self) -> str:
        return f"Hierarchy({list(self.psi)})"


def block_mask(y: Tensor, primary_of_auxiliary: Tensor) -> Tensor:
    """Marks the auxiliary classes of each label without checking y: boolean, ``[N, ...]`` to ``[N, K, ...]``."""
    owners = primary_of_auxiliary.view(1, -1, *[1] * (y.dim() - 1))
    return owners == y.unsqueeze(1)


def check_indices(labels: Any, num_classes: int, argument: str, kind: str) -> None:
    """Raises TypeError or ValueError, naming the argument, unless labels are int64 in 0 .. num_classes - 1."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.long:
        found = str(labels.dtype) if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"`{argument}` must be an int64 tensor of {kind} indices, found {found}. "
            f"Convert it with torch.as_tensor({argument}).long(), or {argument}.argmax(dim=1) if it is one-hot."
        )
    if labels.numel() == 0:
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"`{argument}` must hold {kind} indices in 0..{num_classes - 1}, found {low if low < 0 else high}. "
            "Check the labels, or psi if there are more classes."
        )


def _checked_sizes(psi: Any) -> tuple[int, ...]:
    try:
        entries = None if isinstance(psi, (str, bytes, Mapping, Set)) else list(psi)
    except TypeError:
        entries = None
    if entries is None:
        raise TypeError(
            f"`psi` must be a list of integers, sub-classes per primary class, found {psi!r}. "
            "For 20 primary classes with 5 sub-classes each write psi=[5] * 20."
        )
    if not entries:
        raise ValueError(
            "`psi` must have an entry for each primary class, found an empty list. "
            "For 20 primary classes with 5 sub-classes each write psi=[5] * 20."
        )
    return tuple(_checked_size(entry, position) for position, entry in enumerate(entries))


def _checked_size(entry: Any, position: int) -> int:
    try:
        size = None if isinstance(entry, bool) else operator.index(entry)
    except TypeError:
        size = None
    if size is None:
        raise TypeError(
            f"`psi` must hold integers, found {entry!r} ({type(entry).__name__}) at position {position}. "
            "Each entry counts the sub-classes of one primary class."
        )
    if size < 1:
        raise ValueError(
            f"`psi` must hold integers >= 1, found {size} at position {position}. "
            "Use 1 for a primary class that is not to be split."
        )
    return size
