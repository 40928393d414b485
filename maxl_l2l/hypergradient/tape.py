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


def is_worth_keeping(func: Callable[..., Any], weight: Tensor) -> bool:
    """Whether a product is expensive enough for its result to be kept."""
    least = MIN_PRODUCTS_OF_LINEAR if func is F.linear else MIN_PRODUCTS
    return func in BILINEAR and weight.dim() > 1 and weight[0].numel() >= least


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


class Call(NamedTuple):
    """A product or a batch normalisation in a pass, and what was kept of it.

    Attributes:
        name: The function.
        shape: Of the input.
        weight: A parameter; None for any other tensor, and for none.
        kept: Tensors of the call, without a graph; none if it was not worth it.
        version: Of the first of them.
    """

    name: str
    shape: list[int]
    weight: Tensor | None
    kept: tuple[Tensor, ...] = ()
    version: int = 0

    def is_of(self, name: str, shape: Iterable[int], weight: Tensor | None) -> bool:
        """Whether this is a call of such a function with such arguments, as far as can be told."""
        if (self.name, self.shape) != (name, list(shape)):
            return False
        return self.weight is None or (weight is not None and self.weight.data_ptr() == weight.data_ptr())


class Tape(TorchFunctionMode):
    """Keeps results of a pass that a forward-mode pass would compute again: those of expensive convolutions and linear
    layers, and on the CPU the statistics of BatchNorm.

    For a VGG it saves a quarter of the forward-mode pass, in a fifth of the memory that is kept for backward.
    All calls are recorded in their order, also those of which nothing is kept, so that each result goes to the very
    call that it is of. After the first call that is another one, nothing is given any more.

    Args:
        traced: Whether it records inside code that torch.compile traces. There no version counter shows whether a
            result was overwritten, so copies are kept.

    Attributes:
        calls: What was recorded and not asked for yet, in order.
        differs: Whether that pass has made another call than this one.
    """

    def __init__(self, traced: bool = False) -> None:
        super().__init__()
        self.traced = traced
        self.calls: list[Call] = []
        self.differs = False

    def __torch_function__(
        self, func: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # What runs without gradients or in a transform is constant, or differentiated by the network itself.
        is_plain = torch.is_grad_enabled() and (self.traced or not in_transform())
        if func in OPENED and is_plain:
            with self:
                return OPENED[func](*args, **kwargs)
        if func is F.batch_norm:
            return self._batch_norm(BatchNormCall(*args, **kwargs), is_plain)
        result = func(*args, **kwargs)
        if func in BILINEAR:
            input, weight = product_arguments(*args, **kwargs)
            # Only parameters can be told apart by their place in memory, which stays the same.
            parameter = weight if is_plain and isinstance(weight, nn.Parameter) else None
            is_kept = parameter is not None and is_worth_keeping(func, weight)
            self._record(func.__name__, input, parameter, (result,) if is_kept else ())
        return result

    def _batch_norm(self, call: BatchNormCall, is_plain: bool) -> Tensor:
        parameter = call.weight if is_plain and isinstance(call.weight, nn.Parameter) else None
        # On the CPU F.batch_norm uses this kernel, which also returns its statistics.
        if parameter is None or self.traced or call.input.device.type != "cpu" or not call.is_plain():
            statistics: list[Tensor] = []
            result = F.batch_norm(*call)
        else:
            result, *statistics = call.native()
        self._record("batch_norm", call.input, parameter, tuple(statistics))
        return result

    def _record(self, name: str, input: Tensor, parameter: Tensor | None, kept: tuple[Tensor, ...]) -> None:
        tensors = tuple(one.detach().clone() if self.traced else one.detach() for one in kept)
        version = 0 if self.traced or not kept else kept[0]._version
        self.calls.append(Call(name, list(input.shape), parameter, tensors, version))

    def take(self, name: str, shape: Iterable[int], weight: Tensor | None) -> tuple[Tensor, ...] | None:
        """Removes the next call and returns what was kept of it; None if nothing, or it was overwritten or differs."""
        if self.differs or not self.calls or not self.calls[0].is_of(name, shape, weight):
            self.differs = True
            return None
        call = self.calls.pop(0)
        return call.kept if call.kept and call.kept[0]._version == call.version else None

    @property
    def is_used_up(self) -> bool:
        """Whether the other pass has made all of the calls of this one, and no others."""
        return not self.differs and not self.calls


def product_arguments(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Returns the input and the weight of a call of one of :data:`BILINEAR`."""
    return input, weight
