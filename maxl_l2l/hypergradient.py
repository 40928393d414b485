"""The hypergradient: the derivative of the meta loss after one inner step with respect to the generator.

Theta-one (theta_1) are the multi-task network's parameters, theta-two (theta_2) the generator's, theta-one-plus
(theta_1+) the look-ahead parameters ``U(theta_1, gradient)``.

The auxiliary labels t = g(x, y; theta_2) enter the multi-task loss L1 beside the network's outputs o, never through the
network. With v the gradient of the primary meta loss at theta_1+, the chain rule gives::

    d meta / d theta_2 = v . dU/dgrad . d/d theta_2 (dL1/d theta_1)
                       = d/d theta_2 <dL1/do (o, t(theta_2)), o'>     with o' = do/d theta_1 . v',  v' = (dU/dgrad)^T v

so one forward-mode pass along v' and a second derivative of the loss function alone replace the double backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .forward_mode import output_tangent
from .inner_step import InnerStep
from .passes import (
    RandomState,
    buffer_copies,
    check_finite,
    clones,
    cuda_devices,
    largest_entry,
    virtual_pass,
    within,
)

Batch = tuple[Any, Tensor]


@dataclass(frozen=True)
class Objective:
    """The scalar losses of the two levels.

    Attributes:
        primary: ``(primary outputs, y) -> scalar``.
        auxiliary: ``(auxiliary outputs, targets) -> scalar``, twice differentiable.
        regularizer: ``targets -> scalar`` that joins the meta loss, already weighted; None for none.
    """

    primary: Callable[[Tensor, Tensor], Tensor]
    auxiliary: Callable[[Tensor, Tensor], Tensor]
    regularizer: Callable[[Tensor], Tensor] | None


class StepResult(NamedTuple):
    """What one iteration computed, without a graph.

    Attributes:
        primary_loss: Mean primary term of L1, a scalar tensor.
        auxiliary_loss: Mean auxiliary term of L1, a scalar tensor; None if the step had no auxiliary task.
        meta_loss: Primary meta loss at theta_1+, a scalar tensor; None without a meta step.
        regularizer: The weighted regulariser of the targets, a scalar tensor; None if there is none.
        outputs: Primary outputs ``[N, C, ...]`` of the training pass.
        targets: Auxiliary targets of the batch; None if the step had none.
    """

    primary_loss: Tensor
    auxiliary_loss: Tensor | None = None
    meta_loss: Tensor | None = None
    regularizer: Tensor | None = None
    outputs: Tensor | None = None
    targets: Tensor | None = None


class Bilevel(NamedTuple):
    """The two networks and what each is trained for.

    Attributes:
        network: ``x -> (primary outputs, auxiliary outputs)``, parameters theta_1.
        generator: ``(x, y) -> targets``, parameters theta_2.
        objective: The losses.
        check_targets: ``(targets, y) -> None``; raises if the generator's targets do not fit.
    """

    network: nn.Module
    generator: nn.Module
    objective: Objective
    check_targets: Callable[[Any, Tensor], None]


def _forward(bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep) -> Derivatives:
    """The hypergradient by one forward-mode pass; see the derivation above."""
    state = _InnerPass(bilevel, batch)
    grads = state.grads()
    slopes = inner.slopes(state.parameters, grads)
    stepped = [value.detach().requires_grad_() for value in inner.look_ahead(state.parameters, grads)]
    meta_loss, v = _meta_gradient(bilevel, state, stepped, meta_batch)
    rng = RandomState(state.devices)
    direction = {
        name: slope * part
        for name, slope, part in zip(state.names, slopes, v)
        if slope is not None and part is not None
    }
    tangent = output_tangent(state.network, batch[0], direction, state.rng)
    rng.restore()
    surrogate = None if tangent is None else _pulled_back(state, tangent)
    return state.derivatives(grads, surrogate, meta_loss)


def _unrolled(bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep) -> Derivatives:
    """The hypergradient by a double backward pass through the inner step: the reference, at more time and memory."""
    state = _InnerPass(bilevel, batch, attached=True)
    grads = state.grads(create_graph=True)
    stepped = dict(zip(state.names, inner.look_ahead(state.parameters, grads)))
    outputs, _ = virtual_pass(state.network, stepped, clones(state.buffers), meta_batch[0])
    meta_loss = state.objective.primary(outputs, meta_batch[1])
    return state.derivatives(grads, meta_loss, meta_loss)


def _regularizer_only(bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep) -> Derivatives:
    """The gradient of the regulariser without the hypergradient: the control that tells what the latter earns."""
    state = _InnerPass(bilevel, batch)
    return state.derivatives(state.grads(), None, None)


METHODS: dict[str, Callable[[Bilevel, Batch, Batch, InnerStep], Derivatives]] = {
    "forward": _forward,
    "unrolled": _unrolled,
    "regularizer": _regularizer_only,
}


def differentiate(method: str, bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep) -> Derivatives:
    """Computes both networks' gradients by one of :data:`METHODS`; changes nothing but the random state.

    Fused attention has neither a forward-mode derivative nor a second one, torch's math kernel has both; all passes use
    it, so that they also share its dropout masks.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return METHODS[method](bilevel, batch, meta_batch, inner)


class _InnerPass:
    """The pass that gives the inner gradient, on copies of the buffers: nothing of the modules is moved.

    Attributes:
        targets: The generator's labels, with their graph.
        buffers, generator_buffers: Copies that the pass has moved.
        rng: The random state that it began with, so that the forward-mode pass draws the same dropout mask.
    """

    def __init__(self, bilevel: Bilevel, batch: Batch, attached: bool = False) -> None:
        x, y = batch
        self.network, self.generator, self.objective, check_targets = bilevel
        trainable = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trainable), list(trainable.values())
        self.devices = cuda_devices(self.network)
        self.buffers, self.generator_buffers = buffer_copies(self.network), buffer_copies(self.generator)
        self.targets = virtual_pass(self.generator, {}, self.generator_buffers, x, y)
        check_targets(self.targets, y)
        _check_attached(self.targets, self.generator)
        self.rng = RandomState(self.devices)
        self.outputs, self.auxiliary = virtual_pass(self.network, {}, self.buffers, x)
        self.primary_loss = self.objective.primary(self.outputs, y)
        targets = self.targets if attached else self.targets.detach()
        self.auxiliary_loss = self.objective.auxiliary(self.auxiliary, targets)

    def grads(self, create_graph: bool = False) -> tuple[Tensor | None, ...]:
        """The gradient of the multi-task loss at theta_1; None for a parameter that it does not depend on."""
        loss = self.primary_loss + self.auxiliary_loss
        return within(
            self.network,
            {},
            buffer_copies(self.network),
            lambda: torch.autograd.grad(loss, self.parameters, create_graph=create_graph, allow_unused=True),
        )

    def derivatives(
        self, grads: Sequence[Tensor | None], surrogate: Tensor | None, meta_loss: Tensor | None
    ) -> Derivatives:
        """Differentiates surrogate + regulariser with respect to theta_2 and gathers the results."""
        regularizer = None if self.objective.regularizer is None else self.objective.regularizer(self.targets)
        terms = [term for term in (surrogate, regularizer) if term is not None and term.requires_grad]
        parameters = [p for p in self.generator.parameters() if p.requires_grad]
        found: Sequence[Tensor | None] = ()
        if terms and parameters:
            total = sum(terms[1:], terms[0])
            found = within(
                self.generator,
                {},
                buffer_copies(self.generator),
                lambda: torch.autograd.grad(total, parameters, allow_unused=True),
            )
        return Derivatives(
            result=StepResult(
                self.primary_loss.detach(),
                self.auxiliary_loss.detach(),
                None if meta_loss is None else meta_loss.detach(),
                None if regularizer is None else regularizer.detach(),
                self.outputs.detach(),
                self.targets.detach(),
            ),
            network_grads={p: g.detach() for p, g in zip(self.parameters, grads) if g is not None},
            generator_grads={p: g for p, g in zip(parameters, found) if g is not None},
            network_buffers=self.buffers,
            generator_buffers=self.generator_buffers,
        )


@dataclass(frozen=True)
class Derivatives:
    """What a step needs: the gradients of both networks, and the buffers that their passes have moved.

    Attributes:
        result: What was computed on the way.
        network_grads: Of the multi-task loss, for the parameters that it depends on.
        generator_grads: The hypergradient.
        network_buffers: By name.
        generator_buffers: By name.
    """

    result: StepResult
    network_grads: Mapping[Tensor, Tensor]
    generator_grads: Mapping[Tensor, Tensor]
    network_buffers: Mapping[str, Tensor]
    generator_buffers: Mapping[str, Tensor]

    def check_finite(self) -> None:
        """Raises NonFiniteError, naming the first term that is NaN or infinite. One synchronisation with the device."""
        check_finite(
            {
                "primary loss": self.result.primary_loss,
                "auxiliary loss": self.result.auxiliary_loss,
                "network gradient": largest_entry(self.network_grads.values()),
                "meta loss": self.result.meta_loss,
                "regularizer": self.result.regularizer,
                "hypergradient": largest_entry(self.generator_grads.values()),
            }
        )


def _meta_gradient(
    bilevel: Bilevel, state: _InnerPass, stepped: Sequence[Tensor], meta_batch: Batch
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The primary loss of the meta batch at theta_1+, and its gradient v there."""
    x, y = meta_batch

    def loss_and_gradient() -> tuple[Tensor, Sequence[Tensor | None]]:
        outputs, _ = bilevel.network(x)
        loss = bilevel.objective.primary(outputs, y)
        return loss, torch.autograd.grad(loss, stepped, allow_unused=True)

    return within(bilevel.network, dict(zip(state.names, stepped)), clones(state.buffers), loss_and_gradient)


def _check_attached(targets: Tensor, generator: nn.Module) -> None:
    if not targets.requires_grad and any(parameter.requires_grad for parameter in generator.parameters()):
        raise ValueError(
            "`generator` must return targets that depend on its parameters, found targets without a graph. "
            "Compute them without detach(), no_grad() or argmax()."
        )


def _pulled_back(state: _InnerPass, tangent: Tensor) -> Tensor:
    """``<dL1/do (o, t), o'>`` as a function of the targets t; only the loss function is differentiated twice."""
    auxiliary = state.auxiliary.detach().requires_grad_()
    loss = state.objective.auxiliary(auxiliary, state.targets)
    (grad,) = torch.autograd.grad(loss, auxiliary, create_graph=True)
    product: Tensor = (grad * tangent).sum()
    return product
