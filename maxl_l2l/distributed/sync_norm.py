"""Synchronised batch normalisation: over the samples of all ranks, in operations with derivatives of every order.

torch's own ``nn.SyncBatchNorm`` has neither a forward-mode rule nor a second derivative, and does not run on CPUs.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..passes import at_least_float32
from .ranks import Ranks


@contextlib.contextmanager
def synchronised(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Inside, the SyncBatchNorm layers of a module run :func:`sync_batch_norm`, if there is a process group.

    All ranks must then make the same passes.
    """
    layers = [] if ranks.group is None else _layers(module)
    own = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        vars(layer)["forward"] = partial(sync_batch_norm, layer, ranks)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward


def meets_in_passes(ranks: Ranks, *modules: nn.Module) -> bool:
    """Whether passes of some modules exchange data between ranks, so that all ranks must make the same passes."""
    return ranks.size > 1 and any(_layers(module) for module in modules)


def sync_batch_norm(layer: nn.SyncBatchNorm, ranks: Ranks, input: Tensor) -> Tensor:
    """Batch normalisation by the mean and variance of all ranks' samples; updates the layer's running statistics.

    Args:
        layer: The layer; in evaluation mode it runs as usual.
        ranks: Over which to sum.
        input: This rank's samples ``[N, C, ...]``; the other dimensions but C may differ between ranks.
    """
    if not layer.training:
        output: Tensor = type(layer).forward(layer, input)
        return output
    layer._check_input_dim(input)
    shape = [1, -1, *[1] * (input.dim() - 2)]
    others = [dimension for dimension in range(input.dim()) if dimension != 1]
    x = at_least_float32(input)
    own_count = x.new_full((1,), x.numel() / x.shape[1])
    *sums, count = ranks.sum(torch.cat([x.sum(dim=others), own_count])).split([x.shape[1], 1])
    mean = sums[0] / count
    centred = x - mean.view(shape)
    variance = ranks.sum(centred.square().sum(dim=others)) / count
    with torch.no_grad():
        _move_statistics(layer, mean.detach(), variance.detach() * count.detach() / (count.detach() - 1))
    standard = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.weight is not None:
        standard = standard * layer.weight.view(shape)
    if layer.bias is not None:
        standard = standard + layer.bias.view(shape)
    normalised: Tensor = standard.to(input.dtype)
    return normalised


def _layers(module: nn.Module) -> list[nn.SyncBatchNorm]:
    return [part for part in module.modules() if isinstance(part, nn.SyncBatchNorm)]


def _move_statistics(layer: nn.SyncBatchNorm, mean: Tensor, variance: Tensor) -> None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    # Without a momentum the statistics are means over all batches so far.
    weight = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean), weight)
    layer.running_var.lerp_(variance.to(layer.running_var), weight)
