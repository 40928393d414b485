"""Clones of modules whose parameters stay connected to the originals, for inner loops that autograd unrolls."""

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)


def connected_clone(module: ModuleType, shared: Iterable[object] = ()) -> ModuleType:
    """Copies a module, with every parameter replaced by a differentiable clone of the original.

    Back-propagating through the clone reaches the original's parameters. Buffers are copied, so the clone's forward
    passes do not update the original's BatchNorm statistics. Tied parameters stay tied.

    Args:
        module: Any module.
        shared: Objects inside it that the clone refers to instead of copying them.

    Returns:
        A module of the same class whose parameters are tensors with a graph, not ``nn.Parameter``.
    """
    memo: dict[int, object] = {id(tensor): tensor.clone() for tensor in _tensors(module)}
    for thing in shared:
        memo[id(thing)] = thing
        if isinstance(thing, nn.Module):
            memo |= {id(tensor): tensor for tensor in _tensors(thing)}
    return copy.deepcopy(module, memo)


def replace_parameters(module: nn.Module, replacements: Mapping[Tensor, Tensor]) -> None:
    """Puts new tensors in the place of a clone's parameters, wherever they are used."""
    for submodule in module.modules():
        for name, parameter in submodule._parameters.items():
            if parameter is not None and parameter in replacements:
                # Straight into the table: nn.Module.__setattr__ refuses tensors that are not nn.Parameter.
                submodule._parameters[name] = replacements[parameter]  # type: ignore[assignment]
        if isinstance(submodule, nn.RNNBase):
            submodule._flat_weights = [getattr(submodule, name) for name in submodule._flat_weights_names]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
