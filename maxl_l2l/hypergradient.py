"""The hypergradient: the derivative of the meta loss after one inner step with respect to the generator.

Theta-one (theta_1) are the multi-task network's parameters, theta-two (theta_2) the generator's, theta-one-plus
(theta_1+) the look-ahead parameters ``U(theta_1, gradient)``.

The auxiliary labels t = g(x, y; theta_2) enter the multi-task loss L1 beside the network's outputs o, never through the
network. With v the gradient of the primary meta loss at theta_1+, the chain rule gives::

    d meta / d theta_2 = v . dU/dgrad . d/d theta_2 (dL1/d theta_1)
                       = d/d theta_2 <dL1/do (o, t(theta_2)), o'>     with o' = do/d theta_1 . v',  v' = (dU/dgrad)^T v

so one forward-mode pass along v' and a second derivative of the loss function alone replace the double backward pass.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .derivatives import Derivatives
from .errors import RankError, UnsupportedOperatorError
from .finite_difference import Line, Norm, output_difference
from .forward_mode import output_tangent, plain_kernels
from .inner_pass import Batch, Bilevel, LabelPass, MeanRegularizer, NetworkPass, backward, summary
from .inner_step import InnerStep, clip_by_norm
from .micro_batches import num_samples, split
from .passes import RandomState, buffer_copies, clones, cuda_devices, norm, virtual_pass
from .reduction import Grads, Reduction, added
from .sync_norm import meets_in_passes
from .tape import Tape


@dataclass(frozen=True)
class Options:
    """How the hypergradient is computed.

    Attributes:
        method: One of :data:`METHODS`.
        epsilon: Euclidean distance of a finite difference; None to have it chosen.
        measure: Whether finite differences measure their error now.
        micro_batches: Parts that a batch goes through the networks in, one after the other.
        loss_scale: Factor on every loss that is differentiated, divided out of its gradients: a gradient scaler's.
    """

    method: str = "forward"
    epsilon: float | None = None
    measure: bool = False
    micro_batches: int = 1
    loss_scale: Tensor | float = 1.0


class _Run:
    """One computation of the derivatives: the passes at theta_1, and what all methods do with them."""

    def __init__(self, bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep, options: Options) -> None:
        self.bilevel, self.inner, self.options = bilevel, inner, options
        trainable = {name: p for name, p in bilevel.network.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trainable), list(trainable.values())
        self.devices = cuda_devices(bilevel.network)
        self.buffers, self.generator_buffers = buffer_copies(bilevel.network), buffer_copies(bilevel.generator)
        self.batches = split(batch, options.micro_batches)
        self.meta_batches = split(meta_batch, options.micro_batches)
        self.ranks = bilevel.ranks
        # Of all ranks: a rank's part of a batch is weighted as a micro-batch is.
        self.num_samples, self.num_meta_samples = self.ranks.totals(
            f"method={options.method!r}", num_samples(batch), num_samples(meta_batch)
        )
        self.ranks_meet = meets_in_passes(self.ranks, bilevel.network, bilevel.generator)
        # Where ranks meet in passes, they must come to the same conclusions from what these give.
        self.norm: Norm = self.ranks.norm if self.ranks_meet else norm
        self.labels: list[LabelPass] = []
        self.passes: list[NetworkPass] = []

    def inner_gradient(self, attached: bool = False, with_tape: bool = False) -> Grads:
        """Runs the passes; returns the gradient of L1, None for a parameter that it does not depend on."""
        alone, reduction = len(self.batches) == 1, self.reduction(self.parameters, len(self.batches))
        for batch in self.batches:
            # Of several passes neither graph nor tape is kept: who splits a batch is short of memory.
            labels = LabelPass(self.bilevel, batch, self.generator_buffers, self.devices, keep_graph=alone)
            one = NetworkPass(
                self.bilevel.network,
                self.bilevel.network_pass,
                self.bilevel.objective,
                batch,
                labels.targets.requires_grad_(attached),
                num_samples(batch) / self.num_samples,
                self.buffers,
                self.devices,
                Tape() if with_tape and alone else None,
            )
            reduction.add(partial(one.grads, self.parameters, self.options.loss_scale, attached))
            self.labels.append(labels)
            self.passes.append(one)
        return self.unscaled(reduction.attached_total() if attached else reduction.total())

    def meta_gradient(self, stepped: Sequence[Tensor]) -> tuple[Tensor, Grads]:
        """The primary loss of the meta batch at theta_1+, and its gradient v there."""
        leaves = [value.detach().requires_grad_() for value in stepped]
        parameters, buffers = dict(zip(self.names, leaves)), clones(self.buffers)
        losses, reduction = [], self.reduction(leaves, len(self.meta_batches))
        for x, y in self.meta_batches:
            outputs, _ = self.bilevel.network_pass(parameters, buffers, x)
            loss = self.bilevel.objective.primary(outputs, y) * (num_samples((x, y)) / self.num_meta_samples)
            losses.append(loss.detach())
            scaled = loss * self.options.loss_scale
            reduction.add(partial(backward, self.bilevel.network, scaled, leaves, parameters=parameters))
        return torch.stack(losses).sum(), self.unscaled(reduction.total())

    def look_ahead(self, grads: Sequence[Tensor | None]) -> tuple[Tensor, dict[str, Tensor]]:
        """The meta loss at theta_1+, and the direction v' by parameter name."""
        meta_loss, v = self.meta_gradient(self.inner.look_ahead(self.parameters, grads))
        pulled = self.inner.pull_back(self.parameters, grads, v)
        return meta_loss, {name: part for name, part in zip(self.names, pulled) if part is not None}

    def reduction(self, tensors: Sequence[Tensor], passes: int) -> Reduction:
        return Reduction(self.ranks, tensors, passes, overlapped=not self.ranks_meet)

    def unscaled(self, grads: Sequence[Tensor | None]) -> Grads:
        scale = self.options.loss_scale
        if isinstance(scale, float) and scale == 1:
            return list(grads)
        return [None if grad is None else grad / scale for grad in grads]

    def derivatives(
        self,
        grads: Sequence[Tensor | None],
        label_grads: Iterable[Tensor | None],
        meta_loss: Tensor | None = None,
        errors: Sequence[Tensor] = (),
    ) -> Derivatives:
        """Carries gradients with respect to the labels, and the regulariser's, on to theta_2; gathers the results.

        Args:
            grads: The gradient of L1.
            label_grads: The gradient of the primary meta loss with respect to each pass's labels.
            meta_loss: That loss, if there was one.
            errors: Relative errors of label_grads, where they were measured.
        """
        parameters = [p for p in self.bilevel.generator.parameters() if p.requires_grad]
        reduction = self.reduction(parameters, len(self.labels))
        regularizer, weights = self.regularizer_gradient()
        for one, label_grad, weight in zip(self.labels, label_grads, weights):
            (cotangent,) = added([label_grad], [weight])
            if cotangent is not None and parameters:
                reduction.add(partial(one.grads, parameters, cotangent * self.options.loss_scale))
        found = reduction.total() or Grads([None] * len(parameters))
        generator_grads: dict[Tensor, Tensor] = {
            p: g for p, g in zip(parameters, self.unscaled(found)) if g is not None
        }
        result = summary(self.passes)
        primary_loss, (auxiliary_loss, meta_loss) = self.ranks.sums(
            result.primary_loss, result.auxiliary_loss, meta_loss
        )
        clipped = clip_by_norm(grads, self.inner.max_grad_norm)
        return Derivatives(
            result._replace(
                primary_loss=primary_loss,
                auxiliary_loss=auxiliary_loss,
                meta_loss=None if meta_loss is None else meta_loss.detach(),
                regularizer=regularizer,
                error=torch.stack(list(errors)).max() if errors else None,
                hypergradient_norm=norm(generator_grads.values()) if generator_grads else None,
            ),
            {p: g.detach() for p, g in zip(self.parameters, clipped) if g is not None},
            generator_grads,
            self.buffers,
            self.generator_buffers,
            sum(map(num_samples, self.batches)) / self.num_samples,
        )

    def regularizer_gradient(self) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """The regulariser of the whole batch's labels, and its gradient with respect to those of each pass."""
        if self.bilevel.objective.regularizer is None:
            return None, [None] * len(self.passes)
        labels = [one.targets.detach().requires_grad_() for one in self.labels]
        value = self.joint_regularizer(self.bilevel.objective.regularizer, torch.cat(labels))
        if not value.requires_grad:
            return value, [None] * len(labels)
        return value.detach(), torch.autograd.grad(value, labels)

    def joint_regularizer(self, regularizer: Callable[[Tensor], Tensor], targets: Tensor) -> Tensor:
        """The regulariser of all ranks' labels, as a function of this one's."""
        if self.ranks.size > 1 and isinstance(regularizer, MeanRegularizer):
            share = len(targets) / self.num_samples
            return regularizer.of_mean(self.ranks.joined_mean(regularizer.mean(targets), share))
        return regularizer(self.ranks.joined_rows(targets))


def _forward(run: _Run) -> Derivatives:
    """The hypergradient by one forward-mode pass; see the derivation above."""
    experience = run.bilevel.experience
    # Before it is known that a pass repeats the other, nothing of it is reused.
    grads = run.inner_gradient(with_tape=experience.repeats is True)
    meta_loss, direction = run.look_ahead(grads)

    def label_grad(one: NetworkPass) -> Tensor | None:
        if not direction:
            return None
        network, where = run.bilevel.network, (one.x, direction, one.start, one.rng)
        outputs, tangent = output_tangent(network, *where, one.tape)
        if experience.compared < 2:  # without a tape, and the first time with one
            experience.compared += 1
            experience.repeats = experience.repeats is not False and _repeats(one.auxiliary, outputs, run.norm)
            if not experience.repeats and one.tape is not None:
                _, tangent = output_tangent(network, *where)
        return None if tangent is None else one.label_grad(tangent)

    return run.derivatives(grads, map(label_grad, run.passes), meta_loss)


def _finite_difference(run: _Run) -> Derivatives:
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


def _unrolled(run: _Run) -> Derivatives:
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
    """Raises where a module recomputes activations: it would do so at theta_1, even for the pass at theta_1+."""

    def refuse(module: nn.Module, args: object) -> None:
        raise RuntimeError(
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
    """Whether a pass gives what an earlier one gave, with all that it starts from the same; warns if not."""
    tolerance = max(torch.finfo(expected.dtype).eps, torch.finfo(found.dtype).eps) ** 0.5
    if not norm([found.detach() - expected]) > tolerance * norm([expected]):  # NaN is told of elsewhere
        return True
    warnings.warn(
        "`model` gave other outputs in a second pass with the same parameters, buffers and random numbers of "
        "torch: the hypergradient is then that of neither pass. Draw random numbers from torch (not random or "
        "numpy), keep what changes in a forward pass in buffers, and see check_model(maxl, x, y).",
        RuntimeWarning,
        stacklevel=9,
    )
    return False


def _check_twice_differentiable(grads: Sequence[Tensor | None]) -> None:
    """Raises if a gradient passed through a function that is differentiable once.

    autograd.grad does not: such a function cuts the graph, and so the path from the labels, without a word.
    """
    nodes = [grad.grad_fn for grad in grads if grad is not None]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).name(node).endswith("::Error"):  # a function may have a `name` of its own
            raise RuntimeError(
                "`method` 'unrolled' needs second derivatives, but a function of the network is marked with "
                "@once_differentiable. Use method='forward', which needs its jvp(), or method='finite-difference'."
            )
        nodes.extend(following for following, _ in node.next_functions)


def _regularizer_only(run: _Run) -> Derivatives:
    """The gradient of the regulariser without the hypergradient: the control that tells what the latter earns."""
    return run.derivatives(run.inner_gradient(), [None] * len(run.batches))


METHODS: dict[str, Callable[[_Run], Derivatives]] = {
    "forward": _forward,
    "finite-difference": _finite_difference,
    "unrolled": _unrolled,
    "regularizer": _regularizer_only,
}


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
"""What to do where an operator has no rule for a method, and what it means."""

NO_DERIVATIVE = (
    "derivative for",
    "activation checkpointing",
    "does not currently support double backward",
    "once_differentiable",
)
"""What PyTorch says where a second derivative is missing."""


def differentiate(
    bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep, options: Options | None = None
) -> Derivatives:
    """Computes both networks' gradients; changes nothing but the random state and ``bilevel.experience.fallbacks``.

    Fused attention has neither a forward-mode derivative nor a second one, torch's math kernel has both; all passes use
    it, so that they also share its dropout masks. A network with an operator that has no forward-mode rule falls back
    on the double backward pass, and one that has no second derivative either on finite differences.
    """
    options, experience = options or Options(), bilevel.experience
    state = RandomState(cuda_devices(bilevel.network))
    while True:
        method = experience.fallbacks.get(options.method, options.method)
        kernels = plain_kernels() if experience.plain_kernels else contextlib.nullcontext()
        try:
            with sdpa_kernel(SDPBackend.MATH), kernels:
                return METHODS[method](_Run(bilevel, batch, meta_batch, inner, options))
        except (UnsupportedOperatorError, RuntimeError) as error:
            if isinstance(error, UnsupportedOperatorError) and not experience.plain_kernels:
                experience.plain_kernels = True
            elif _falls_back(experience.fallbacks, options.method, method, error):
                experience.plain_kernels = False  # they were no help
            else:
                raise
        state.restore()


def _falls_back(fallbacks: dict[str, str], asked: str, method: str, error: Exception) -> bool:
    """Notes the next method to try in place of one that failed for want of a derivative, and warns; False if none."""
    missing = isinstance(error, UnsupportedOperatorError) or any(reason in str(error) for reason in NO_DERIVATIVE)
    missing = missing and not isinstance(error, RankError)  # which quotes others
    if asked != "forward" or method not in FALLBACKS or not missing:
        return False
    fallbacks[asked], consequence = FALLBACKS[method]
    warnings.warn(
        f"`method` {method!r} does not work for this network: {str(error).rstrip('.')}. From now on {consequence}.",
        RuntimeWarning,
        stacklevel=7,
    )
    return True
