"""The inner step theta_1+ = U(theta_1, gradient): one step of the live optimizer, as a differentiable function.

Parameters that share a group and a step count are joined into flat vectors, so that a network of sixty tensors costs
the operations of one. State is read, never advanced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from .rules import RULES, UpdateRule

COUNTS = ("step", "mu_product")
"""State that an optimizer keeps as one number for a whole parameter."""


class InnerStep:
    """The step that an optimizer would take next, computed without taking it.

    Args:
        optimizer: A ``torch.optim`` optimizer; its groups and state are read at every call.

    Raises:
        TypeError: There is no rule for this kind of optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        rule = RULES.get(type(optimizer))
        if rule is None:
            names = ", ".join(sorted(kind.__name__ for kind in RULES))
            raise TypeError(
                f"`optimizer` must be of a kind whose step can be differentiated ({names}), "
                f"found {type(optimizer).__name__}. Use one of these for the network; the generator's can be any."
            )
        self.rule = rule
        self.optimizer = optimizer

    @classmethod
    def sgd(cls, parameters: Iterable[Tensor], lr: float) -> InnerStep:
        """Returns plain gradient descent with a learning rate."""
        return cls(SGD(list(parameters), lr=lr))

    def look_ahead(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns theta_1+, differentiable in the gradients.

        Args:
            parameters: Parameters held by the optimizer.
            grads: Their gradients; None where a parameter was not used, which leaves it as it is.
        """
        stepped = list(parameters)
        for bucket in self._buckets(parameters, grads):
            flat = bucket.apply(self.rule, bucket.join(grads))
            for index, value in zip(bucket.indices, bucket.split(flat, parameters)):
                stepped[index] = value
        return stepped

    def slopes(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Returns dU/dgrad, which is diagonal as rules are elementwise: one tensor of slopes per parameter.

        Args:
            parameters: Parameters held by the optimizer.
            grads: Their gradients; the slope is None where the gradient is.
        """
        slopes: list[Tensor | None] = [None] * len(parameters)
        for bucket in self._buckets(parameters, grads):
            with torch.enable_grad():
                flat_grad = bucket.join(grads).detach().requires_grad_()
                (flat,) = torch.autograd.grad(bucket.apply(self.rule, flat_grad).sum(), flat_grad)
            for index, slope in zip(bucket.indices, bucket.split(flat, parameters)):
                slopes[index] = slope
        return slopes

    def _buckets(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[_Bucket]:
        group_of = {id(p): number for number, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        members: dict[tuple[Any, ...], list[int]] = {}
        for index, (parameter, grad) in enumerate(zip(parameters, grads)):
            if grad is None:
                continue
            state = self.optimizer.state.get(parameter, {})
            counts = tuple(float(state[name]) for name in COUNTS if name in state)
            filled = tuple(name for name, value in state.items() if value is not None)
            key = (group_of[id(parameter)], parameter.dtype, parameter.device, counts, filled)
            members.setdefault(key, []).append(index)
        return [self._bucket(indices, key[0], parameters) for key, indices in members.items()]

    def _bucket(self, indices: list[int], group_number: int, parameters: Sequence[Tensor]) -> _Bucket:
        members = [parameters[index] for index in indices]
        states = [self.optimizer.state.get(parameter, {}) for parameter in members]
        state: dict[str, Any] = {name: float(states[0][name]) for name in COUNTS if name in states[0]}
        for name, value in states[0].items():
            if name not in COUNTS and value is not None:
                state[name] = _join([one[name] for one in states])
        return _Bucket(indices, _join([p.detach() for p in members]), state, self.optimizer.param_groups[group_number])


@dataclass(frozen=True)
class _Bucket:
    """Parameters of one group and step count, joined into one vector."""

    indices: list[int]
    theta: Tensor
    state: Mapping[str, Any]
    group: Mapping[str, Any]

    def apply(self, rule: UpdateRule, flat_grad: Tensor) -> Tensor:
        return rule(self.theta, flat_grad, self.state, self.group)

    def join(self, tensors: Sequence[Tensor | None]) -> Tensor:
        return _join([tensor for tensor in (tensors[index] for index in self.indices) if tensor is not None])

    def split(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        shapes = [like[index].shape for index in self.indices]
        parts = flat.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes)]


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
