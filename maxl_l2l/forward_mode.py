"""Forward mode: the derivative of a network's outputs along a direction in parameter space."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .passes import RandomState, buffer_copies, virtual_pass


def output_tangent(network: nn.Module, x: Any, direction: Mapping[str, Tensor], rng: RandomState) -> Tensor | None:
    """Differentiates the auxiliary outputs of a network along a direction, by one pass with dual numbers.

    Args:
        network: ``x -> (primary outputs, auxiliary outputs)``; neither its buffers nor its parameters change.
        x: What the network takes.
        direction: Tangents of parameters, by name; parameters without one stand still.
        rng: The random state to start from, for the dropout mask of an earlier pass.

    Returns:
        The tangent, of the shape of the auxiliary outputs; None if these do not depend on the direction.

    Raises:
        NotImplementedError: An operator of the network has no forward-mode rule; it is named.
    """
    try:
        return _tangent(network, x, direction, rng)
    except NotImplementedError:
        # Fused recurrent and transformer kernels have no forward-mode rule, what they are made of has.
        with _plain_kernels():
            return _tangent(network, x, direction, rng)


def _tangent(network: nn.Module, x: Any, direction: Mapping[str, Tensor], rng: RandomState) -> Tensor | None:
    _load_forward_mode_rules()
    rng.restore()
    parameters = dict(network.named_parameters())
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(parameters[name].detach(), part) for name, part in direction.items()}
        try:
            _, auxiliary = virtual_pass(network, duals, buffer_copies(network), x)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"`method` 'forward' needs a forward-mode rule for every operator of the network: {error}. "
                "Pass method='unrolled', which needs second derivatives instead."
            ) from error
        tangent: Tensor | None = forward_ad.unpack_dual(auxiliary).tangent
        return tangent


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Switches off the fused recurrent and transformer kernels."""
    fast, fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = fused


@functools.cache
def _load_forward_mode_rules() -> None:
    """Has torch import its forward-mode rules, once.

    In torch 2.15 that import calls the deprecated torch.jit.script and so warns users of something not theirs. To be
    removed when torch's own import is silent.
    """
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=Warning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
