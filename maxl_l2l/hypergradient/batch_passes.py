"""The passes of both networks on one micro-batch, and their gradients; the networks' own buffers are not changed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..distributed import Grads
from ..passes import RandomState, buffer_copies, clones, within
from .bilevel import Batch, Bilevel, Objective, Pass
from .results import StepResult
from .tape import Tape


class LabelPass:
    """The generator's pass on one micro-batch, on copies of its buffers.

    Args:
        bilevel: The networks.
        batch: x and y of the micro-batch.
        buffers: Copies of the generator's buffers, which the pass updates.
        devices: CUDA devices whose random state is saved.
        keep_graph: Whether :meth:`grads` uses the graph of this pass; otherwise it repeats the pass.

    Attributes:
        targets: The labels, detached.
    """

    def __init__(
        self, bilevel: Bilevel, batch: Batch, buffers: dict[str, Tensor], devices: Sequence[int], keep_graph: bool
    ) -> None:
        self.generator, self.batch = bilevel.generator, batch
        self.rng, self.buffers = RandomState(devices), {} if keep_graph else clones(buffers)
        self.run = bilevel.generator_pass
        with torch.set_grad_enabled(keep_graph):
            labels = self.run({}, buffers, *batch)
        bilevel.check_targets(labels, batch[1])
        self.labels = self._attached(labels) if keep_graph else None
        self.targets = labels.detach()

    def grads(self, parameters: Sequence[Tensor], cotangent: Tensor) -> Grads:
        """Back-propagates a gradient of the labels to the generator's parameters; can be called once."""
        labels, self.labels = self.labels, None
        if labels is None:
            with self.rng.again():
                labels = self._attached(self.run({}, clones(self.buffers), *self.batch))
        return backward(self.generator, labels, parameters, cotangent)

    def _attached(self, labels: Tensor) -> Tensor:
        if not labels.requires_grad and any(parameter.requires_grad for parameter in self.generator.parameters()):
            raise ValueError(
                "`generator` must return targets that depend on its parameters, found targets without a graph. "
                "Compute them without detach(), no_grad() or argmax()."
            )
        return labels


class NetworkPass:
    """The network's pass on one micro-batch at theta_1, on copies of its buffers.

    Args:
        network: The multi-task network.
        run: How it is called.
        objective: The losses.
        batch: x and y of the micro-batch.
        targets: Its auxiliary targets; None for the primary task alone.
        share: Its share of the whole batch, the weight of its mean losses.
        buffers: Copies of the network's buffers, which the pass updates.
        devices: CUDA devices whose random state is saved.
        tape: Records the pass; None for no record.

    Attributes:
        x, targets, tape: As given.
        outputs, auxiliary: Primary and auxiliary outputs.
        primary_loss, auxiliary_loss: Its share of the losses of the whole batch; None without auxiliary task.
        rng, start: The random state and the buffers before the pass.
    """

    def __init__(
        self,
        network: nn.Module,
        run: Pass,
        objective: Objective,
        batch: Batch,
        targets: Tensor | None,
        share: float,
        buffers: dict[str, Tensor],
        devices: Sequence[int] = (),
        tape: Tape | None = None,
    ) -> None:
        self.network, self.objective, self.share = network, objective, share
        self.x, self.targets, self.tape = batch[0], targets, tape
        self.rng, self.start = RandomState(devices), clones(buffers)
        self.outputs, self.auxiliary = run({}, buffers, self.x, tape=tape)
        self.primary_loss = objective.primary(self.outputs, batch[1]) * share
        self.auxiliary_loss = None if targets is None else objective.auxiliary(self.auxiliary, targets) * share

    def grads(self, parameters: Sequence[Tensor], scale: Tensor | float, attached: bool = False) -> Grads:
        """The gradient of its share of L1, times scale; None for a parameter that the loss does not depend on.

        Outputs and losses are then detached; if attached, they are not, and the gradient can be differentiated again.
        """
        loss = self.primary_loss if self.auxiliary_loss is None else self.primary_loss + self.auxiliary_loss
        found = backward(self.network, loss * scale, parameters, attached=attached)
        if not attached:
            self.outputs, self.auxiliary = self.outputs.detach(), self.auxiliary.detach()
            self.primary_loss = self.primary_loss.detach()
            self.auxiliary_loss = None if self.auxiliary_loss is None else self.auxiliary_loss.detach()
        return found

    def label_grad(self, tangent: Tensor) -> Tensor:
        """``d/dt <dL1/do (o, t), o'>`` at the labels t; only the loss function is differentiated twice.

        Args:
            tangent: o', of the shape of the auxiliary outputs o.
        """
        assert self.targets is not None
        auxiliary, labels = self.auxiliary.detach().requires_grad_(), self.targets.detach().requires_grad_()
        loss = self.objective.auxiliary(auxiliary, labels) * self.share
        (grad,) = torch.autograd.grad(loss, auxiliary, create_graph=True)
        (found,) = torch.autograd.grad((grad * tangent).sum(), labels)
        return found


def summary(passes: Sequence[NetworkPass]) -> StepResult:
    """The losses, outputs and targets of the whole batch, without a graph."""
    with_task = [one for one in passes if one.targets is not None]
    losses = [one.auxiliary_loss for one in with_task if one.auxiliary_loss is not None]
    return StepResult(
        torch.stack([one.primary_loss.detach() for one in passes]).sum(),
        torch.stack(losses).detach().sum() if losses else None,
        outputs=_rows([one.outputs for one in passes]),
        auxiliary_outputs=_rows([one.auxiliary for one in with_task]),
        targets=_rows([one.targets for one in with_task if one.targets is not None]),
    )


def _rows(parts: Sequence[Tensor]) -> Tensor | None:
    """Concatenates parts of a batch, detached; None if there are none."""
    return torch.cat([part.detach() for part in parts]) if parts else None


def backward(
    module: nn.Module,
    output: Tensor,
    inputs: Sequence[Tensor],
    cotangent: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    attached: bool = False,
    retained: bool = False,
) -> Grads:
    """Differentiates the output of a module's pass.

    Args:
        module: The module; if it recomputes activations, then with the pass's parameters and copies of its buffers.
        output: What is differentiated, a scalar unless there is a cotangent; without a graph all gradients are None.
        inputs: The tensors to differentiate with respect to.
        cotangent: Of the shape of output.
        parameters: Those of the pass, if they were not the module's own.
        attached: Whether the gradients can be differentiated again.
        retained: Whether output can be differentiated again.

    Returns:
        A gradient for each input, dense even for embeddings with ``sparse=True``; None if output does not depend on it.
    """
    if not output.requires_grad:
        return [None] * len(inputs)
    found = within(
        module,
        parameters or {},
        buffer_copies(module),
        lambda: torch.autograd.grad(
            output, inputs, cotangent, retain_graph=retained or attached, create_graph=attached, allow_unused=True
        ),
    )
    return [grad.to_dense() if grad is not None and grad.is_sparse else grad for grad in found]
