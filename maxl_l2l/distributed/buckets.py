"""Buckets: tensors that go into one collective together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BUCKET_BYTES = 25 * 2**20
"""What is put into one collective, as in DistributedDataParallel: enough to fill the wire, little to wait for."""


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
