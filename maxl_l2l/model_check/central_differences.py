"""Central differences of a real step, for comparison with the hypergradient along a random direction."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..learners import AuxiliaryLabelGenerator
from ..passes import copied, map_tensors
from .snapshot import Snapshot

# A double-precision copy of larger networks could need more memory than training does.
MOST_PARAMETERS = 200_000_000
# The step in theta_1, as a fraction of its norm.
STEP = 0.02
# How far both networks are first moved at random, as a fraction of their root mean square. Some are initialised where
# their derivative jumps: if a residual branch is zero at first, for instance, a ReLU after it may get zeros.
OFFSET = 0.01
# Steps in theta_2, as fractions of its root mean square, in the order of trial. Deep networks with BatchNorm need short
# ones; models that compute something in float32 need longer ones.
LENGTHS = {torch.float64: (1e-6, 1e-8, 1e-5, 1e-4, 1e-7, 1e-9, 1e-10), torch.float32: (1e-2, 1e-3, 1e-1)}


class Comparison(NamedTuple):
    """How far the hypergradient is from the truth.

    Attributes:
        error: Relative to the larger of the two; None if rounding or kinks make the differences inconclusive.
        bound: The largest error to expect of an exact hypergradient.
        dtype: What it was computed in.
        reason: Why it was not computed in float64; empty if it was.
    """

    error: float | None
    bound: float
    dtype: torch.dtype
    reason: str


def compare(maxl: AuxiliaryLabelGenerator, x: Any, y: Tensor, method: str) -> Comparison:
    """Compares a learner's hypergradient with central differences, on a float64 copy if possible; may move the learner.

    The primary loss after one SGD step on the multi-task loss is computed twice, with theta_2 moved forwards and
    backwards along a random direction d. Its difference, divided by the distance, is ``<hypergradient, d>``. The
    regularizer is left out.
    """
    try:
        with torch.autocast(y.device.type, enabled=False):
            return _compare(_in_double(maxl), _in_float64(x), _in_float64(y), method, "")
    except Exception as error:  # a model may fail in any way in a dtype that it was not written for
        return _compare(maxl, x, y, method, f"{type(error).__name__}: {error}".split("\n")[0])


def _compare(maxl: AuxiliaryLabelGenerator, x: Any, y: Tensor, method: str, reason: str) -> Comparison:
    parameters = [p for p in maxl.generator.parameters() if p.requires_grad]
    dtype = max((p.dtype for p in parameters), key=lambda kind: torch.finfo(kind).eps)
    bound = 1e-3 if dtype == torch.float64 else 5e-2
    maxl.zero_grad()
    # The regularizer's gradient needs no hypergradient, and is so large that it would hide an error in the rest.
    maxl.objective = replace(maxl.objective, regularizer=None)
    for network in (maxl.network, maxl.generator):
        _move([p for p in network.parameters() if p.is_floating_point()], OFFSET)
    snapshot = Snapshot(maxl)
    rate = _rate(maxl, copied(x), y)
    snapshot.restore()
    rule = torch.optim.SGD([p for p in maxl.network.parameters() if p.requires_grad], lr=rate)
    maxl.hypergradient(copied(x), y, optimizer=rule, method=method)
    direction = _random_direction(parameters, seed=1)
    pairs = [(p.grad, part) for p, part in zip(parameters, direction) if p.grad is not None]
    expected = sum(float((grad.double() * part.double()).sum()) for grad, part in pairs)

    def loss_at(length: float) -> float:
        return _meta_loss_after_step(maxl, snapshot, x, y, rate, direction, length)

    lengths = LENGTHS.get(dtype, LENGTHS[torch.float32])
    return Comparison(_error(loss_at, expected, lengths, torch.finfo(dtype).eps, bound), bound, dtype, reason)


def _error(
    loss_at: Callable[[float], float], expected: float, lengths: Iterable[float], eps: float, bound: float
) -> float | None:
    """The relative error of an expected slope at 0, by the central difference that comes nearest to it."""
    measured: dict[float, float] = {}
    for length in lengths:
        values = loss_at(length), loss_at(-length)
        difference = (values[0] - values[1]) / (2 * length)
        rounding = 16 * eps * max(map(abs, values)) / (2 * length)
        if rounding <= bound / 4 * max(abs(difference), abs(expected)):
            measured[length] = difference
            if _relative(difference, expected) <= bound / 10:
                break
    error = min((_relative(difference, expected) for difference in measured.values()), default=None)
    return None if error is not None and error > bound and not _settled(measured, error) else error


def _relative(one: float, other: float) -> float:
    return 0.0 if one == other else abs(one - other) / max(abs(one), abs(other))


def _settled(measured: dict[float, float], error: float) -> bool:
    """Whether two neighbouring lengths give differences that agree far better than the hypergradient does with either.

    They do not across kinks, or where rounding is coarser than the dtype's.
    """
    by_length = [measured[length] for length in sorted(measured)]
    return any(_relative(one, other) <= error / 10 for one, other in pairwise(by_length))


def _in_double(maxl: AuxiliaryLabelGenerator) -> AuxiliaryLabelGenerator:
    num_parameters = sum(parameter.numel() for parameter in maxl.parameters())
    if num_parameters > MOST_PARAMETERS:
        raise MemoryError(f"a copy of {num_parameters:,} parameters would be too large")
    double = copy.deepcopy(maxl).double()
    for mean in (double.objective.primary, double.objective.auxiliary):
        loss = getattr(mean, "loss", None)
        if isinstance(loss, nn.Module):
            loss.double()
    return double


def _in_float64(x: Any) -> Any:
    return map_tensors(lambda tensor: tensor.detach().double() if tensor.is_floating_point() else tensor, x)


def _rate(maxl: AuxiliaryLabelGenerator, x: Any, y: Tensor) -> float:
    """A learning rate at which the step has a fixed relative size; shorter steps hide the hypergradient in rounding."""
    parameters = [p for p in maxl.network.parameters() if p.requires_grad]
    grads = torch.autograd.grad(maxl.loss(x, y), parameters, allow_unused=True)
    slope = _norm(grad for grad in grads if grad is not None)
    return STEP * _norm(parameters) / slope if slope else STEP


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _move(parameters: list[nn.Parameter], length: float) -> None:
    with torch.no_grad():
        for parameter, part in zip(parameters, _random_direction(parameters, seed=0)):
            parameter.add_(part, alpha=length)


def _random_direction(parameters: list[nn.Parameter], seed: int) -> list[Tensor]:
    """Normal numbers as large as the parameters are, drawn without touching the random state."""
    numbers = torch.Generator().manual_seed(seed)
    count = sum(p.numel() for p in parameters)
    size = _norm(parameters) / math.sqrt(count) or 1.0
    return [(torch.randn(p.shape, generator=numbers) * size).to(p) for p in parameters]


@sdpa_kernel(SDPBackend.MATH)  # as in the hypergradient, so that its dropout masks are the same
def _meta_loss_after_step(
    maxl: AuxiliaryLabelGenerator,
    snapshot: Snapshot,
    x: Any,
    y: Tensor,
    rate: float,
    direction: list[Tensor],
    length: float,
) -> float:
    """The meta loss after one SGD step towards the labels of a generator that is moved along a direction."""
    snapshot.restore()
    x = copied(x)
    moved = [p for p in maxl.generator.parameters() if p.requires_grad]
    trained = [p for p in maxl.network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, part in zip(moved, direction):
            parameter.add_(part, alpha=length)
        targets = maxl.generator(x, y)
    outputs, auxiliary = maxl.network(x)
    loss = maxl.objective.primary(outputs, y) + maxl.objective.auxiliary(auxiliary, targets)
    grads = torch.autograd.grad(loss, trained, allow_unused=True)
    with torch.no_grad():
        for parameter, grad in zip(trained, grads):
            if grad is not None:
                parameter.sub_(grad, alpha=rate)
        return float(maxl.objective.primary(maxl.network(x)[0], y))
