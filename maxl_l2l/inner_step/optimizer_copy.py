"""The step of an optimizer without a rule: PyTorch's own differentiable step, taken by a copy of the optimizer."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def is_differentiable(optimizer: Optimizer) -> bool:
    """Whether an optimizer has the option ``differentiable`` (Adamax, ASGD and Rprop do)."""
    return all("differentiable" in group for group in (optimizer.defaults, *optimizer.param_groups))


def shadow_step(optimizer: Optimizer, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Takes an optimizer's step by a copy that shares nothing with it.

    Args:
        optimizer: One with the option ``differentiable``; read, never changed.
        parameters: Parameters that it holds.
        grads: Their gradients; None leaves a parameter as it is.

    Returns:
        The parameters after the step, differentiable in the gradients.

    Raises:
        TypeError: The step leaves no graph.
    """
    moving = {p: p.detach().clone() for p, grad in zip(parameters, grads) if grad is not None}
    for parameter, grad in zip(parameters, grads):
        if grad is not None:
            moving[parameter].grad = grad
    shadow = _shell(optimizer)
    shadow.defaults = {**optimizer.defaults, "differentiable": True}
    shadow.param_groups = [_group(group, moving) for group in optimizer.param_groups]
    shadow.state = defaultdict(
        dict, {moving[p]: copy.deepcopy(dict(state)) for p, state in optimizer.state.items() if p in moving}
    )
    with torch.enable_grad():
        shadow.step()
    attached = any(grad is not None and grad.requires_grad for grad in grads)
    if attached and not any(value.requires_grad for value in moving.values()):
        raise TypeError(
            f"`optimizer` must have a step that can be differentiated; {type(optimizer).__name__} has the option "
            "`differentiable`, but its step leaves no graph. Use SGD or Adam, or make its step run with gradients "
            "enabled."
        )
    return [moving.get(parameter, parameter) for parameter in parameters]


def _shell(optimizer: Optimizer) -> Optimizer:
    """An optimizer of the same class and attributes, without hooks and without a scheduler's wrapper."""
    plain = set(vars(torch.optim.SGD([torch.zeros(())], lr=0.0)))
    shell: Optimizer = copy.copy(optimizer)
    for name, value in vars(optimizer).items():
        if name not in plain and name != "step":
            setattr(shell, name, copy.copy(value))
    return shell


def _group(group: dict[str, Any], moving: dict[Tensor, Tensor]) -> dict[str, Any]:
    plain = {"differentiable": True, "foreach": False, "fused": False}
    members = [moving[parameter] for parameter in group["params"] if parameter in moving]
    return {**group, **{name: value for name, value in plain.items() if name in group}, "params": members}
