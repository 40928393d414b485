"""Updates: how gradients become steps of optimizers, clipped and through a gradient scaler if there is one."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..errors import NonFiniteError
from ..hypergradient import ADVICE
from ..inner_step import clip_by_norm
from ..passes import clones, copy_all, non_finite, norm, write_buffers

Grads = Mapping[Tensor, Tensor]
Steps = Mapping[str, tuple[Optimizer, Grads]]
"""The optimizer and the gradients of each network, by ``"network"`` or ``"generator"``."""
MovedBuffers = Sequence[tuple[nn.Module, Mapping[str, Tensor]]]


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
                self.scaler.update(scaling["scale"])  # clears its record of a step
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
        # Inside a region of autocast, cast weights are cached until it ends; now they are out of date.
        torch.clear_autocast_cache()


class Undo:
    """The parameters, gradients and states of optimizers at one moment, to be restored."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.states = [(optimizer, _entries(optimizer)) for optimizer in optimizers]
        held = [p for optimizer, _ in self.states for group in optimizer.param_groups for p in group["params"]]
        self.grads = [(parameter, parameter.grad) for parameter in held]
        self.groups = [(group, _others(group)) for optimizer, _ in self.states for group in optimizer.param_groups]
        kept = [*(own for _, entries in self.states for own in entries.values()), *(own for _, own in self.groups)]
        state = [value for own in kept if isinstance(own, Mapping) for value in own.values()]
        self.tensors = {id(tensor): tensor for tensor in (*held, *state) if isinstance(tensor, Tensor)}
        self.values = clones({number: tensor.detach() for number, tensor in self.tensors.items()})

    def restore(self) -> None:
        """Puts everything back."""
        for optimizer, entries in self.states:
            optimizer.state.clear()
            optimizer.state.update(entries)
        for group, others in self.groups:
            group.update(others)
        for parameter, grad in self.grads:
            parameter.grad = grad
        copy_all((tensor.detach(), self.values[number]) for number, tensor in self.tensors.items())

    def check_finite(self, steps: Steps, moved: MovedBuffers) -> None:
        """Raises NonFiniteError if what steps and passes have moved is NaN or infinite now and was not before."""
        found: list[tuple[str, Tensor, Tensor | None]] = []
        for kind, (optimizer, grads) in steps.items():
            states = [value for parameter in grads for value in dict(optimizer.state.get(parameter, {})).values()]
            found += [(f"{kind} parameters", parameter, self.values[id(parameter)]) for parameter in grads]
            found += [(f"state of the {kind}'s optimizer", own, self.values.get(id(own))) for own in _large(states)]
        for module, values in moved:
            earlier = dict(module.named_buffers())
            found += [("buffers", value, earlier.get(name)) for name, value in values.items() if _large([value])]
        if _are_finite([now for _, now, _ in found]):
            return
        for term, now, before in found:
            if not bool(now.isfinite().all()) and (before is None or bool(before.isfinite().all())):
                value = float(now.detach()[~now.isfinite()][0])
                raise NonFiniteError(
                    term,
                    f"the {term} would become {value}; no parameter was updated with it. {ADVICE}",
                )


def _entries(optimizer: Optimizer) -> dict[Any, Any]:
    """The entries of an optimizer's state; tensors among them are the optimizer's own."""
    return {
        parameter: _copied(own) if isinstance(own, Mapping) else copy.deepcopy(own)
        for parameter, own in optimizer.state.items()
    }


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of values, in which tensors are the same ones."""
    return {name: value if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in values.items()}


def _others(group: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a parameter group, without the parameters."""
    return _copied({name: value for name, value in group.items() if name != "params"})


def _large(values: Iterable[Any]) -> list[Tensor]:
    """The floating-point tensors; without scalars such as step counts, which may be on another device."""
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0]


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether the sum of all squares is finite, so that all entries are; one synchronisation with each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor.detach())
    return not any(non_finite({"": norm(own)}) for own in by_device.values())
