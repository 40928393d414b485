"""The label meter: what an epoch's auxiliary labels are like, gathered batch by batch on their device."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .agreement import agreement
from .hierarchy import Hierarchy
from .ranks import Ranks


class LabelMeter:
    """Sums over the samples of an epoch from which :meth:`values` come; nothing is read from the device before that.

    Args:
        hierarchy: The hierarchy, of C primary and K auxiliary classes.
        device: Where the sums are kept.

    Attributes:
        sums: ``mean`` ``[K]``, the sum of labels; ``use`` ``[K]``, samples whose most probable label each is;
            ``counts``: samples, their entropies (nats), samples of classes that are split, the entropies of these over
            that of a uniform label, and samples of which the auxiliary head predicts the label; ``table`` ``[K, G]``,
            samples by auxiliary class and given label.
    """

    def __init__(self, hierarchy: Hierarchy, device: torch.device) -> None:
        self.hierarchy, self.device = hierarchy, device
        # Exact counts of many pixels; one kind of device has no float64.
        precise = torch.float32 if device.type == "mps" else torch.float64
        # A uniform label's entropy in each class; infinite where there is nothing to choose: a share of it is 0.
        sizes = [math.log(size) if size > 1 else math.inf for size in hierarchy.psi]
        self.uniform = torch.tensor(sizes, dtype=precise, device=device)
        num_auxiliary = hierarchy.num_auxiliary
        self.sums = {
            "mean": torch.zeros(num_auxiliary, dtype=precise, device=device),
            "use": torch.zeros(num_auxiliary, dtype=torch.long, device=device),
            "counts": torch.zeros(5, dtype=precise, device=device),
            "table": torch.zeros(num_auxiliary, 0, dtype=torch.long, device=device),
        }

    @torch.no_grad()
    def add(self, targets: Tensor | None, y: Tensor, predicted: Tensor | None = None, given: Any = None) -> None:
        """Adds a batch.

        Args:
            targets: Probabilities ``[N, K, ...]``, or such times a weight a sample; or classes ``[N, ...]``. None is
                passed over.
            y: Primary classes ``[N, ...]``.
            predicted: Auxiliary outputs ``[N, K, ...]``.
            given: Labels that somebody gave, int64 of the shape of y, negative where there is none; anything else is
                passed over.
        """
        if targets is None:
            return
        num_auxiliary = self.hierarchy.num_auxiliary
        if not targets.is_floating_point():
            targets = F.one_hot(targets, num_auxiliary).movedim(-1, 1).float()
        labels = targets.movedim(1, -1).reshape(-1, num_auxiliary)
        labels = labels / labels.sum(dim=1, keepdim=True)
        entropies, uniform = torch.special.entr(labels).sum(dim=1), self.uniform[y.reshape(-1)]
        chosen = labels.argmax(dim=1)
        right = torch.zeros((), device=self.device)
        if predicted is not None:
            right = (predicted.argmax(dim=1).reshape(-1) == chosen).sum()
        counts = (torch.ones_like(uniform), entropies, uniform.isfinite(), entropies / uniform)
        self.sums["mean"] += labels.sum(dim=0)
        self.sums["use"].index_add_(0, chosen, torch.ones_like(chosen))
        sums = [one.sum(dtype=self.uniform.dtype) for one in counts]
        self.sums["counts"] += torch.stack([*sums, right.to(self.uniform.dtype)])
        if isinstance(given, Tensor) and given.dtype == torch.long and given.shape == y.shape and given.numel():
            self._compare(chosen, given.reshape(-1))

    def _compare(self, chosen: Tensor, given: Tensor) -> None:
        """Counts pairs of auxiliary classes and given labels; the table grows with the latter."""
        missing = int(given.max()) + 1 - self.sums["table"].shape[1]
        if missing > 0:
            self.sums["table"] = F.pad(self.sums["table"], (0, missing))
        known = given >= 0
        self.sums["table"].index_put_((chosen[known], given[known]), torch.ones_like(given[known]), accumulate=True)

    def join(self, ranks: Ranks) -> None:
        """Adds what the other ranks have measured."""
        if ranks.size > 1:
            everyone = ranks.gathered(self.state_dict())
            width = max(state["table"].shape[1] for state in everyone)
            for state in everyone:
                state["table"] = F.pad(state["table"], (0, width - state["table"].shape[1]))
            joined = {name: torch.stack([state[name] for state in everyone]).sum(dim=0) for name in self.sums}
            self.load_state_dict(joined)

    def values(self) -> dict[str, Any]:
        """Returns the metrics of :func:`~maxl_l2l.training.fit` that are about labels, plain data by name."""
        sums = {name: total.cpu() for name, total in self.sums.items()}
        samples, entropies, split, shares, right = sums["counts"].tolist()
        if not samples:
            return {}
        found: dict[str, Any] = {"auxiliary_accuracy": right / samples, "label_entropy": entropies / samples}
        if split:
            found["relative_label_entropy"] = shares / split
        mean, use = sums["mean"] / samples, sums["use"]
        found["mean_label_entropy"] = float(torch.special.entr(mean).sum())
        found["sub_classes_per_class"] = [int((part > 0).sum()) for part in use.split(list(self.hierarchy.psi))]
        found["use"] = use.tolist()
        return found | agreement(sums["table"], self.hierarchy)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the sums, on the CPU."""
        return {name: total.cpu() for name, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from what was saved."""
        self.sums = {name: total.to(self.device) for name, total in state.items()}
