"""Updates: how gradients become steps of optimizers, clipped and through a gradient scaler if there is one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from ..inner_step import clip_by_norm
from ..passes import write_buffers
from .undo import Grads, MovedBuffers, Steps, Undo


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

    def take(self, steps: Steps, moved: MovedBuffers) -> None:
        """Sets gradients, lets each optimizer step and writes buffers: all of it, or nothing if anything goes wrong.

        A scaler skips the step of an optimizer whose gradient overflowed.

        Args:
            steps: Of each network, its optimizer and gradients.
            moved: Modules and their buffers, by name.

        Raises:
            NonFiniteError: Parameters, the state of an optimizer or buffers would become NaN or infinite.
        """
        undo = Undo([optimizer for optimizer, _ in steps.values()])
        scaling = None if self.scaler is None else self.scaler.state_dict()
        try:
            self._step(steps)
            undo.check_finite(steps, moved)
        except BaseException:
            undo.restore()
            if self.scaler is not None and scaling is not None:
                self.scaler.update(scaling["scale"])  # it forgets that it has stepped
                self.scaler.load_state_dict(scaling)
            raise
        write_buffers(moved)

    def _step(self, steps: Steps) -> None:
        stepped = False
        for optimizer, grads in steps.values():
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
