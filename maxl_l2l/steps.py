"""Steps: what the derivatives are used for. All is computed before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .hypergradient import Batch, Bilevel, Derivatives, Objective, StepResult, differentiate
from .inner_step import InnerStep
from .passes import buffer_copies, cuda_devices, virtual_pass, within, write_buffers


def add_hypergradient(
    bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep, method: str = "forward"
) -> StepResult:
    """Adds the hypergradient to the ``.grad`` of the generator's parameters and changes nothing else.

    Args:
        bilevel: The networks and their losses.
        batch: x and y of the inner step.
        meta_batch: x and y of the meta loss.
        inner: The rule U; it must hold all trainable parameters of the network.
        method: As in :func:`differentiate`.

    Raises:
        NonFiniteError: A loss or gradient is not finite; ``.grad`` is as it was.
    """
    with torch.random.fork_rng(cuda_devices(bilevel.network)):
        derivatives = differentiate(method, bilevel, batch, meta_batch, inner)
    derivatives.check_finite()
    for parameter, grad in derivatives.generator_grads.items():
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return derivatives.result


def fused_step(
    bilevel: Bilevel,
    batch: Batch,
    meta_batch: Batch,
    optimizer: Optimizer,
    generator_optimizer: Optimizer,
    method: str = "forward",
) -> StepResult:
    """One training step of the network, and one of the generator by the hypergradient through that very step.

    The gradient of the multi-task loss serves both. Everything is computed before anything is changed, so that a call
    that raises leaves parameters, buffers and optimizers as they were, unless it is an optimizer's step itself that
    raises. Arguments as in :func:`add_hypergradient`.

    Raises:
        NonFiniteError: A loss or gradient is not finite.
    """
    derivatives = differentiate(method, bilevel, batch, meta_batch, InnerStep(optimizer))
    derivatives.check_finite()
    _take_step(optimizer, derivatives.network_grads)
    write_buffers(bilevel.network, derivatives.network_buffers)
    _take_step(generator_optimizer, derivatives.generator_grads)
    write_buffers(bilevel.generator, derivatives.generator_buffers)
    return derivatives.result


def generator_step(
    bilevel: Bilevel,
    batch: Batch,
    meta_batch: Batch,
    inner: InnerStep,
    generator_optimizer: Optimizer,
    method: str = "forward",
) -> StepResult:
    """One training step of the generator by the hypergradient through a virtual step of the network."""
    derivatives = differentiate(method, bilevel, batch, meta_batch, inner)
    derivatives.check_finite()
    _take_step(generator_optimizer, derivatives.generator_grads)
    write_buffers(bilevel.generator, derivatives.generator_buffers)
    return derivatives.result


def network_step(
    network: nn.Module, objective: Objective, batch: Batch, targets: Tensor | None, optimizer: Optimizer
) -> StepResult:
    """One training step of the network towards given auxiliary targets, or on the primary loss alone if None."""
    x, y = batch
    parameters: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
    buffers = buffer_copies(network)
    outputs, auxiliary = virtual_pass(network, {}, buffers, x)
    loss = primary_loss = objective.primary(outputs, y)
    auxiliary_loss = None
    if targets is not None:
        auxiliary_loss = objective.auxiliary(auxiliary, targets)
        loss = primary_loss + auxiliary_loss
    found = within(
        network, {}, buffer_copies(network), lambda: torch.autograd.grad(loss, parameters, allow_unused=True)
    )
    grads = {parameter: grad for parameter, grad in zip(parameters, found) if grad is not None}
    result = StepResult(
        primary_loss.detach(),
        None if auxiliary_loss is None else auxiliary_loss.detach(),
        outputs=outputs.detach(),
        targets=targets,
    )
    Derivatives(result, grads, {}, buffers, {}).check_finite()
    _take_step(optimizer, grads)
    write_buffers(network, buffers)
    return result


def _take_step(optimizer: Optimizer, grads: Mapping[Tensor, Tensor]) -> None:
    optimizer.zero_grad()
    for parameter, grad in grads.items():
        parameter.grad = grad
    optimizer.step()
    # Inside a region of autocast the casted weights are kept until it ends; they are stale now.
    torch.clear_autocast_cache()
