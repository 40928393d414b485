"""Magnitudes: norms over many tensors, and which of several numbers are NaN or infinite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def non_finite(terms: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Returns those of several scalar terms that are NaN or infinite, in order. One synchronisation with the device."""
    found = {name: term.detach().float() for name, term in terms.items() if term is not None}
    values = zip(found, torch.stack(list(found.values())).tolist())
    return {name: value for name, value in values if not abs(value) < float("inf")}


def magnitude(tensors: Iterable[Tensor]) -> Tensor | None:
    """Returns the sum of the magnitudes of all entries, NaN or infinite if any is; None without tensors."""
    if not (tensors := [tensor.float() if tensor.element_size() < 4 else tensor for tensor in tensors]):
        return None
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors, 1)]).sum()


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the Euclidean norm of all entries of several tensors together, a scalar tensor."""
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([one.float() for one in torch._foreach_norm(list(tensors), 2)])
    )
    return total
