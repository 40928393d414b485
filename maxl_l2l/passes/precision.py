"""Precision: what must not be computed in half precision, and whether autocast would do so."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Returns half-precision values as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def in_float16(module: nn.Module) -> bool:
    """Whether a module's operations would be cast to float16 here."""
    device = next(module.parameters()).device.type
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
