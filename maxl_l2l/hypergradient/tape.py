"""The tape: results of a pass that a forward-mode pass at the same parameters reuses."""

import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

BILINEAR = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
    F.linear,
}
"""Functions ``(input, weight, bias=None, ...)`` that are linear in each of input and weight."""
MIN_PRODUCTS = 1024
MIN_PRODUCTS_OF_LINEAR = 128
"""Fewest products for each entry of a result that is kept: early convolutions have large results at little cost."""
Key = tuple[Any, ...]


def is_worth_keeping(func: Callable[..., Any], weight: Tensor) -> bool:
    """Whether a product is expensive enough for its result to be kept."""
    least = MIN_PRODUCTS_OF_LINEAR if func is F.linear else MIN_PRODUCTS
    return func in BILINEAR and weight.dim() > 1 and weight[0].numel() >= least


def _key(name: str, shape: Iterable[int], weight: Tensor) -> Key:
    """Identifies a product: function, shape of the input, place of the weight in memory."""
    return (name, tuple(shape), weight.data_ptr(), tuple(weight.shape))


def in_transform() -> bool:
    """Whether code runs inside torch.func's vmap, grad or jvp, whose tensors can't be inspected."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _opened(func: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a torch function in which a TorchFunctionMode sees the calls inside, not the function itself."""
    assert isinstance(func, types.FunctionType)
    names = {**func.__globals__, "has_torch_function": lambda tensors: False}
    return types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)


OPENED = {F.multi_head_attention_forward: _opened(F.multi_head_attention_forward)}
"""Functions made of linear layers."""


class BatchNormCall(NamedTuple):
    """The arguments of a call of ``F.batch_norm``."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5

    def is_plain(self) -> bool:
        """Whether it normalises by the statistics of a batch of more than one value, in one dtype."""
        x = self.input
        same = all(one is None or one.dtype == x.dtype for one in (self.running_mean, self.weight, self.bias))
        return self.training and same and x.numel() > x.shape[1]

    def native(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result, with the mean and the inverse standard deviation of each channel."""
        return torch.native_batch_norm(
            self.input, self.weight, self.bias, self.running_mean, self.running_var, True, self.momentum, self.eps
        )


class Tape(TorchFunctionMode):
    """Keeps results of a pass that a forward-mode pass would compute again: those of expensive convolutions and linear
    layers, and on the CPU the statistics of BatchNorm.

    For a VGG it saves a quarter of the forward-mode pass, in a fifth of the memory that is kept for backward.

    Args:
        traced: Whether it records inside code that torch.compile traces. There no version counter shows whether a
            result was overwritten: copies are kept in :attr:`calls`, for the :meth:`keep` of a tape outside.

    Attributes:
        calls: The function, the shape of the input, the weight and the result of each call.
    """

    def __init__(self, traced: bool = False) -> None:
        super().__init__()
        self.traced = traced
        self.calls: list[tuple[str, list[int], Tensor, Tensor]] = []
        self.kept: dict[Key, list[tuple[tuple[Tensor, ...], int]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # The forward-mode pass does not ask for what runs without gradients or in a transform.
        if not torch.is_grad_enabled() or (not self.traced and in_transform()):
            return func(*args, **kwargs)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        call = BatchNormCall(*args, **kwargs) if func is F.batch_norm and not self.traced else None
        # On the CPU F.batch_norm uses this kernel, which also returns its statistics.
        if call and call.is_plain() and call.input.device.type == "cpu" and isinstance(call.weight, nn.Parameter):
            result, mean, rstd = call.native()
            self.keep("batch_norm", result.shape, call.weight, mean, rstd)
            return result
        result = func(*args, **kwargs)
        weight = _weight(*args, **kwargs) if func in BILINEAR else None
        # Only for parameters, whose place in memory stays the same.
        if isinstance(weight, nn.Parameter) and is_worth_keeping(func, weight):
            if self.traced:
                self.calls.append((func.__name__, list(args[0].shape), weight, result.clone()))
            else:
                self.keep(func.__name__, args[0].shape, weight, result)
        return result

    def keep(self, name: str, shape: Iterable[int], weight: Tensor, *tensors: Tensor) -> None:
        """Keeps tensors of a call, with the version of the first."""
        entry = tuple(tensor.detach() for tensor in tensors), tensors[0]._version
        self.kept.setdefault(_key(name, shape, weight), []).append(entry)

    def take(self, name: str, shape: Iterable[int], weight: Tensor) -> tuple[Tensor, ...] | None:
        """Removes and returns what was kept of the next such call; None if nothing was, or it was overwritten."""
        key = _key(name, shape, weight)
        if not self.kept.get(key):
            return None
        tensors, version = self.kept[key].pop(0)
        return tensors if tensors[0]._version == version else None


def _weight(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return weight
