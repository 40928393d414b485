"""Replicas: parameters and buffers that are kept the same on all ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .ranks import Ranks
from .reduction import buckets


def send_from_first(ranks: Ranks, module: nn.Module) -> None:
    """Copies rank 0's parameters and buffers to all ranks."""
    if ranks.size == 1:
        return
    tensors = [tensor.detach() for tensor in (*module.parameters(), *module.buffers()) if tensor.numel()]
    for bucket in buckets(tensors):
        flat = ranks.from_first(torch.cat([tensors[index].reshape(-1) for index in bucket]))
        for index, part in zip(bucket, flat.split([tensors[index].numel() for index in bucket])):
            tensors[index].copy_(part.view_as(tensors[index]))


def joined_buffers(
    ranks: Ranks, modules: Sequence[tuple[nn.Module, Mapping[str, Tensor]]], share: float
) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Makes updated buffers equal on all ranks: the mean of BatchNorm's running statistics, rank 0's value of others.

    Args:
        ranks: The processes.
        modules: Modules, each with its updated buffers by name.
        share: This rank's share of the samples.
    """
    joined = [(module, dict(values)) for module, values in modules]
    if ranks.size == 1:
        return joined
    places = [
        (values, name, buffer, name in statistics)
        for module, values in joined
        for statistics in (_batch_norm_statistics(module),)
        for name, buffer in module.named_buffers()
        if name in values and values[name].shape == buffer.shape
    ]
    moved = [(values[name] != buffer).any().to(ranks.device) for values, name, buffer, _ in places]
    flags = ranks.sum(torch.stack(moved).double()).tolist() if moved else []
    places = [place for place, flag in zip(places, flags) if flag]
    kinds = {(is_mean, buffer.dtype): None for _, _, buffer, is_mean in places}
    for kind in kinds:
        chosen = [place for place in places if (place[3], place[2].dtype) == kind]
        flat = torch.cat([values[name].to(ranks.device).reshape(-1) for values, name, _, _ in chosen])
        flat = ranks.sum(flat.double() * share) if kind[0] else ranks.from_first(flat)
        for (values, name, buffer, _), part in zip(chosen, flat.split([place[2].numel() for place in chosen])):
            values[name] = part.view_as(buffer).to(buffer)
    return joined


def _batch_norm_statistics(module: nn.Module) -> set[str]:
    """The names of BatchNorm's running means and variances."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        for name in ("running_mean", "running_var")
    }
