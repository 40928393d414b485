"""The arguments of a step, checked before anything is computed, in the form in which the steps take them."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..checks import check_choice, check_count, check_kind, check_number, check_optimizer
from ..hypergradient import METHODS, Batch, Options
from ..inner_step import InnerStep
from ..passes import in_float16
from ..steps import Updates
from .maml_interface import Learner


def checked_batches(check_batch: Callable[..., None], x: Any, y: Tensor, meta_batch: Batch | None) -> Batch:
    """Checks both batches; returns the one of the meta loss, which is ``(x, y)`` if none is given."""
    check_batch(x, y)
    if meta_batch is None:
        return x, y
    if not isinstance(meta_batch, (tuple, list)) or len(meta_batch) != 2:
        raise TypeError(
            f"`meta_batch` must be a pair (x, y), found {type(meta_batch).__name__}. "
            "Pass the samples and labels of the meta loss."
        )
    check_batch(*meta_batch, names=("meta_batch[0]", "meta_batch[1]"))
    return meta_batch[0], meta_batch[1]


def checked_options(
    method: str, epsilon: float | None, micro_batches: int, regularizer: object, measure: bool = False
) -> Options:
    """Returns how the hypergradient is to be computed."""
    if method == "regularizer" and regularizer is None:
        raise ValueError("`method` 'regularizer' needs a regularizer, found None. Pass regularizer= when you build it.")
    check_choice(method, METHODS, "method", "'forward' is exact and needs no second derivatives")
    check_count(micro_batches, "micro_batches", "Use 1 to pass the whole batch at once.")
    if epsilon is not None:
        check_number(epsilon, "epsilon", "Leave it out to have it chosen.", positive=True)
    return Options(method, epsilon, measure, micro_batches)


def checked_updates(network: nn.Module, max_grad_norm: float | None, scaler: GradScaler | None = None) -> Updates:
    """Returns how gradients are clipped and scaled; warns the caller of a step about float16 without a scaler."""
    if max_grad_norm is not None:
        check_number(max_grad_norm, "max_grad_norm", "Leave it out for no clipping.", positive=True)
    if scaler is not None:
        check_kind(scaler, GradScaler, "scaler", "Make it with torch.amp.GradScaler().")
        scaler = scaler if scaler.is_enabled() else None
    if scaler is None and in_float16(network):
        warnings.warn(
            "`scaler` is None under float16 autocast: small gradients become 0 and large ones infinite. "
            "Pass scaler=torch.amp.GradScaler(), or use bfloat16.",
            RuntimeWarning,
            stacklevel=4,
        )
    return Updates(max_grad_norm, scaler)


def checked_inner_step(learner: Learner, optimizer: Optimizer | None, max_grad_norm: float | None) -> InnerStep:
    """Returns the step that an optimizer would take; that of plain SGD with the learner's rate if there is none."""
    if optimizer is not None:
        check_optimizers(learner, optimizer=optimizer)
        return InnerStep(optimizer, max_grad_norm)
    parameters = [parameter for parameter in learner.network.parameters() if parameter.requires_grad]
    if not all(parameter.is_leaf for parameter in parameters):
        raise ValueError(
            "`hypergradient` needs a learner with parameters of its own, found a clone's, which are functions "
            "of others. Call it on the learner that was cloned, or meta_loss(x, y).backward() on the clone."
        )
    return InnerStep.sgd(parameters, learner.lr, max_grad_norm)


def check_optimizers(learner: Learner, **optimizers: Optimizer) -> None:
    """Raises unless each optimizer, named as its argument, holds all trainable parameters of its network alone."""
    for name, optimizer in optimizers.items():
        pair = ("network", learner.network), ("generator", learner.generator)
        (kind, own), (_, other) = pair if name == "optimizer" else pair[::-1]
        check_optimizer(optimizer, name, own, kind, other)
