"""The hypergradient: the derivative of the meta loss after one inner step with respect to the generator.

Theta-one (theta_1) are the multi-task network's parameters, theta-two (theta_2) the generator's, theta-one-plus
(theta_1+) the look-ahead parameters ``U(theta_1, gradient)``.

The auxiliary labels t = g(x, y; theta_2) enter the multi-task loss L1 beside the network's outputs o, never through the
network. With v the gradient of the primary meta loss at theta_1+, the chain rule gives::

    d meta / d theta_2 = v . dU/dgrad . d/d theta_2 (dL1/d theta_1)
                       = d/d theta_2 <dL1/do (o, t(theta_2)), o'>     with o' = do/d theta_1 . v',  v' = (dU/dgrad)^T v

so one forward-mode pass along v' and a second derivative of the loss function alone replace the double backward pass.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import UnsupportedOperatorError
from ..passes import clones, virtual_pass
from .batch_passes import NetworkPass
from .finite_difference import Line, Norm, output_difference
from .forward_mode import output_tangent, plain_kernels
from .gradients import Computation
from .micro_batches import num_samples
from .results import Derivatives
from .tape import Tape


def _forward(run: Computation) -> Derivatives:
    """The hypergradient by one forward-mode pass; see the derivation above."""
    experience = run.bilevel.experience
    # Results of a pass are reused only once it is known that a second pass repeats them.
    grads = run.inner_gradient(with_tape=experience.repeats is True)
    meta_loss, direction = run.look_ahead(grads)

    def tangent_of(one: NetworkPass, tape: Tape | None = None) -> tuple[Tensor, Tensor | None]:
        with plain_kernels() if experience.plain_kernels else contextlib.nullcontext():
            return output_tangent(run.bilevel.network, one.x, direction, one.start, one.rng, tape)

    def label_grad(one: NetworkPass) -> Tensor | None:
        if not direction:
            return None
        outputs, tangent = tangent_of(one, one.tape)
        if experience.compared < 2:  # without a tape, and the first time with one
            # All ranks must come to one conclusion, as it has them begin the step again.
            if experience.plain_kernels == "forward-mode" and not _same(one.auxiliary, outputs, run.ranks.norm):
                raise UnsupportedOperatorError("plain kernels give other outputs than the network's fused ones")
            experience.compared += 1
            experience.repeats = experience.repeats is not False and _repeats(one.auxiliary, outputs, run.norm)
        if one.tape is not None and not one.tape.is_used_up:  # the network makes other calls in this pass
            experience.repeats = False
        if one.tape is not None and not experience.repeats:
            _, tangent = tangent_of(one)
        return None if tangent is None else one.label_grad(tangent)

    return run.derivatives(grads, map(label_grad, run.passes), meta_loss)


def _finite_difference(run: Computation) -> Derivatives:
    """The hypergradient with the forward-mode pass replaced by a difference of passes."""
    grads = run.inner_gradient()
    meta_loss, direction = run.look_ahead(grads)
    options, experience = run.options, run.bilevel.experience
    errors: list[Tensor] = []

    def label_grad(one: NetworkPass) -> Tensor | None:
        if not direction:
            return None
        line = Line(run.bilevel.network, one.x, direction, one.start, one.rng, run.norm)
        tangent, error = output_difference(line, one.auxiliary, experience.distance, options.epsilon, options.measure)
        errors.extend([] if error is None else [error])
        return one.label_grad(tangent)

    return run.derivatives(grads, [label_grad(one) for one in run.passes], meta_loss, errors)


def _unrolled(run: Computation) -> Derivatives:
    """The hypergradient by a double backward pass through the inner step: the reference, at more time and memory."""
    grads = run.inner_gradient(attached=True)
    _check_twice_differentiable(grads)
    stepped = dict(zip(run.names, run.inner.look_ahead(run.parameters, grads)))
    buffers = clones(run.buffers)
    losses = []
    for x, y in run.meta_batches:
        outputs, _ = virtual_pass(run.bilevel.network, stepped, buffers, x)
        losses.append(run.bilevel.objective.primary(outputs, y) * (num_samples((x, y)) / run.num_meta_samples))
    meta_loss = torch.stack(losses).sum()
    labels = [one.targets for one in run.labels]
    if not meta_loss.requires_grad:
        return run.derivatives(grads, [None] * len(labels), meta_loss)
    with _no_recomputation(run.bilevel.network):
        found = torch.autograd.grad(meta_loss, labels, allow_unused=True)
    return run.derivatives(grads, found, meta_loss)


@contextlib.contextmanager
def _no_recomputation(network: nn.Module) -> Iterator[None]:
    """Raises if a module recomputes activations: it would do so at theta_1, even for the pass at theta_1+."""

    def refuse(module: nn.Module, args: object) -> None:
        raise UnsupportedOperatorError(
            "`method` 'unrolled' can't be used with activation checkpointing, whose recomputation has no second "
            "derivative at the right parameters. Use method='forward'."
        )

    hooks = [module.register_forward_pre_hook(refuse) for module in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _repeats(expected: Tensor, found: Tensor, norm: Norm) -> bool:
    """Whether two passes from the same state give the same outputs; warns if not."""
    if _same(expected, found, norm):
        return True
    warnings.warn(
        "`model` gave other outputs in a second pass with the same parameters, buffers and random numbers of "
        "torch: the hypergradient is then that of neither pass. Draw random numbers from torch (not random or "
        "numpy), keep what changes in a forward pass in buffers, and see check_model(maxl, x, y).",
        RuntimeWarning,
        stacklevel=9,
    )
    return False


def _same(expected: Tensor, found: Tensor, norm: Norm) -> bool:
    """Whether outputs differ by rounding at most; true for NaN, which raises an error of its own."""
    tolerance = max(torch.finfo(expected.dtype).eps, torch.finfo(found.dtype).eps) ** 0.5
    return not norm([found.detach() - expected]) > tolerance * norm([expected])


def _check_twice_differentiable(grads: Sequence[Tensor | None]) -> None:
    """Raises if a gradient passed through a function that is differentiable only once.

    autograd.grad does not raise: such a function silently cuts the graph, and so the path from the labels.
    """
    nodes = [grad.grad_fn for grad in grads if grad is not None]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).name(node).endswith("::Error"):  # a function may have a `name` of its own
            raise UnsupportedOperatorError(
                "`method` 'unrolled' needs second derivatives, but a function of the network is marked with "
                "@once_differentiable. Use method='forward', which needs its jvp(), or method='finite-difference'."
            )
        nodes.extend(following for following, _ in node.next_functions)


def _regularizer_only(run: Computation) -> Derivatives:
    """The regulariser's gradient alone: a control that shows what the hypergradient contributes."""
    return run.derivatives(run.inner_gradient(), [None] * len(run.batches))


METHODS: dict[str, Callable[[Computation], Derivatives]] = {
    "forward": _forward,
    "finite-difference": _finite_difference,
    "unrolled": _unrolled,
    "regularizer": _regularizer_only,
}
"""The function that computes both networks' gradients, for each value of the argument ``method``."""
