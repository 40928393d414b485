"""Copies of buffers and of other tensors by name, made and written back with few kernels."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

KeyType = TypeVar("KeyType", str, int)


def write_buffers(moved: Iterable[tuple[nn.Module, Mapping[str, Tensor]]]) -> None:
    """Copies values into modules' buffers, by name; buffers without a value stay as they are."""
    for module, values in moved:
        pairs = [(buffer, values[name]) for name, buffer in module.named_buffers() if name in values]
        for buffer, value in pairs:
            if value.shape != buffer.shape:  # it has grown
                buffer.data = value.to(buffer)
        copy_all((buffer.detach(), value) for buffer, value in pairs if value.shape == buffer.shape)


def buffer_copies(module: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of each of a module's buffers, by name."""
    return clones(dict(module.named_buffers()))


def clones(tensors: Mapping[KeyType, Tensor]) -> dict[KeyType, Tensor]:
    """Returns a copy of each tensor."""
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return {name: tensor.clone() for name, tensor in tensors.items()}
    copies = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    copy_all((copies[name], tensor) for name, tensor in tensors.items())
    return copies


def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copies each pair's second tensor into its first; tensors of one kind together, by one kernel on a GPU."""
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in pairs:
        kind = target.dtype, source.dtype, target.device, target.layout
        targets, sources = kinds.setdefault(kind, ([], []))
        targets.append(target)
        sources.append(source)
    for targets, sources in kinds.values():
        if targets[0].layout == torch.strided:
            torch._foreach_copy_(targets, sources)
        else:
            for target, source in zip(targets, sources):
                target.copy_(source)
