"""Undo: what optimizers change in a step, kept so that it can be put back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import NonFiniteError
from ..hypergradient import ADVICE
from ..passes import clones, copy_all, non_finite, norm

Grads = Mapping[Tensor, Tensor]
Steps = Mapping[str, tuple[Optimizer, Grads]]
"""Of each network, by ``"network"`` or ``"generator"``: its optimizer and its gradients."""
MovedBuffers = Sequence[tuple[nn.Module, Mapping[str, Tensor]]]


class Undo:
    """Parameters, their gradients and the states of optimizers at one moment, to be put back.

    Args:
        optimizers: Of which; nothing else may change.
    """

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
            former = dict(module.named_buffers())
            found += [("buffers", value, former.get(name)) for name, value in values.items() if _large([value])]
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
    """The entries of a group of parameters but for these."""
    return _copied({name: value for name, value in group.items() if name != "params"})


def _large(values: Iterable[Any]) -> list[Tensor]:
    """Those that are tensors of real numbers; not single ones, as counts of steps are, which may be elsewhere."""
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0]


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether the sum of all squares is finite, so that all entries are; one synchronisation with each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor.detach())
    return not any(non_finite({"": norm(own)}) for own in by_device.values())
