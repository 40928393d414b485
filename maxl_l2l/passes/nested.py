"""Nested data: the tensors in what a model takes, in lists, tuples and mappings."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def map_tensors(function: Callable[[Tensor], Any], value: Any, others: Callable[[Any], Any] = lambda x: x) -> Any:
    """Applies a function to each tensor in nested data, and others to anything else; a mapping becomes a dict."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, part, others) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [map_tensors(function, part, others) for part in value]
        return parts if isinstance(value, list) else type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return others(value)


def copied(x: Any) -> Any:
    """Copies what a model takes: tensors without their graph, other things as ``copy.copy`` does."""
    return map_tensors(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), x, copy.copy)


def tensors_of(x: Any) -> list[Tensor]:
    """Lists the tensors in what a model takes, modules in it included."""
    return [tensor for _, tensor in tensors_in(x, "", set())]


def tensors_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yields each tensor with its path, which begins with the given one; ids in seen are skipped, found ones added."""
    if not isinstance(value, (Tensor, nn.Module, list, tuple, Mapping)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, nn.Module):  # in a plain list, for instance, where PyTorch does not find its parameters
        for name, inner in (*value._parameters.items(), *value._buffers.items(), *value._modules.items()):
            yield from tensors_in(inner, f"{path}.{name}", seen)
        for name, inner in vars(value).items():
            yield from tensors_in(inner, f"{path}.{name}", seen)
    else:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors_in(inner, f"{path}[{key!r}]", seen)
