"""Updates: how gradients become steps of optimizers, clipped and through a gradient scaler if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from .inner_step import clip_by_norm

Grads = Mapping[Tensor, Tensor]


@dataclass(frozen=True)
class Updates:
    """What is done to gradients before an optimizer sees them.

    Attributes:
        max_grad_norm: Norm that each network's gradient is clipped to; None for no clipping.
        scaler: Scales losses under float16 and skips steps whose gradient overflowed; None for none.
    """

    max_grad_norm: float | None = None
    scaler: GradScaler | None = None

    def loss_scale(self, module: nn.Module) -> Tensor | float:
        """Returns the factor on losses, which is divided out of their gradients again."""
        if self.scaler is None:
            return 1.0
        scale: Tensor = self.scaler.scale(torch.ones((), device=next(module.parameters()).device))
        return scale

    def clipped(self, grads: Grads) -> dict[Tensor, Tensor]:
        """Returns gradients of a network clipped by their common norm."""
        clipped = clip_by_norm(list(grads.values()), self.max_grad_norm)
        return {parameter: grad for parameter, grad in zip(grads, clipped) if grad is not None}

    def take(self, *steps: tuple[Optimizer, Grads]) -> None:
        """Sets gradients and lets each optimizer step; a scaler skips one whose gradient overflowed."""
        stepped = False
        for optimizer, grads in steps:
            optimizer.zero_grad()
            for parameter, grad in grads.items():
                parameter.grad = grad if self.scaler is None else self.scaler.scale(grad)
            if self.scaler is None:
                optimizer.step()
            elif grads:
                self.scaler.step(optimizer)
                stepped = True
        if self.scaler is not None and stepped:
            self.scaler.update()
        # Inside a region of autocast the casted weights are kept until it ends; they are stale now.
        torch.clear_autocast_cache()
