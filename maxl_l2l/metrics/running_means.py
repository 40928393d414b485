"""Running means of an epoch: losses, accuracy, and the auxiliary classes in use."""

import time
from typing import Any

import torch
from torch import Tensor

from ..distributed import Ranks
from ..hypergradient import StepResult
from .label_statistics import LabelMeter


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
        """Adds a mean over count samples; None is ignored."""
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
        """Adds a batch of targets, probabilities ``[N, K, ...]`` or classes ``[N, ...]``; others are ignored."""
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


class Measured:
    """What the current epoch has measured so far.

    Args:
        labels: Measures labels, if that is asked for.

    Attributes:
        steps: Number of steps taken.
        skipped: Number of them that a gradient scaler skipped.
    """

    def __init__(self, labels: LabelMeter | None = None) -> None:
        self.means, self.usage, self.labels = Means(), Usage(), labels
        self.steps = self.skipped = 0
        self.begun = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the epoch has taken."""
        return time.perf_counter() - self.begun

    def add(self, result: StepResult, y: Tensor, trains_network: bool, given: Any = None) -> None:
        """Adds the result of a step on samples with primary classes y, and given labels, if any.

        What the network's pass gives counts only if the step trains the network.
        """
        count = len(y)
        self.steps += 1
        self.skipped += result.skipped
        if trains_network:
            self.means.add("primary_loss", result.primary_loss, count)
            self.means.add("auxiliary_loss", result.auxiliary_loss, count)
            if result.outputs is not None:
                self.means.add("accuracy", accuracy(result.outputs, y), count)
            if self.labels is None:
                self.usage.add(result.targets)
            else:
                self.labels.add(result.targets, y, result.auxiliary_outputs, given)
        self.means.add("regularizer", result.regularizer, count)
        if not result.skipped:  # a gradient scaler skips a step where these are not finite
            self.means.add("meta_loss", result.meta_loss, count)
            self.means.add("hypergradient_norm", result.hypergradient_norm, count)

    def join(self, ranks: Ranks) -> None:
        """Adds what the other ranks have measured."""
        self.means.join(ranks)
        self.usage.join(ranks)
        if self.labels is not None:
            self.labels.join(ranks)

    def values(self) -> dict[str, Any]:
        """Returns the means so far, the auxiliary classes in use, and what is measured of labels, by name."""
        labels = {} if self.labels is None else self.labels.values()
        return {**self.means.values(), **self.usage.values(), **labels}

    def state_dict(self) -> dict[str, Any]:
        """Returns all sums exactly, as tensors and plain data."""
        sums = {name: total.cpu() if isinstance(total, Tensor) else total for name, total in self.means.sums.items()}
        return {
            "sums": sums,
            "counts": dict(self.means.counts),
            "used": sorted(self.usage.used) if self.labels is None else self.labels.used(),
            "steps": self.steps,
            "skipped": int(self.skipped),
            "seconds": self.seconds,
            "labels": None if self.labels is None else self.labels.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restores saved sums."""
        self.means.sums = {
            name: total.to(device) if isinstance(total, Tensor) else total for name, total in state["sums"].items()
        }
        self.means.counts, self.usage.used = dict(state["counts"]), set(state["used"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.begun = time.perf_counter() - state["seconds"]
        if self.labels is not None and state.get("labels") is not None:
            self.labels.load_state_dict(state["labels"])
        else:
            self.labels = None  # no statistics of a part of an epoch
