"""Label statistics: sums over an epoch's auxiliary labels, gathered batch by batch on their device."""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import Ranks
from ..labels import Hierarchy
from ..sources import WHOLE
from .class_agreement import agreement

MOST_PAIRS = 10**6
"""Most pairs of an auxiliary class and a given label that are counted; numbers with more are hardly labels."""


class LabelMeter:
    """Sums over the samples of an epoch, which :meth:`values` reads from the device.

    Args:
        hierarchy: The hierarchy, of C primary and K auxiliary classes.
        device: Where the sums are kept.

    Attributes:
        sums: ``mean`` ``[K]``, the sum of labels; ``use`` ``[K]``, samples whose most probable label each is;
            ``samples`` and ``entropies`` ``[C]``, samples of each primary class, and the sum of their labels' entropies
            (nats); ``predicted`` and ``right``, samples whose label the auxiliary head predicts, and those where it is
            right; ``table`` ``[K, G]``, samples by auxiliary class and given label.
    """

    def __init__(self, hierarchy: Hierarchy, device: torch.device) -> None:
        self.hierarchy, self.device = hierarchy, device
        # Exact for many pixels; one kind of device has no float64.
        self.precise = torch.float32 if device.type == "mps" else torch.float64
        primary, auxiliary = hierarchy.num_primary, hierarchy.num_auxiliary
        whole = {"use": (auxiliary,), "samples": (primary,), "predicted": (), "right": (), "table": (auxiliary, 0)}
        self.sums = {name: torch.zeros(shape, dtype=torch.long, device=device) for name, shape in whole.items()}
        for name, size in (("mean", auxiliary), ("entropies", primary)):
            self.sums[name] = torch.zeros(size, dtype=self.precise, device=device)

    @torch.no_grad()
    def add(self, targets: Tensor | None, y: Tensor, predicted: Tensor | None = None, given: Any = None) -> None:
        """Adds a batch.

        Args:
            targets: Probabilities ``[N, K, ...]``, which may be times a weight for each sample (samples of weight zero
                are not counted); or classes ``[N, ...]``, int64. Anything else is ignored.
            y: Primary classes ``[N, ...]``.
            predicted: Auxiliary outputs ``[N, K, ...]``.
            given: Given labels, integers of the shape of y, negative where there is none. Anything else is ignored; so
                are, with a warning, labels that make more than a million pairs with auxiliary classes.
        """
        if targets is None or not self._fits(targets, y):
            return
        primary = y.reshape(-1)
        if targets.is_floating_point():
            labels = self._rows(targets)
            mass = labels.sum(dim=1, keepdim=True)
            labels = labels / mass.clamp_min(torch.finfo(labels.dtype).tiny)
            chosen, counted = labels.argmax(dim=1), (mass.squeeze(1) > 0).long()
            self.sums["mean"] += labels.sum(dim=0)
            entropies = torch.special.entr(labels).sum(dim=1)
            self.sums["entropies"].index_add_(0, primary, entropies.to(self.precise))
        else:
            chosen, counted = targets.reshape(-1), torch.ones_like(primary)
            self.sums["mean"].index_add_(0, chosen, counted.to(self.precise))
        self.sums["use"].index_add_(0, chosen, counted)
        self.sums["samples"].index_add_(0, primary, counted)
        if predicted is not None:
            self.sums["predicted"] += counted.sum()
            self.sums["right"] += (counted * (self._rows(predicted).argmax(dim=1) == chosen)).sum()
        if isinstance(given, Tensor) and given.dtype in WHOLE and given.shape == y.shape and given.numel():
            self._compare(chosen, given.reshape(-1).long(), counted)

    def _fits(self, targets: Tensor, y: Tensor) -> bool:
        if targets.is_floating_point():
            return targets.shape == (len(y), self.hierarchy.num_auxiliary, *y.shape[1:])
        return targets.dtype == torch.long and targets.shape == y.shape

    def _rows(self, values: Tensor) -> Tensor:
        """``[N, K, ...]`` as a row of K for each label."""
        return values.movedim(1, -1).reshape(-1, self.hierarchy.num_auxiliary)

    def _compare(self, chosen: Tensor, given: Tensor, counted: Tensor) -> None:
        """Counts pairs of auxiliary classes and given labels; the table gets a column for each new label."""
        table = self.sums["table"]
        width = max(table.shape[1], int(given.max()) + 1)
        if width * len(table) > MOST_PAIRS:
            if table.shape[1]:
                self.sums["table"] = table[:, :0]
            warnings.warn(
                f"`metrics` leaves out the agreement with the element behind x and y: it goes up to {width - 1}, so "
                "that it is no label, but a sample's number, say. Let the dataset yield labels there, or nothing.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        table = F.pad(table, (0, width - table.shape[1]))
        table.view(-1).index_add_(0, chosen * width + given.clamp_min(0), counted * (given >= 0))
        self.sums["table"] = table

    def join(self, ranks: Ranks) -> None:
        """Adds what the other ranks have measured."""
        if ranks.size > 1:
            everyone = ranks.gathered(self.state_dict())
            width = max(state["table"].shape[1] for state in everyone)
            for state in everyone:
                state["table"] = F.pad(state["table"], (0, width - state["table"].shape[1]))
            self.load_state_dict({name: sum(state[name] for state in everyone) for name in self.sums})

    def values(self) -> dict[str, Any]:
        """Returns the metrics of :func:`~maxl_l2l.training.fit` that are about labels, plain data by name."""
        sums = {name: total.cpu() for name, total in self.sums.items()}
        samples = sums["samples"].tolist()
        if not sum(samples):
            return {}
        found: dict[str, Any] = {"sub_classes": int((sums["use"] > 0).sum())}
        if sums["predicted"]:
            found["auxiliary_accuracy"] = float(sums["right"] / sums["predicted"])
        found["label_entropy"] = float(sums["entropies"].sum()) / sum(samples)
        found |= self._relative(samples, sums["entropies"].tolist())
        found["mean_label_entropy"] = float(torch.special.entr(sums["mean"] / sums["mean"].sum()).sum())
        blocks = sums["use"].split(list(self.hierarchy.psi))
        found["sub_classes_per_class"] = [int((block > 0).sum()) for block in blocks]
        found["use"] = sums["use"].tolist()
        return found | (agreement(sums["table"], self.hierarchy) if sums["table"].shape[1] else {})

    def _relative(self, samples: list[int], entropies: list[float]) -> dict[str, Any]:
        """Entropies relative to those of uniform labels, for classes with several sub-classes."""
        per_class = [
            entropy / count / math.log(size) if count and size > 1 else None
            for size, count, entropy in zip(self.hierarchy.psi, samples, entropies)
        ]
        known = [(share, count) for share, count in zip(per_class, samples) if share is not None]
        if not known:
            return {}
        mean = sum(share * count for share, count in known) / sum(count for _, count in known)
        return {"relative_label_entropy": mean, "relative_label_entropy_per_class": per_class}

    def used(self) -> list[int]:
        """Returns the auxiliary classes that were the most probable label of some sample."""
        found: list[int] = self.sums["use"].nonzero().flatten().tolist()
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the sums, on the CPU."""
        return {name: total.cpu() for name, total in self.sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores saved sums."""
        self.sums = {name: total.to(self.device) for name, total in state.items()}
