"""Virtual passes: calling a network at other parameters without moving its buffers."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

ResultType = TypeVar("ResultType")


def virtual_pass(module: nn.Module, parameters: Mapping[str, Tensor], buffers: dict[str, Tensor], *args: Any) -> Any:
    """Calls a module with other parameters, on copies of its buffers; what it writes to buffers goes to the copies.

    Names are those of ``named_parameters()`` and ``named_buffers()``: a tensor that is registered twice has the first.
    """
    return within(module, parameters, buffers, lambda: module(*args))


def within(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: dict[str, Tensor],
    function: Callable[[], ResultType],
) -> ResultType:
    """Calls a function while a module has other parameters and buffers, named as in :func:`virtual_pass`.

    A backward pass belongs in here if the module recomputes activations (checkpointing): it needs the same parameters.
    """
    places, state = placed(module, parameters, buffers)
    state = {f"module.{place}": tensor for place, tensor in state.items()}
    with _eagerly(module):
        result: ResultType = functional_call(_Caller(module), state, (function,), tie_weights=False)
    take_over(buffers, places, {place: state[f"module.{place}"] for place in places})
    return result


def placed(
    module: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Finds every place of the given parameters and buffers in a module.

    Ties are resolved here: with ``tie_weights=True`` functional_call (torch 2.15) swaps a layer that is registered
    twice, or its buffers, twice, and then fails to restore the original.

    Returns:
        The name that belongs to each place; and the tensor that goes there, for ``tie_weights=False``.
    """
    given = {**parameters, **buffers}
    originals = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = {id(originals[name]): name for name in given}
    places = {place: names[id(tensor)] for place, tensor in _places(module) if id(tensor) in names}
    return places, {place: given[name] for place, name in places.items()}


def take_over(buffers: dict[str, Tensor], places: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    """Takes buffers from a state after the call: a module may have replaced a buffer by a new tensor."""
    buffers.update((name, state[place]) for place, name in places.items() if name in buffers)


def _eagerly(module: nn.Module) -> AbstractContextManager[object]:
    """Makes modules that the user has compiled run uncompiled: compiled code ignores other parameters and hooks, draws
    other dropout masks, and has no forward-mode or second derivative."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    if not hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        if any(isinstance(one, torch._dynamo.OptimizedModule) or one._compiled_call_impl for one in module.modules()):
            raise RuntimeError(
                f"`model` must not be compiled, as torch {torch.__version__} can't leave out its compiled code. "
                "Give the plain model, or use torch 2.6 or newer."
            )
        return contextlib.nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


class _Caller(nn.Module):
    """Holds a module, so that functional_call swaps its tensors, and calls whatever it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _places(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place of a parameter or buffer in a module, with its tensor; each submodule once."""
    for prefix, submodule in module.named_modules():
        for name, tensor in (*submodule._parameters.items(), *submodule._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{name}" if prefix else name, tensor
