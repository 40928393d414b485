"""One computation of both networks' gradients: the parts that all methods share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..distributed import Grads, Reduction, added, meets_in_passes
from ..inner_step import InnerStep, clip_by_norm
from ..passes import buffer_copies, clones, cuda_devices, norm
from .batch_passes import LabelPass, NetworkPass, backward, summary
from .bilevel import Batch, Bilevel, MeanRegularizer
from .finite_difference import Norm
from .micro_batches import num_samples, split
from .results import Derivatives
from .tape import Tape


@dataclass(frozen=True)
class Options:
    """How the hypergradient is computed.

    Attributes:
        method: One of :data:`METHODS`.
        epsilon: Euclidean distance of a finite difference; None to search for the best.
        measure: Whether finite differences measure their error now.
        micro_batches: Parts that a batch is split into, which pass the networks one after the other.
        loss_scale: A gradient scaler's factor on every loss that is differentiated, divided out of its gradients.
    """

    method: str = "forward"
    epsilon: float | None = None
    measure: bool = False
    micro_batches: int = 1
    loss_scale: Tensor | float = 1.0


class Computation:
    """One computation of the derivatives: the passes at theta_1, and the operations that all methods share."""

    def __init__(self, bilevel: Bilevel, batch: Batch, meta_batch: Batch, inner: InnerStep, options: Options) -> None:
        self.bilevel, self.inner, self.options = bilevel, inner, options
        trainable = {name: p for name, p in bilevel.network.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trainable), list(trainable.values())
        self.devices = cuda_devices(bilevel.network)
        self.buffers, self.generator_buffers = buffer_copies(bilevel.network), buffer_copies(bilevel.generator)
        self.batches = split(batch, options.micro_batches)
        self.meta_batches = split(meta_batch, options.micro_batches)
        self.ranks = bilevel.ranks
        # Counts of all ranks: a rank's part of a batch is weighted as a micro-batch is.
        self.num_samples, self.num_meta_samples = self.ranks.totals(
            f"method={options.method!r}", num_samples(batch), num_samples(meta_batch)
        )
        self.ranks_meet = meets_in_passes(self.ranks, bilevel.network, bilevel.generator)
        # If passes exchange data, all ranks must draw the same conclusions from norms of outputs.
        self.norm: Norm = self.ranks.norm if self.ranks_meet else norm
        self.labels: list[LabelPass] = []
        self.passes: list[NetworkPass] = []

    def inner_gradient(self, attached: bool = False, with_tape: bool = False) -> Grads:
        """Runs the passes; returns the gradient of L1, None for a parameter that it does not depend on."""
        alone, reduction = len(self.batches) == 1, self.reduction(self.parameters, len(self.batches))
        for batch in self.batches:
            # With several micro-batches neither graph nor tape is kept, to save memory.
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
        """Back-propagates the gradients of the labels and the regulariser to theta_2, and collects the results.

        Args:
            grads: The gradient of L1.
            label_grads: The gradient of the primary meta loss with respect to each pass's labels.
            meta_loss: The primary meta loss, if it was computed.
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
        """The regulariser of all ranks' labels, as a function of this rank's."""
        if self.ranks.size > 1 and isinstance(regularizer, MeanRegularizer):
            share = len(targets) / self.num_samples
            return regularizer.of_mean(self.ranks.joined_mean(regularizer.mean(targets), share))
        return regularizer(self.ranks.joined_rows(targets))
