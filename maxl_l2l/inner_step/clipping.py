"""Clipping of gradients by their norm, as a differentiable function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clip_by_norm(grads: Sequence[Tensor | None], max_norm: float | None) -> list[Tensor | None]:
    """Scales gradients so that their common norm is at most max_norm, as ``clip_grad_norm_`` does; differentiable.

    Args:
        grads: Gradients of all parameters of one network; None for a parameter without one.
        max_norm: The largest norm; None for any.
    """
    norms = [torch.linalg.vector_norm(grad) for grad in grads if grad is not None]
    if max_norm is None or not norms:
        return list(grads)
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)  # 1e-6 as in clip_grad_norm_
    return [None if grad is None else grad * scale.to(grad) for grad in grads]
