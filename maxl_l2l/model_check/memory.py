"""Memory: how much is kept for backward passes while something runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def kept_for_backward(function: Callable[[], Any], module: nn.Module, device: torch.device) -> int:
    """Calls a function and returns the most bytes that autograd kept at one time for backward passes.

    Storages that tensors share count once, those of the module's parameters and buffers not at all. On a CUDA device it
    is the rise of allocated memory instead, temporaries included.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    meter = _Meter({_storage(tensor) for tensor in (*module.parameters(), *module.buffers())})
    with saved_tensors_hooks(meter.pack, meter.unpack):
        function()
    return meter.peak


class _Meter:
    """Counts the bytes of saved tensors that are alive."""

    def __init__(self, aside: set[int]) -> None:
        self.aside = aside
        self.holders: dict[int, int] = {}
        self.live = self.peak = 0

    def pack(self, tensor: Tensor) -> Any:
        if tensor.layout != torch.strided or _storage(tensor) in self.aside:
            return tensor
        return _Holder(self, tensor)

    @staticmethod
    def unpack(held: Any) -> Tensor:
        tensor: Tensor = held.tensor if isinstance(held, _Holder) else held
        return tensor


class _Holder:
    """A saved tensor, counted from here to the end of its life."""

    def __init__(self, meter: _Meter, tensor: Tensor) -> None:
        self.meter = meter
        self.tensor = tensor
        self.storage = _storage(tensor)
        self.bytes = tensor.untyped_storage().nbytes()
        count = meter.holders.get(self.storage, 0)
        meter.holders[self.storage] = count + 1
        if count == 0:
            meter.live += self.bytes
            meter.peak = max(meter.peak, meter.live)

    def __del__(self) -> None:
        self.meter.holders[self.storage] -= 1
        if self.meter.holders[self.storage] == 0:
            self.meter.live -= self.bytes


def _storage(tensor: Tensor) -> int:
    """Identifies a tensor's storage; 0 for tensors without a strided one."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0
