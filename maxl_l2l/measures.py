"""Measures of a run: means over samples, accuracy, and the auxiliary classes in use."""

from __future__ import annotations

from torch import Tensor

from .ranks import Ranks


def accuracy(outputs: Tensor, y: Tensor) -> Tensor | None:
    """Returns the fraction of samples whose largest output is their class; None if y holds no classes."""
    if y.is_floating_point() or outputs.dim() != y.dim() + 1:
        return None
    return (outputs.argmax(dim=1) == y).float().mean()


class Means:
    """Means over samples, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor | None, count: int) -> None:
        """Adds a mean over count samples; None is passed over."""
        if value is not None:
            self.sums[name] = self.sums.get(name, 0) + value.detach() * count
            self.counts[name] = self.counts.get(name, 0) + count

    def values(self) -> dict[str, float]:
        """Returns the means so far, by name."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def join(self, ranks: Ranks) -> None:
        """Adds what the other ranks have, so that all have the means over all samples."""
        if ranks.size > 1:
            everyone = ranks.gathered(({name: float(total) for name, total in self.sums.items()}, self.counts))
            names = dict.fromkeys(name for sums, _ in everyone for name in sums)
            self.sums = {name: sum(sums.get(name, 0.0) for sums, _ in everyone) for name in names}
            self.counts = {name: sum(counts.get(name, 0) for _, counts in everyone) for name in names}


class Usage:
    """Which auxiliary classes were the most probable label of some sample."""

    def __init__(self) -> None:
        self.used: set[int] = set()

    def add(self, targets: Tensor | None) -> None:
        """Adds a batch of targets, probabilities ``[N, K, ...]`` or classes ``[N, ...]``; others are passed over."""
        if targets is None or targets.numel() == 0 or (targets.is_floating_point() and targets.dim() < 2):
            return
        labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
        self.used.update(labels.unique().tolist())

    def join(self, ranks: Ranks) -> None:
        """Adds the classes that the other ranks have used."""
        self.used.update(*ranks.gathered(self.used))

    def values(self) -> dict[str, int]:
        """Returns ``sub_classes``, how many were used; nothing if there were no labels."""
        return {"sub_classes": len(self.used)} if self.used else {}
