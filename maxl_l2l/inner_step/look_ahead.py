"""The inner step theta_1+ = U(theta_1, gradient): one step of the live optimizer, as a differentiable function.

Parameters that share a group and a step count are joined into flat vectors, so that a network of sixty tensors costs
the operations of one. State is read, never advanced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from .optimizer_copy import is_differentiable, shadow_step
from .rules import RULES, UpdateRule, sgd, sgd_slope

COUNTS = ("step", "mu_product")
"""State that an optimizer keeps as one number for each parameter tensor."""


class InnerStep:
    """The step that an optimizer would take next, computed without taking it.

    Args:
        optimizer: A ``torch.optim`` optimizer, or a wrapper of the same class that has it as ``.optimizer``, such as
            Lightning's; its groups and state are read at every call.
        max_grad_norm: Norm to which the gradient is clipped before the step; None for no clipping.

    Raises:
        TypeError: There is no rule for this kind of optimizer, and it has no ``differentiable`` option.
    """

    def __init__(self, optimizer: Optimizer, max_grad_norm: float | None = None) -> None:
        inner = getattr(optimizer, "optimizer", None)
        if isinstance(inner, Optimizer) and isinstance(optimizer, type(inner)):
            optimizer = inner
        self.rule = RULES.get(type(optimizer))
        if self.rule is None and not is_differentiable(optimizer):
            names = ", ".join(sorted(kind.__name__ for kind in RULES))
            raise TypeError(
                f"`optimizer` must be of a kind whose step can be differentiated: {names}, or one with torch.optim's "
                f"option `differentiable`; found {type(optimizer).__name__}, which lacks it. "
                "Use one of these for the network; the generator's can be any."
            )
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm

    @classmethod
    def sgd(cls, parameters: Iterable[Tensor], lr: float, max_grad_norm: float | None = None) -> "InnerStep":
        """Returns plain gradient descent with a learning rate."""
        return cls(SGD(list(parameters), lr=lr), max_grad_norm)

    def look_ahead(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns theta_1+, differentiable in the gradients.

        Args:
            parameters: Parameters held by the optimizer.
            grads: Their gradients; None where a parameter was not used, which leaves it as it is.
        """
        return self._update(parameters, clip_by_norm(grads, self.max_grad_norm))

    def pull_back(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Returns ``(dU/dgrad)^T v``, the cotangents v of theta_1+ as cotangents of the gradients.

        Args:
            parameters: Parameters held by the optimizer.
            grads: Their gradients, as in :meth:`look_ahead`.
            cotangents: v, a tensor of each parameter's shape; None stands for zero.

        Returns:
            A tensor for each gradient; None where it is zero.
        """
        clipped = [None if one is None else one.detach() for one in clip_by_norm(grads, self.max_grad_norm)]
        clipped = [one if v is not None else None for one, v in zip(clipped, cotangents)]
        if self.rule is sgd:
            pulled = self._scaled(parameters, clipped, cotangents)
        else:
            pulled = _pull_back(lambda leaves: self._update(parameters, leaves), clipped, cotangents)
        if self.max_grad_norm is None:
            return pulled
        return _pull_back(lambda leaves: clip_by_norm(leaves, self.max_grad_norm), grads, pulled)

    def _scaled(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The pull-back of a rule whose derivative is one number."""
        pulled: list[Tensor | None] = [None] * len(parameters)
        for bucket in self._buckets(parameters, grads):
            slope = sgd_slope(bucket.states[0], bucket.group)
            for index in bucket.indices:
                v = cotangents[index]
                pulled[index] = None if v is None else v * slope
        return pulled

    def _update(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
        if self.rule is None:
            return shadow_step(self.optimizer, parameters, grads)
        stepped = list(parameters)
        for bucket in self._buckets(parameters, grads):
            flat = bucket.apply(self.rule, bucket.join(grads))
            for index, value in zip(bucket.indices, bucket.split(flat, parameters)):
                stepped[index] = value
        return stepped

    def _buckets(self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> "list[_Bucket]":
        group_of = {id(p): number for number, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        members: dict[tuple[Any, ...], list[int]] = {}
        states = [self.optimizer.state.get(parameter, {}) for parameter in parameters]
        for index, (parameter, grad, state) in enumerate(zip(parameters, grads, states)):
            if grad is None:
                continue
            counts = tuple(float(state[name]) for name in COUNTS if name in state)
            filled = tuple(name for name, value in state.items() if name in COUNTS or _is_vector(value, parameter))
            key = (group_of[id(parameter)], parameter.dtype, parameter.device, counts, filled)
            members.setdefault(key, []).append(index)
        return [
            _Bucket(
                indices,
                [parameters[index].detach() for index in indices],
                [{name: states[index][name] for name in key[-1]} for index in indices],
                self.optimizer.param_groups[key[0]],
            )
            for key, indices in members.items()
        ]


def _pull_back(
    function: Any, inputs: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The vector-Jacobian product of a function of a list of tensors, of which some are absent."""
    leaves = {index: one.detach().requires_grad_() for index, one in enumerate(inputs) if one is not None}
    pulled: list[Tensor | None] = [None] * len(inputs)
    with torch.enable_grad():
        outputs = function([leaves.get(index) for index in range(len(inputs))])
        given = {index: v for index, v in enumerate(cotangents) if v is not None and index in leaves}
        given = {index: v for index, v in given.items() if outputs[index].requires_grad}
        if given:
            found = torch.autograd.grad(
                [outputs[index] for index in given], list(leaves.values()), list(given.values()), allow_unused=True
            )
            for index, value in zip(leaves, found):
                pulled[index] = value
    return pulled


@dataclass(frozen=True)
class _Bucket:
    """Parameters of one group and step count, with their states, to be joined into vectors."""

    indices: list[int]
    parameters: list[Tensor]
    states: list[Mapping[str, Any]]
    group: Mapping[str, Any]

    def apply(self, rule: UpdateRule, flat_grad: Tensor) -> Tensor:
        state = {
            name: float(value) if name in COUNTS else _join([one[name] for one in self.states])
            for name, value in self.states[0].items()
        }
        return rule(_join(self.parameters), flat_grad, state, self.group)

    def join(self, tensors: Sequence[Tensor | None]) -> Tensor:
        return _join([tensor for tensor in (tensors[index] for index in self.indices) if tensor is not None])

    def split(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        shapes = [like[index].shape for index in self.indices]
        parts = flat.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes)]


def _is_vector(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


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
