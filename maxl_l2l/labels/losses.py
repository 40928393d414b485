"""The paper's losses: masked softmax, focal loss and the entropy regulariser, tensors in and tensors out.

All take the class dimension as dimension 1 with any trailing dimensions, like ``torch.nn.functional.cross_entropy``,
so dense (per-pixel) labels work. Probabilities and logarithms are computed in float32 or better, also under autocast.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..passes import at_least_float32
from .hierarchy import Hierarchy, block_mask, check_indices


def masked_softmax(logits: Tensor, y: Tensor, psi: Hierarchy | Iterable[int]) -> Tensor:
    """Softmax over the auxiliary classes of each sample's primary class, exactly 0 outside.

    This is what equation 2 of Liu et al. (2019) means: outside the block the logits are taken as minus infinity. (The
    printed formula ``exp(M * z)`` would give the classes outside a weight of ``exp(0)``.)

    Args:
        logits: Unnormalised scores of the K auxiliary classes, shape ``[N, K, ...]``.
        y: Primary classes, int64, shape ``[N, ...]``.
        psi: The hierarchy, or its C sizes.

    Returns:
        Probabilities, shape ``[N, K, ...]``, float32 or better; each sample's sum to 1. Differentiable in logits.

    Raises:
        TypeError: y is not an int64 tensor.
        ValueError: A label is out of range, or the shapes do not fit psi or each other.

    Example:
        >>> masked_softmax(torch.zeros(2, 3), torch.tensor([0, 1]), [1, 2])
        tensor([[1.0000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.5000]])
    """
    hierarchy = Hierarchy.of(psi)
    hierarchy.check_labels(y)
    _check_logits(logits, y, hierarchy.num_auxiliary)
    return softmax_in_block(logits, y, hierarchy.primary_of_auxiliary(logits.device))


def softmax_in_block(logits: Tensor, y: Tensor, primary_of_auxiliary: Tensor) -> Tensor:
    """The masked softmax without its checks; primary_of_auxiliary is ``[K]`` on the device of logits."""
    outside = ~block_mask(y, primary_of_auxiliary)
    return at_least_float32(logits).masked_fill(outside, -torch.inf).softmax(dim=1)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss ``-sum_k t_k (1 - p_k)^gamma log p_k`` with ``p = softmax(logits)``.

    Lin et al. (2017), extended to soft targets as in Liu et al. (2019, section 3.1). ``gamma=0`` is cross-entropy.

    Args:
        logits: Unnormalised scores, shape ``[N, C, ...]``.
        target: Class indices, int64, shape ``[N, ...]``; or probabilities, shape ``[N, C, ...]``.
        gamma: Focusing exponent, >= 0.

    Returns:
        The mean over all dimensions but the class dimension, in nats; a scalar. Differentiable in logits and in
        probabilities given as target, any number of times.

    Raises:
        TypeError: target is neither int64 indices nor floating-point probabilities.
        ValueError: gamma is negative or not finite, an index is out of range, or the shapes do not fit.

    Example:
        >>> focal_loss(torch.zeros(1, 2), torch.tensor([0]))  # 0.5 ** 2 * log(2)
        tensor(0.1733)
    """
    check_number(gamma, "gamma", "Use 2, as the paper does, or 0 for cross-entropy.")
    _check_target(logits, target)
    return focal_loss_per_sample(logits, target, gamma).mean()


PROBABILITIES = "found rows that are non-negative and sum to 1: probabilities already"
"""How messages describe outputs that are no logits."""
SECOND_SOFTMAX = (
    f"`model` must return logits, {PROBABILITIES}. The loss would take a second softmax of them, which flattens its "
    "gradient. Leave the softmax at the model's end away; take it where probabilities are wanted."
)
"""The message about a model whose outputs are probabilities."""


def are_probabilities(outputs: Tensor) -> bool:
    """Returns whether outputs ``[N, C, ...]`` are non-negative and sum to 1 over C, as after a softmax."""
    if outputs.dim() < 2 or outputs.shape[1] < 2 or not outputs.is_floating_point():
        return False
    tolerance = torch.finfo(outputs.dtype).eps ** 0.5
    return bool(outputs.min() >= 0 and (outputs.sum(dim=1) - 1).abs().max() <= tolerance)


def focal_loss_per_sample(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """The focal loss of each sample, unchecked: ``[N, C, ...]`` to ``[N, ...]``, in nats."""
    log_probs = at_least_float32(logits).log_softmax(dim=1)
    if not target.is_floating_point():
        log_probs = log_probs.gather(1, target.unsqueeze(1))
        return (-_focus(log_probs, gamma) * log_probs).squeeze(1)
    return -(target * _focus(log_probs, gamma) * log_probs).sum(dim=1)


def entropy_loss(probs: Tensor) -> Tensor:
    """Negative entropy ``sum_k q_k log q_k`` of the mean label q: minimising it spreads the labels.

    The regulariser H of Liu et al. (2019, section 3.3). q is the mean over the batch and any trailing dimensions. A
    class without mass contributes 0 and a finite gradient.

    Args:
        probs: Probabilities, shape ``[N, K, ...]``.

    Returns:
        The sum over classes in nats, between ``-log K`` and 0; a scalar, differentiable in probs.

    Raises:
        ValueError: probs has fewer than two dimensions or no sample.

    Example:
        >>> entropy_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # q = (0.5, 0.5)
        tensor(-0.6931)
    """
    _check_tensor(probs, "probs")
    if probs.dim() < 2 or probs.numel() == 0:
        raise ValueError(
            f"`probs` must have shape [N, K, ...] with at least one sample, found {list(probs.shape)}. "
            "Put the class dimension second."
        )
    return negative_entropy(mean_label(probs))


def mean_label(probs: Tensor) -> Tensor:
    """The mean over the batch and any trailing dimensions: ``[N, K, ...]`` to ``[K]``, float32 or better."""
    return at_least_float32(probs).transpose(0, 1).flatten(1).mean(dim=1)


def negative_entropy(q: Tensor) -> Tensor:
    """``sum_k q_k log q_k`` of probabilities ``[K]``, in nats."""
    # The clamp bounds the gradient log q + 1 where q is 0; where it acts, q log q is 0 in either form.
    return (q * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum()


def _focus(log_probs: Tensor, gamma: float) -> Tensor | float:
    """``(1 - p)^gamma``, with finite derivatives of every order at p = 1."""
    if gamma == 0:
        return 1.0
    # 1 - p as -expm1(log p) keeps its digits near p = 1. At p = 1 a power below 2 has an infinite second derivative
    # (below 1 an infinite first one) that meets log p = 0; the clamp replaces this 0 * inf by its limit, 0.
    one_minus_probs = -torch.expm1(log_probs)
    return one_minus_probs.clamp_min(torch.finfo(log_probs.dtype).eps).pow(gamma)


def _check_logits(logits: Tensor, y: Tensor, num_auxiliary: int) -> None:
    _check_tensor(logits, "logits")
    if logits.device != y.device:
        raise ValueError(
            f"`logits` and `y` must be on the same device, found {logits.device} and {y.device}. "
            "Move both with .to(device)."
        )
    if logits.dim() < 2 or logits.shape[1] != num_auxiliary:
        raise ValueError(
            f"`logits` must have shape [N, {num_auxiliary}, ...], the sum of psi in dimension 1, "
            f"found {list(logits.shape)}. Give the network sum(psi) = {num_auxiliary} outputs."
        )
    if y.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"`y` must have the shape of `logits` without dimension 1, {list(logits.shape[:1] + logits.shape[2:])}, "
            f"found {list(y.shape)}. Give one primary class per sample (and per pixel)."
        )


def _check_tensor(values: Any, argument: str) -> None:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        found = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(
            f"`{argument}` must be a floating-point tensor, found {found}. Use torch.as_tensor(...).float()."
        )


def _check_target(logits: Tensor, target: Tensor) -> None:
    _check_tensor(logits, "logits")
    if logits.dim() < 2 or logits.numel() == 0:
        raise ValueError(
            f"`logits` must have shape [N, C, ...] with at least one sample, found {list(logits.shape)}. "
            "Put the class dimension second."
        )
    if isinstance(target, Tensor) and target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(
                f"`target` must have the shape of `logits`, {list(logits.shape)}, when it holds probabilities, "
                f"found {list(target.shape)}. Put the class dimension second, or give class indices."
            )
        return
    check_indices(target, logits.shape[1], "target", "class")
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"`target` must have the shape of `logits` without dimension 1, "
            f"{list(logits.shape[:1] + logits.shape[2:])}, when it holds class indices, found {list(target.shape)}. "
            "Give one class per sample (and per pixel), or probabilities."
        )
