"""The tape: what a pass keeps of its work for a forward-mode pass at the same parameters."""

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
"""Products that an entry of a result must take to be kept: early convolutions have large results, quickly computed."""
Key = tuple[Any, ...]


def is_worth_keeping(func: Callable[..., Any], weight: Tensor) -> bool:
    """Whether what a product gives is dear enough to be kept."""
    least = MIN_PRODUCTS_OF_LINEAR if func is F.linear else MIN_PRODUCTS
    return func in BILINEAR and weight.dim() > 1 and weight[0].numel() >= least


def _key(name: str, shape: Iterable[int], weight: Tensor) -> Key:
    """What tells a product from others: function, shape of the input, place of the weight."""
    return (name, tuple(shape), weight.data_ptr(), tuple(weight.shape))


def in_transform() -> bool:
    """Whether a function runs inside of torch.func's vmap, grad or jvp, whose tensors are not ours to look into."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _opened(func: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that modes see as one, in a form in which they see the functions that it calls."""
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
        """Whether it normalises by the statistics of a batch, of more than one value, and in one dtype."""
        x = self.input
        same = all(one is None or one.dtype == x.dtype for one in (self.running_mean, self.weight, self.bias))
        return self.training and same and x.numel() > x.shape[1]

    def native(self) -> tuple[Tensor, Tensor, Tensor]:
        """The result, with the mean and the inverse deviation of each channel."""
        return torch.native_batch_norm(
            self.input, self.weight, self.bias, self.running_mean, self.running_var, True, self.momentum, self.eps
        )


class Tape(TorchFunctionMode):
    """Keeps of a pass what a forward-mode pass would otherwise compute again: the results of convolutions and linear
    layers that take many products each, and on the CPU the statistics of BatchNorm.

    Of a VGG it spares the forward-mode pass a quarter of its work, for a fifth of what the pass keeps for backward.

    Args:
        traced: Whether it records inside of code that torch.compile traces. That can't tell by a version whether a
            result has been written over, so copies are kept, in :attr:`calls`, for a tape outside to :meth:`keep`.

    Attributes:
        calls: Of each call its function, the shape of its input, its weight and what is kept.
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
        # On the CPU the kernel whose statistics can be had is the one that F.batch_norm takes.
        if call and call.is_plain() and call.input.device.type == "cpu" and isinstance(call.weight, nn.Parameter):
            result, mean, rstd = call.native()
            self.keep("batch_norm", result.shape, call.weight, mean, rstd)
            return result
        result = func(*args, **kwargs)
        weight = _weight(*args, **kwargs) if func in BILINEAR else None
        # Of parameters alone, whose place in memory is theirs as long as they live.
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
        """Gives away what was kept of the next such call, unless something has since been written over it."""
        key = _key(name, shape, weight)
        if not self.kept.get(key):
            return None
        tensors, version = self.kept[key].pop(0)
        return tensors if tensors[0]._version == version else None


def _weight(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return weight
