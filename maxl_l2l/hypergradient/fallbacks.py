"""Fall-backs: which method takes over where an operator of the network has no derivative for another."""

import contextlib
import warnings

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import FallBackWarning, RankError, UnsupportedOperatorError
from ..inner_step import InnerStep
from ..passes import RandomState, cuda_devices
from .bilevel import Batch, Bilevel
from .forward_mode import plain_kernels
from .gradients import Computation, Options
from .methods import METHODS
from .results import Derivatives

FALLBACKS = {
    "forward": (
        "unrolled",
        "the double backward pass is used, which is exact too and takes more time and memory",
    ),
    "unrolled": (
        "finite-difference",
        "finite differences are used, whose relative error hypergradient() gives with its result",
    ),
}
"""The method that replaces another where an operator has no rule for it, and what that means for the user."""
NO_DERIVATIVE = (
    "derivative for",
    "activation checkpointing",
    "does not currently support double backward",
    "once_differentiable",
)
"""Parts of PyTorch's messages about missing derivatives; the methods themselves raise UnsupportedOperatorError."""


def differentiate(
    bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep, options: Options | None = None
) -> Derivatives:
    """Computes both networks' gradients; changes nothing but the random state and ``bilevel.experience.fallbacks``.

    All passes use torch's math kernel for attention: fused ones have no forward-mode or second derivative, and other
    dropout masks. For a network with an operator without a forward-mode rule the double backward pass is used; if the
    operator has no second derivative either, finite differences are.
    """
    options, experience = options or Options(), bilevel.experience
    state = RandomState(cuda_devices(bilevel.network))
    while True:
        method = experience.fallbacks.get(options.method, options.method)
        needs_plain = method == "forward" and experience.plain_kernels is True
        kernels = plain_kernels() if needs_plain else contextlib.nullcontext()
        try:
            with sdpa_kernel(SDPBackend.MATH), kernels:
                return METHODS[method](Computation(bilevel, batch, meta_batch, inner, options))
        except (UnsupportedOperatorError, RuntimeError) as error:
            if method == "forward" and isinstance(error, UnsupportedOperatorError) and not needs_plain:
                is_enough = not experience.plain_kernels and not _has_recurrent_dropout(bilevel.network)
                experience.plain_kernels = "forward-mode" if is_enough else True
            elif _falls_back(experience.fallbacks, options.method, method, error):
                experience.plain_kernels = False  # they did not help
            else:
                raise
        state.restore()


def _has_recurrent_dropout(network: nn.Module) -> bool:
    """Whether fused recurrent kernels may draw other dropout masks than plain ones."""
    return any(isinstance(part, nn.RNNBase) and part.dropout > 0 for part in network.modules())


def _falls_back(fallbacks: dict[str, str], asked: str, method: str, error: Exception) -> bool:
    """Records the method to use instead of one that lacks a derivative, and warns; False if there is none."""
    missing = isinstance(error, UnsupportedOperatorError) or any(reason in str(error) for reason in NO_DERIVATIVE)
    missing = missing and not isinstance(error, RankError)  # which quotes other errors
    if asked != "forward" or method not in FALLBACKS or not missing:
        return False
    fallbacks[asked], consequence = FALLBACKS[method]
    warnings.warn(
        f"`method` {method!r} does not work for this network: {str(error).rstrip('.')}. From now on {consequence}.",
        FallBackWarning,
        stacklevel=7,
    )
    return True
