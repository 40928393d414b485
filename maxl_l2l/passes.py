"""Virtual passes: calling a network at other parameters without moving its buffers or losing its random state."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

ResultType = TypeVar("ResultType")
KeyType = TypeVar("KeyType", str, int)


def virtual_pass(module: nn.Module, parameters: Mapping[str, Tensor], buffers: dict[str, Tensor], *args: Any) -> Any:
    """Calls a module with other parameters, on copies of its buffers; what it writes to buffers goes to the copies.

    Names are those of ``named_parameters()`` and ``named_buffers()``: a tensor with two places has the first one's.
    """
    return within(module, parameters, buffers, lambda: module(*args))


def within(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    buffers: dict[str, Tensor],
    function: Callable[[], ResultType],
) -> ResultType:
    """Calls a function while a module has other parameters and buffers, named as in :func:`virtual_pass`.

    A backward pass belongs in here if the module recomputes what it did not keep (activation checkpointing): it must
    meet the same parameters again.
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

    Ties are made here, one entry a place: with ``tie_weights=True`` functional_call (torch 2.15) swaps a layer that is
    registered twice, or its buffers, twice, and then fails to put the original back.

    Returns:
        The name that belongs to each place; and the tensor that goes there, for ``tie_weights=False``.
    """
    given = {**parameters, **buffers}
    originals = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    names = {id(originals[name]): name for name in given}
    places = {place: names[id(tensor)] for place, tensor in _places(module) if id(tensor) in names}
    return places, {place: given[name] for place, name in places.items()}


def take_over(buffers: dict[str, Tensor], places: Mapping[str, str], state: Mapping[str, Tensor]) -> None:
    """Takes buffers from a state after the call: a module may have put a new tensor in a buffer's place."""
    buffers.update((name, state[place]) for place, name in places.items() if name in buffers)


def _eagerly(module: nn.Module) -> AbstractContextManager[object]:
    """Runs what the user has compiled without its compiled code, which knows neither other parameters nor hooks, draws
    other dropout masks, and can't be differentiated forwards or twice."""
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


def write_buffers(moved: Iterable[tuple[nn.Module, Mapping[str, Tensor]]]) -> None:
    """Copies values into modules' buffers, by name; one that a pass has registered is where it belongs already."""
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
    """Copies into each pair's first tensor; those of a kind together, so that a GPU needs one kernel for many."""
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


def cuda_devices(module: nn.Module) -> list[int]:
    """Returns the indices of the CUDA devices that hold a module's parameters."""
    return sorted(
        {p.device.index for p in module.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )


class RandomState:
    """The state of the CPU's and the devices' random number generators at one moment."""

    def __init__(self, devices: Iterable[int]) -> None:
        self.cpu = torch.get_rng_state()
        self.devices = {device: torch.cuda.get_rng_state(device) for device in devices}

    def restore(self) -> None:
        """Puts the generators back into that state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.cuda.set_rng_state(state, device)

    @contextlib.contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Puts the generators back into that state if what runs inside raises."""
        try:
            yield
        except BaseException:
            self.restore()
            raise

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Draws inside what was drawn from that state on; outside, the generators go on as if nothing had happened."""
        now = RandomState(self.devices)
        self.restore()
        try:
            yield
        finally:
            now.restore()


def non_finite(terms: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Returns those of several scalar terms that are NaN or infinite, in order. One synchronisation with the device."""
    found = {name: term.detach().float() for name, term in terms.items() if term is not None}
    values = zip(found, torch.stack(list(found.values())).tolist())
    return {name: value for name, value in values if not abs(value) < float("inf")}


def magnitude(tensors: Iterable[Tensor]) -> Tensor | None:
    """Returns the sum of the magnitudes of all entries, NaN or infinite if any is; None without tensors."""
    if not (tensors := [tensor.float() if tensor.element_size() < 4 else tensor for tensor in tensors]):
        return None
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors, 1)]).sum()


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """Returns the Euclidean norm of all entries of several tensors together, a scalar tensor."""
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([one.float() for one in torch._foreach_norm(list(tensors), 2)])
    )
    return total
