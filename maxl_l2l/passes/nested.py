"""Nested data: the tensors in what a model takes, in lists, tuples and mappings."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors_of(x: Any) -> list[Tensor]:
    """Lists the tensors in what a model takes."""
    return [tensor for _, tensor in tensors_in(x, "", set())]


def tensors_in(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(value, (Tensor, nn.Module, list, tuple, Mapping)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, nn.Module):  # in a plain list, say: all that it has escapes
        for name, inner in (*value._parameters.items(), *value._buffers.items(), *value._modules.items()):
            yield from tensors_in(inner, f"{path}.{name}", seen)
        for name, inner in vars(value).items():
            yield from tensors_in(inner, f"{path}.{name}", seen)
    else:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from tensors_in(inner, f"{path}[{key!r}]", seen)


def copied(x: Any) -> Any:
    """Copies what a model takes: tensors, lists, tuples and mappings of them; other things as ``copy.copy`` does."""
    if isinstance(x, Tensor):
        return x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, Mapping):
        return {key: copied(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        values = [copied(value) for value in x]
        return values if isinstance(x, list) else type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    return copy.copy(x)
