"""Numerics: norms over many tensors, what is NaN or infinite, and what must not be in half precision."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


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


def at_least_float32(values: Tensor) -> Tensor:
    """Returns half-precision values as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def in_float16(module: nn.Module) -> bool:
    """Whether a module's operations would be cast to float16 here."""
    device = next(module.parameters()).device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
