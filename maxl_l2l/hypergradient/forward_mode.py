"""Forward mode: the derivative of a network's outputs along a direction in parameter space."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ..errors import UnsupportedOperatorError
from ..passes import RandomState, clones, norm, virtual_pass
from .tape import BILINEAR, OPENED, BatchNormCall, Tape, in_transform, product_arguments


def output_tangent(
    network: nn.Module,
    x: Any,
    direction: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    rng: RandomState,
    tape: Tape | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Differentiates the auxiliary outputs of a network along a direction, by one pass with dual numbers.

    Fused recurrent and transformer kernels have no forward-mode rule; see :func:`plain_kernels`.

    Args:
        network: ``x -> (primary outputs, auxiliary outputs)``; neither its buffers nor its parameters change.
        x: What the network takes.
        direction: Tangents of parameters, by name; parameters without one are constant.
        buffers: Buffers to start from, by name.
        rng: The random state to start from, for the dropout mask of an earlier pass.
        tape: Results of that pass, at the same parameters; they are taken from it.

    Returns:
        The auxiliary outputs; and their tangent, None if they do not depend on the direction.

    Raises:
        UnsupportedOperatorError: An operator of the network has no forward-mode rule; it is named.
    """
    _load_forward_mode_rules()
    parameters = dict(network.named_parameters())
    scale = _scale(parameters, direction)
    # Gradients are enabled so that a no_grad inside the network is noticed; no tensor here requires one.
    with torch.enable_grad(), rng.again(), forward_ad.dual_level(), _Duals(tape or Tape()):
        duals = {name: parameter.detach() for name, parameter in parameters.items()}
        for name, part in direction.items():
            duals[name] = forward_ad.make_dual(duals[name], part if scale is None else part * scale.to(part))
        try:
            _, auxiliary = virtual_pass(network, duals, clones(buffers), x)
        except (NotImplementedError, RuntimeError) as error:
            if not isinstance(error, NotImplementedError) and "Nested forward mode" not in str(error):
                raise
            raise UnsupportedOperatorError(
                f"method 'forward' needs a forward-mode rule for every operator of the network: {error}"
            ) from error
        outputs, tangent = _parts(auxiliary)
        return outputs, tangent if tangent is None or scale is None else tangent.float() / scale


def _scale(parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> Tensor | None:
    """A factor on the direction under float16, whose small tangents would vanish: it makes them as large as theta_1."""
    devices = {part.device.type for part in direction.values()}
    if not any(torch.is_autocast_enabled(one) and torch.get_autocast_dtype(one) == torch.float16 for one in devices):
        return None
    return norm(parameters[name].detach() for name in direction) / norm(direction.values()).clamp_min(1e-30)


class _Duals(TorchFunctionMode):
    """Forward-mode rules that are cheaper than PyTorch's own, for the layers where the time goes."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_plain = torch.is_grad_enabled() and not in_transform()
        if func in OPENED and is_plain:
            with self:
                return OPENED[func](*args, **kwargs)
        # Of each call that the tape has recorded, on whichever path: the next one is for the next call.
        kept = self._taken(func, *args, **kwargs) if func in BILINEAR or func is F.batch_norm else None
        if not torch.is_grad_enabled():
            # PyTorch's forward mode ignores no_grad: what is constant for a backward pass must be constant here too.
            args, kwargs = tree_map_only(Tensor, _value, (args, kwargs))
            return func(*args, **kwargs)
        # A network may differentiate something itself, which needs the graph of PyTorch's own rules.
        if not is_plain or any(isinstance(one, Tensor) and one.requires_grad for one in args):
            return func(*args, **kwargs)
        if func in BILINEAR:
            return self._bilinear(kept, func, *args, **kwargs)
        if func is F.batch_norm and (call := BatchNormCall(*args, **kwargs)).is_plain():
            return self._batch_norm(kept, call)
        if func in OWN_RULES:
            return OWN_RULES[func](*args, **kwargs)
        return func(*args, **kwargs)

    def _taken(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Tensor, ...] | None:
        """What the tape has of a call."""
        if func is F.batch_norm:
            call = BatchNormCall(*args, **kwargs)
            return self.tape.take("batch_norm", call.input.shape, call.weight)
        input, weight = product_arguments(*args, **kwargs)
        return self.tape.take(func.__name__, input.shape, weight)

    @staticmethod
    def _bilinear(
        kept: tuple[Tensor, ...] | None,
        func: Callable[..., Tensor],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The rule of a product: ``f(x, W)' = f(x, W') + f(x', W)``."""
        (x, dx), (w, dw), (b, db) = _parts(input), _parts(weight), _parts(bias)
        if dx is None and dw is None and db is None:
            return func(x, w, b, *args, **kwargs)
        value = kept[0] if kept else func(x, w, b, *args, **kwargs)
        if dw is None and db is not None:
            dw = torch.zeros_like(w)
        if func is F.linear and w.dim() == 2:  # one matrix product rather than one for each entry of a transposed batch
            func = _flat_linear
        tangent = None if dw is None else func(x, dw, db, *args, **kwargs)
        if dx is not None:
            along_input = func(dx, w, None, *args, **kwargs)
            tangent = along_input if tangent is None else tangent.add_(along_input)
        assert tangent is not None
        return _dual(value, tangent)

    @staticmethod
    def _batch_norm(kept: tuple[Tensor, ...] | None, call: BatchNormCall) -> Tensor:
        """Batch normalisation by fused kernels: its Jacobian is symmetric, so the backward kernel does forward mode."""
        (x, dx), (w, dw), (b, db) = _parts(call.input), _parts(call.weight), _parts(call.bias)
        shape = [1, -1, *[1] * (x.dim() - 2)]
        if kept is None:
            value, mean, rstd = call._replace(input=x, weight=w, bias=b).native()
        else:
            mean, rstd = kept
            scale = rstd if w is None else w * rstd
            offset = -mean * scale if b is None else b - mean * scale
            value = torch.addcmul(offset.view(shape), x, scale.view(shape))
        tangent = torch.zeros_like(value) if dx is None else _batch_norm_backward(dx, x, w, mean, rstd, call.eps)
        shift = db
        if dw is not None:
            slope = dw * rstd
            tangent.addcmul_(x, slope.view(shape))
            shift = -slope * mean if db is None else db - slope * mean
        if shift is not None:
            tangent.add_(shift.view(shape))
        return _dual(value, tangent)


def _batch_norm_backward(
    dx: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float
) -> Tensor:
    backward: Callable[..., tuple[Tensor, ...]] = torch.ops.aten.native_batch_norm_backward
    return backward(dx, x, weight, None, None, mean, rstd, True, eps, [True, False, False])[0]


def _flat_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(input.reshape(-1, input.shape[-1]), weight, bias).view(*input.shape[:-1], weight.shape[0])


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation by its two fused kernels; without the weight, its Jacobian is symmetric as well."""
    (x, dx), (w, dw), (b, db) = _parts(input), _parts(weight), _parts(bias)
    if dx is None or any(one is not None and one.dtype != x.dtype for one in (w, b)):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    shape = list(normalized_shape)
    standard, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
    tangent: Tensor = torch.ops.aten.native_layer_norm_backward(
        dx, x, shape, mean, rstd, None, None, [True, False, False]
    )[0]
    value = standard
    if w is not None:
        value = standard * w if b is None else torch.addcmul(b, standard, w)
        tangent.mul_(w)
    if dw is not None:
        tangent.addcmul_(standard, dw)
    if db is not None:
        tangent.add_(db)
    return _dual(value, tangent)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Weight normalisation by plain operations, as its fused kernel has no rule."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


OWN_RULES: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    torch._weight_norm: _weight_norm,
}


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)
    return dual


def _value(tensor: Tensor) -> Tensor:
    value: Tensor = forward_ad.unpack_dual(tensor).primal
    return value


def _parts(tensor: Tensor | None) -> tuple[Any, Any]:
    """A dual tensor's value and tangent, either of them None."""
    return (None, None) if tensor is None else forward_ad.unpack_dual(tensor)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Switches off the fused recurrent and transformer kernels; the plain operations have forward-mode rules."""
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    fast, fused = torch.backends.mha.get_fastpath_enabled(), [backend.enabled for backend in backends]
    torch.backends.mha.set_fastpath_enabled(False)
    for backend in backends:
        backend.enabled = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for backend, enabled in zip(backends, fused):
            backend.enabled = enabled


@functools.cache
def _load_forward_mode_rules() -> None:
    """Imports torch's forward-mode rules, once and silently.

    In torch 2.15 that import calls the deprecated torch.jit.script, which warns. To be removed when it no longer does.
    """
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=Warning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
