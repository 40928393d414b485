"""One iteration of both networks, or of one of them. Everything is computed before anything is changed."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import Reduction, joined_buffers, meets_in_passes
from ..hypergradient import (
    Batch,
    Bilevel,
    Derivatives,
    NetworkPass,
    Options,
    StepResult,
    differentiate,
    num_samples,
    split,
    summary,
)
from ..inner_step import InnerStep
from ..passes import buffer_copies
from .nan_origin import origin
from .updates import Updates


@torch.enable_grad()
def add_hypergradient(
    bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep, options: Options, updates: Updates
) -> StepResult:
    """Adds the hypergradient to the ``.grad`` of the generator's parameters and changes nothing else.

    Args:
        bilevel: The networks and their losses.
        batch: x and y of the inner step.
        meta_batch: x and y of the meta loss.
        inner: The rule U; it must hold all trainable parameters of the network.
        options: How it is computed.
        updates: How gradients are scaled.

    Raises:
        NonFiniteError: A loss or gradient is not finite; ``.grad`` is as it was.
    """
    _meet(bilevel, batch, meta_batch, options, updates, inner.optimizer)
    scale = updates.loss_scale(bilevel.network)
    derivatives = differentiate(bilevel, batch, meta_batch, inner, replace(options, loss_scale=scale))
    derivatives.check_finite(partial(origin, bilevel, batch, meta_batch))
    for parameter, grad in derivatives.generator_grads.items():
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    return derivatives.result


@torch.enable_grad()
def fused_step(
    bilevel: Bilevel,
    batch: Batch,
    meta_batch: Batch,
    optimizer: Optimizer,
    generator_optimizer: Optimizer,
    options: Options,
    updates: Updates,
) -> StepResult:
    """One training step of the network, and one of the generator by the hypergradient through that very step.

    The gradient of the multi-task loss serves both. A call that raises leaves parameters, buffers and optimizers as
    they were; it raises NonFiniteError if a loss or gradient is not finite. Arguments as in :func:`add_hypergradient`.
    """
    _meet(bilevel, batch, meta_batch, options, updates, optimizer, generator_optimizer)
    inner = InnerStep(optimizer, updates.max_grad_norm)
    scale = updates.loss_scale(bilevel.network)
    derivatives = differentiate(bilevel, batch, meta_batch, inner, replace(options, loss_scale=scale))
    skipped = derivatives.check_finite(partial(origin, bilevel, batch, meta_batch), updates.scaler is not None)
    generator_grads = updates.clipped(derivatives.generator_grads)
    moved = _moved_buffers(bilevel, derivatives)
    updates.take(
        {"network": (optimizer, derivatives.network_grads), "generator": (generator_optimizer, generator_grads)}, moved
    )
    return derivatives.result._replace(skipped=skipped)


def _meet(
    bilevel: Bilevel,
    batch: Batch,
    meta_batch: Batch | None,
    options: Options,
    updates: Updates,
    *optimizers: Optimizer,
    **others: bool,
) -> int:
    """Meets the other ranks before anything is computed; returns the number of samples in all parts of the batch.

    Raises:
        RankError: Another rank makes another call, or has other options.
    """
    batches = [batch] if meta_batch is None else [batch, meta_batch]
    counts = [num_samples(one) for one in batches]
    if bilevel.ranks.size == 1:
        return counts[0]
    settings = {"method": options.method, "max_grad_norm": updates.max_grad_norm, **others}
    words = [f"{name}={value!r}" for name, value in settings.items()]
    words += [_in_words(optimizer) for optimizer in optimizers]
    if meets_in_passes(bilevel.ranks, bilevel.network, bilevel.generator):
        parts = [min(options.micro_batches, count) for count in counts]
        words.append(f"SyncBatchNorm in {' and '.join(map(str, parts))} micro-batches")
    return bilevel.ranks.totals(", ".join(words), *counts)[0]


def _in_words(optimizer: Optimizer) -> str:
    """An optimizer's kind and the options of its groups."""
    groups = [
        ", ".join(f"{name}={_plain(value)}" for name, value in group.items() if name != "params")
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__}({'; '.join(groups)})"


def _plain(value: Any) -> Any:
    """A value as it is described, without waiting for a device that holds it."""
    return value if not isinstance(value, Tensor) else value.item() if value.device.type == "cpu" else "a tensor"


def _moved_buffers(bilevel: Bilevel, derivatives: Derivatives) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """The buffers that passes have updated, for each network that has any."""
    networks = [(bilevel.network, derivatives.network_buffers), (bilevel.generator, derivatives.generator_buffers)]
    moved = [(network, buffers) for network, buffers in networks if buffers]
    return joined_buffers(bilevel.ranks, moved, derivatives.share)


@torch.enable_grad()
def generator_step(
    bilevel: Bilevel,
    batch: Batch,
    meta_batch: Batch,
    inner: InnerStep,
    generator_optimizer: Optimizer,
    options: Options,
    updates: Updates,
) -> StepResult:
    """One training step of the generator by the hypergradient through a virtual step of the network."""
    _meet(bilevel, batch, meta_batch, options, updates, inner.optimizer, generator_optimizer)
    scale = updates.loss_scale(bilevel.network)
    derivatives = differentiate(bilevel, batch, meta_batch, inner, replace(options, loss_scale=scale))
    skipped = derivatives.check_finite(partial(origin, bilevel, batch, meta_batch), updates.scaler is not None)
    moved = _moved_buffers(bilevel, replace(derivatives, network_buffers={}))
    updates.take({"generator": (generator_optimizer, updates.clipped(derivatives.generator_grads))}, moved)
    return derivatives.result._replace(skipped=skipped)


@torch.enable_grad()
def network_step(
    bilevel: Bilevel,
    batch: Batch,
    targets: Tensor | None,
    auxiliary: bool,
    optimizer: Optimizer,
    options: Options,
    updates: Updates,
) -> StepResult:
    """One training step of the network towards given auxiliary targets, the generator's if None, or without any."""
    network, objective, parts = bilevel.network, bilevel.objective, split(batch, options.micro_batches)
    total_samples = _meet(bilevel, batch, None, options, updates, optimizer, auxiliary=auxiliary)
    if auxiliary and targets is None:
        with torch.no_grad():
            targets = bilevel.generator_pass({}, buffer_copies(bilevel.generator), *batch)
        bilevel.check_targets(targets, batch[1])
    parameters: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
    scale, buffers = updates.loss_scale(network), buffer_copies(network)
    all_targets = [None] * len(parts) if targets is None else targets.tensor_split(len(parts))
    overlapped = not meets_in_passes(bilevel.ranks, network)
    passes, reduction = [], Reduction(bilevel.ranks, parameters, len(parts), overlapped)
    for part, part_targets in zip(parts, all_targets):
        share = num_samples(part) / total_samples
        one = NetworkPass(network, bilevel.network_pass, objective, part, part_targets, share, buffers)
        reduction.add(partial(one.grads, parameters, scale))
        passes.append(one)
    grads = {
        p: grad if updates.scaler is None else grad / scale
        for p, grad in zip(parameters, reduction.total())
        if grad is not None
    }
    result = summary(passes)
    primary_loss, (auxiliary_loss,) = bilevel.ranks.sums(result.primary_loss, result.auxiliary_loss)
    result = result._replace(primary_loss=primary_loss, auxiliary_loss=auxiliary_loss)
    derivatives = Derivatives(result, updates.clipped(grads), {}, buffers, {}, num_samples(batch) / total_samples)
    skipped = derivatives.check_finite(partial(origin, bilevel, batch), updates.scaler is not None)
    moved = _moved_buffers(bilevel, derivatives)
    updates.take({"network": (optimizer, derivatives.network_grads)}, moved)
    return result._replace(skipped=skipped)
