"""Reduction: the gradients of several backward passes, summed over them and over the ranks."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .ranks import Ranks, Work

BUCKET_BYTES = 25 * 2**20
"""Bytes sent in one collective, as in DistributedDataParallel: large for the bandwidth, small to start early."""


def buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Splits tensors into lists of indices, of one dtype and device and at most BUCKET_BYTES each, the last first."""
    found: list[list[int]] = []
    open_buckets: dict[tuple[torch.dtype, torch.device], tuple[list[int], int]] = {}
    for index in reversed(range(len(tensors))):
        tensor = tensors[index]
        kind, size = (tensor.dtype, tensor.device), tensor.numel() * tensor.element_size()
        bucket, filled = open_buckets.get(kind, ([], BUCKET_BYTES))
        if filled + size > BUCKET_BYTES:
            bucket, filled = [], 0
            found.append(bucket)
        bucket.append(index)
        open_buckets[kind] = bucket, filled + size
    return found


Grads = list[Tensor | None]
"""Gradients with respect to several tensors, in their order; None stands for zero."""


def added(totals: Grads, parts: Grads) -> Grads:
    """Adds two lists of gradients, entry by entry; None stands for zero, and an empty list for zeros."""
    if not totals:
        return parts
    return [one if other is None else other if one is None else one + other for one, other in zip(totals, parts)]


class Reduction:
    """Sums gradients over a rank's passes and then over the ranks, bucket by bucket while the last pass still runs.

    All ranks send the buckets in one order, from the last tensors to the first, as backward passes fill them. The last
    bucket is sent at the end, with a flag for each tensor: whether any rank has a gradient for it.

    Args:
        ranks: Over which to sum.
        tensors: Leaves, with respect to which gradients are taken.
        passes: How many calls of :meth:`add` there will be.
        overlapped: Whether buckets may be sent during the last pass. Not if that pass has collectives of its own: a
            rank whose samples do not use a parameter would reach them in another order.
    """

    def __init__(self, ranks: Ranks, tensors: Sequence[Tensor], passes: int, overlapped: bool = True) -> None:
        self.ranks, self.tensors, self.passes_left, self.overlapped = ranks, tensors, passes, overlapped
        self.local = Grads()
        self.buckets = buckets(tensors) if ranks.size > 1 else []
        self.arrived: dict[int, Tensor] = {}
        self.started: list[tuple[Tensor, Work]] = []

    def add(self, backward: Callable[[], Grads]) -> None:
        """Adds the gradients of one backward pass, which is run here: a gradient for each tensor, or None."""
        self.passes_left -= 1
        overlaps = self.overlapped and self.passes_left == 0 and len(self.buckets) > 1
        hooks = [tensor.register_hook(partial(self._arrive, at)) for at, tensor in enumerate(self.tensors) if overlaps]
        try:
            self.local = added(self.local, backward())
        finally:
            for hook in hooks:
                hook.remove()

    def total(self) -> Grads:
        """Returns the sums, without a graph; None where no rank has a gradient."""
        if not self.buckets:
            return self.local
        local = self.local or [None] * len(self.tensors)
        self.arrived = {at: grad for at, grad in enumerate(local) if grad is not None}
        while len(self.started) < len(self.buckets):
            self._start()
        total: Grads = [None] * len(self.tensors)
        for _, work in self.started:
            self.ranks.wait(work)
        # A rank that has all gradients need not read the flags, which would wait for the device.
        lacking = len(self.arrived) < len(self.tensors)
        flags = self.started[-1][0][-len(self.tensors) :].tolist() if lacking else [1] * len(self.tensors)
        for bucket, (flat, _) in zip(self.buckets, self.started):
            parts = flat.split([*(self.tensors[at].numel() for at in bucket), flat.numel() - self._size(bucket)])
            for at, part in zip(bucket, parts):
                total[at] = part.view_as(self.tensors[at]) if flags[at] else None
        return total

    def attached_total(self) -> Grads:
        """Returns the sums with a graph: their derivatives are summed over the ranks too."""
        if not self.buckets:
            return self.local
        flags = torch.tensor([float(grad is not None) for grad in self.local], device=self.tensors[0].device)
        flags = self.ranks.sum(flags)
        total: Grads = [None] * len(self.tensors)
        for bucket in self.buckets:
            parts = [self._dense(self.local[at], at) for at in bucket]
            found = self.ranks.sum(torch.cat(parts)).split([part.numel() for part in parts])
            for at, part in zip(bucket, found):
                total[at] = part.view_as(self.tensors[at]) if flags[at] else None
        return total

    def _arrive(self, at: int, grad: Tensor) -> None:
        earlier = self.local[at] if self.local else None
        self.arrived[at] = grad if earlier is None else earlier + grad
        while len(self.started) < len(self.buckets) - 1 and all(
            one in self.arrived for one in self.buckets[len(self.started)]
        ):
            self._start()

    def _start(self) -> None:
        bucket = self.buckets[len(self.started)]
        parts = [self._dense(self.arrived.get(at), at) for at in bucket]
        if len(self.started) == len(self.buckets) - 1:
            parts.append(parts[0].new_tensor([at in self.arrived for at in range(len(self.tensors))]))
        flat = torch.cat(parts)
        self.started.append((flat, self.ranks.start_sum(flat)))

    def _dense(self, grad: Tensor | None, at: int) -> Tensor:
        if grad is None:
            return self.tensors[at].new_zeros(self.tensors[at].numel())
        return (grad.to_dense() if grad.is_sparse else grad).reshape(-1)

    def _size(self, bucket: list[int]) -> int:
        return sum(self.tensors[at].numel() for at in bucket)
