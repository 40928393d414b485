"""Auxiliary learning in general: any model, any generator of targets, any losses."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from ..checks import (
    check_batch,
    check_count,
    check_generator,
    check_rows,
)
from ..distributed import Ranks
from ..hypergradient import (
    Batch,
    Bilevel,
    CompiledPass,
    Experience,
    Objective,
    StepResult,
    compile_options,
    passes_of,
)
from ..networks import multi_task_network, two_outputs
from ..passes import COMPUTING, at_least_float32, buffer_copies, cuda_devices, virtual_pass
from ..steps import add_hypergradient, fused_step, generator_step, gradient_cosine, network_step
from .collective_calls import collective, in_step, joined_ranks
from .maml_interface import Learner, check_options
from .step_arguments import check_optimizers, checked_batches, checked_inner_step, checked_options, checked_updates

TwoHeaded = Callable[[Any], tuple[Tensor, Tensor]]
"""What can replace the multi-task network: a function from x to primary and auxiliary outputs."""


class Loss(Protocol):
    """A loss of outputs against labels or targets: a value for each sample, or a scalar."""

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> Tensor: ...


class AuxiliaryLabelGenerator(Learner):
    """Trains a model with the help of an auxiliary task whose targets a second network invents.

    The general form of Meta AuXiliary Learning (Liu et al. 2019): any model, any generator of targets, any losses.
    :class:`MAXL` is the paper's instance. The interface is that of ``learn2learn.algorithms.MAML``.

    Two ways to train: :meth:`step` is one fused iteration of model and generator by the exact hypergradient; or
    :meth:`clone`, :meth:`adapt` and :meth:`meta_loss` spell the inner loop out, for any number of steps.

    Args:
        model: The user's model; held, not copied, and left as it is.
        generator: A module from ``(x, y)`` to targets, as auxiliary_loss takes them; it shares no parameter with model.
        num_outputs: Outputs of the auxiliary head.
        lr: Learning rate of :meth:`adapt`, and of the inner step where no optimizer is given.
        first_order: Whether :meth:`adapt` drops second derivatives. It cuts the path from the primary loss to the
            generator, so a warning is given; :meth:`step` is exact without them.
        allow_unused: Whether :meth:`adapt` accepts a loss that does not use all of the model's parameters; allow_nograd
            if None. The auxiliary head may always go unused.
        allow_nograd: Whether :meth:`adapt` accepts frozen parameters in the model.
        head: Name of the model's own head, a layer or a ``nn.Sequential`` that ends with one. If None: the layer with
            num_primary outputs, or the last linear layer or convolution if num_primary is None too.
        num_features: Width of a headless backbone's output ``[N, num_features]``; a primary head is added then.
        num_primary: Outputs of the model's head, by which it is found; with num_features, of the head that is added.
        primary_loss: ``(outputs, y) -> value``, one for each sample or a scalar; cross-entropy if None.
        auxiliary_loss: ``(auxiliary outputs, targets) -> value``, likewise, twice differentiable in the outputs;
            cross-entropy if None.
        regularizer: ``targets -> scalar``, added to the meta loss; None for none.

    Raises:
        TypeError: model or generator is not a module.
        ValueError: No head is found, or generator shares parameters with model.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        >>> generator = nn.Bilinear(8, 1, 3)  # a module of two arguments, x and y
        >>> learner = AuxiliaryLabelGenerator(model, generator, 3, primary_loss=F.mse_loss, auxiliary_loss=F.mse_loss)
        >>> learner.loss(torch.randn(4, 8), torch.randn(4, 1)).shape
        torch.Size([])
    """

    def __init__(
        self,
        model: nn.Module,
        generator: nn.Module,
        num_outputs: int,
        lr: float = 0.01,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
        *,
        head: str | None = None,
        num_features: int | None = None,
        num_primary: int | None = None,
        primary_loss: Loss | None = None,
        auxiliary_loss: Loss | None = None,
        regularizer: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        check_options(lr, first_order, allow_unused, allow_nograd)
        check_count(num_outputs, "num_outputs", "Count the auxiliary outputs.")
        network = multi_task_network(model, num_primary, num_outputs, head, num_features)
        check_generator(generator, model)
        super().__init__(network, generator, lr, first_order, allow_unused, allow_nograd)
        self.objective = Objective(
            _Mean(primary_loss or _cross_entropy), _Mean(auxiliary_loss or _cross_entropy), regularizer
        )
        self.experience = Experience()
        self._passes: tuple[CompiledPass, CompiledPass] | None = None
        self.ranks = Ranks()

    def loss(self, x: Any, y: Tensor, network: TwoHeaded | None = None, *, targets: Tensor | None = None) -> Tensor:
        """The multi-task loss L1: mean primary loss plus mean auxiliary loss.

        Args:
            x: What the model takes, N samples.
            y: Labels of the primary task, first dimension N.
            network: Replaces the multi-task network, ``x -> (primary, auxiliary)``; a clone of it, for instance.
            targets: Auxiliary targets in place of the generator's; for :class:`MAXL` probabilities or class indices.

        Returns:
            A scalar, differentiable in theta_1 and, through the generated targets, in theta_2.

        Raises:
            TypeError, ValueError: x and y, or the targets, do not fit.
        """
        self.check_batch(x, y)
        if targets is None:
            targets = self.generator(x, y)
            self.check_targets(targets, y)
        else:
            self._check_given(targets, y)
        outputs, auxiliary = self._outputs(x, network)
        return self.objective.primary(outputs, y) + self.objective.auxiliary(auxiliary, targets)

    def primary_loss(self, x: Any, y: Tensor, network: TwoHeaded | None = None) -> Tensor:
        """The primary term of L1 alone, a scalar; arguments as in :meth:`loss`."""
        self.check_batch(x, y)
        return self.objective.primary(self._outputs(x, network)[0], y)

    def meta_loss(self, x: Any, y: Tensor, network: TwoHeaded | None = None) -> Tensor:
        """The meta loss L2: mean primary loss plus the regulariser of the targets; arguments as in :meth:`loss`.

        Called on a clone after :meth:`adapt`, its gradient reaches theta_2, and theta_1 as in MAML. The generator's
        pass is virtual: it does not update BatchNorm statistics.
        """
        loss = self.primary_loss(x, y, network)
        if self.objective.regularizer is None:
            return loss
        with COMPUTING:
            targets = virtual_pass(self.generator, {}, buffer_copies(self.generator), x, y)
        self.check_targets(targets, y)
        return loss + self.objective.regularizer(targets)

    @collective
    def hypergradient(
        self,
        x: Any,
        y: Tensor,
        *,
        meta_batch: Batch | None = None,
        optimizer: Optimizer | None = None,
        method: str = "forward",
        epsilon: float | None = None,
        micro_batches: int = 1,
        max_grad_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> StepResult:
        """Adds the gradient of the meta loss after one inner step to the ``.grad`` of the generator's parameters.

        ``d/d theta_2 [mean L(f(x'; theta_1+), y') + regularizer(g(x, y))]`` with
        ``theta_1+ = U(theta_1, grad L1(x, y))``, equation 4 of Liu et al. (2019) for any inner rule U. Nothing else
        changes: no parameter, buffer, optimizer state, gradient of the network, or random state.

        Args:
            x: Samples of the inner step, N of them.
            y: Their primary labels, first dimension N.
            meta_batch: ``(x', y')`` of the meta loss; ``(x, y)`` if None.
            optimizer: Whose rule, state and groups the inner step follows; SGD with this learner's lr if None.
            method: ``"forward"``, one forward-mode pass, exact; ``"unrolled"``, a double backward pass, the same value
                (not with activation checkpointing); ``"finite-difference"``, a difference of two passes instead of the
                forward-mode one; ``"regularizer"``, the regulariser's gradient alone, the control without a
                hypergradient. A network that ``"forward"`` can't differentiate falls back on the next of these, with a
                warning.
            epsilon: Euclidean distance in theta_1 of the finite difference. If None, the one with the smallest error is
                searched for: here at each call, in :meth:`step` at the first and at every hundredth.
            micro_batches: Parts that the batches are split into, to save memory. The result is that of the whole batch,
                unless a layer or a loss depends on several samples at once (BatchNorm; a Dice loss over the batch). If
                there are several, the labels are computed twice.
            max_grad_norm: Norm that the gradient of the inner step is clipped to; the clipping is differentiated too.
            scaler: A ``torch.amp.GradScaler`` whose scale keeps small gradients under float16; it is only read.

        Returns:
            The losses (nats, means over the batch), the primary outputs and the targets, without a graph; and, with
            finite differences, an estimate of their relative error.

        Raises:
            TypeError, ValueError: An argument does not fit; nothing has been computed.
            NonFiniteError: A loss or gradient is NaN or infinite; ``.grad`` is as it was.

        Example:
            >>> maxl = MAXL(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), psi=[3, 3])
            >>> losses = maxl.hypergradient(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))
            >>> all(p.grad is not None for p in maxl.generator.parameters())
            True
        """
        meta_batch = checked_batches(self.check_batch, x, y, meta_batch)
        options = checked_options(method, epsilon, micro_batches, self.objective.regularizer, measure=True)
        updates = checked_updates(self.network, max_grad_norm, scaler)
        inner = checked_inner_step(self, optimizer, max_grad_norm)
        with torch.random.fork_rng(cuda_devices(self.network)), in_step(self.network, self.generator, self.ranks):
            return add_hypergradient(self._bilevel(), (x, y), meta_batch, inner, options, updates)

    @collective
    def step(
        self,
        x: Any,
        y: Tensor,
        optimizer: Optimizer,
        generator_optimizer: Optimizer,
        *,
        meta_batch: Batch | None = None,
        method: str = "forward",
        epsilon: float | None = None,
        micro_batches: int = 1,
        max_grad_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> StepResult:
        """One fused iteration: a step of the network on L1, and a step of the generator by its hypergradient.

        The network's own step is the inner step, so it is computed once. A call that raises changes nothing: all is
        computed before anything is changed, and an optimizer's step that raises, or makes parameters, its state or
        buffers NaN or infinite, is undone.

        Args:
            x: Training samples, N of them.
            y: Their primary labels, first dimension N.
            optimizer: Holds all trainable parameters of ``self.network``. A wrapper of the same class that has it as
                ``.optimizer``, such as Lightning's, works too.
            generator_optimizer: Holds all trainable parameters of ``self.generator``; any kind that needs no closure.
            meta_batch: As in :meth:`hypergradient`; so are method, epsilon and micro_batches.
            max_grad_norm: Norm that each network's gradient is clipped to; the generator learns through the clipping.
            scaler: A ``torch.amp.GradScaler``, for a region of float16 autocast. It is stepped and updated here; a step
                whose gradient overflowed is skipped, and the result says so.

        Returns:
            As :meth:`hypergradient`; the error of finite differences is that of the last search.

        Raises:
            TypeError, ValueError: An argument does not fit; nothing has been computed.
            NonFiniteError: A loss or gradient is NaN or infinite; no parameter has been updated with it.

        Example:
            >>> maxl = MAXL(nn.Linear(8, 2), psi=[3, 3])
            >>> optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
            >>> generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
            >>> result = maxl.step(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]), optimizer, generator_optimizer)
            >>> result.targets.shape
            torch.Size([4, 6])
        """
        meta_batch = checked_batches(self.check_batch, x, y, meta_batch)
        options = checked_options(method, epsilon, micro_batches, self.objective.regularizer)
        check_optimizers(self, optimizer=optimizer, generator_optimizer=generator_optimizer)
        updates = checked_updates(self.network, max_grad_norm, scaler)
        with in_step(self.network, self.generator, self.ranks):
            return fused_step(self._bilevel(), (x, y), meta_batch, optimizer, generator_optimizer, options, updates)

    @collective
    def network_step(
        self,
        x: Any,
        y: Tensor,
        optimizer: Optimizer,
        *,
        targets: Tensor | None = None,
        auxiliary: bool = True,
        micro_batches: int = 1,
        max_grad_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> StepResult:
        """One step of the network alone: the first stage of the paper's per-epoch schedule, and of fixed labels.

        Args:
            x: Training samples, N of them.
            y: Their primary labels, first dimension N.
            optimizer: Holds all trainable parameters of ``self.network``; any kind that needs no closure.
            targets: Auxiliary targets, as auxiliary_loss takes them; the generator's (by a virtual pass) if None.
            auxiliary: Whether there is an auxiliary task; without it this is single-task training.
            micro_batches: As in :meth:`step`; so are max_grad_norm and scaler.

        Returns:
            The losses, primary outputs and targets, without a graph.

        Raises:
            TypeError, ValueError: An argument does not fit; nothing has been computed.
            NonFiniteError: A loss or gradient is NaN or infinite; no parameter has been updated with it.
        """
        self.check_batch(x, y)
        check_optimizers(self, optimizer=optimizer)
        options, updates = (
            checked_options("forward", None, micro_batches, None),
            checked_updates(self.network, max_grad_norm, scaler),
        )
        targets = targets if auxiliary else None
        if targets is not None:
            self._check_given(targets, y)
        with in_step(self.network, self.generator, self.ranks):
            return network_step(self._bilevel(), (x, y), targets, auxiliary, optimizer, options, updates)

    @collective
    def generator_step(
        self,
        x: Any,
        y: Tensor,
        optimizer: Optimizer | None,
        generator_optimizer: Optimizer,
        *,
        meta_batch: Batch | None = None,
        method: str = "forward",
        epsilon: float | None = None,
        micro_batches: int = 1,
        max_grad_norm: float | None = None,
        scaler: GradScaler | None = None,
    ) -> StepResult:
        """One step of the generator alone: the second stage of the paper's per-epoch schedule.

        As :meth:`hypergradient` followed by the generator optimizer's step, with one update of the generator's
        BatchNorm statistics. Arguments, result and errors as in :meth:`step`.
        """
        meta_batch = checked_batches(self.check_batch, x, y, meta_batch)
        options = checked_options(method, epsilon, micro_batches, self.objective.regularizer)
        updates = checked_updates(self.network, max_grad_norm, scaler)
        inner = checked_inner_step(self, optimizer, max_grad_norm)
        check_optimizers(self, generator_optimizer=generator_optimizer)
        with in_step(self.network, self.generator, self.ranks):
            return generator_step(self._bilevel(), (x, y), meta_batch, inner, generator_optimizer, options, updates)

    @collective
    def gradient_cosine(
        self, x: Any, y: Tensor, *, targets: Tensor | None = None, micro_batches: int = 1
    ) -> Tensor | None:
        """The cosine of the gradients of both terms of L1 on the parameters that both depend on.

        Near 1 both tasks move these parameters in one direction, near 0 they are unrelated, below 0 they conflict: a
        diagnostic of the paper's released code. It costs half a :meth:`step` and changes nothing.

        Args:
            x: N samples.
            y: Their primary labels, first dimension N.
            targets: Auxiliary targets, as auxiliary_loss takes them; the generator's if None.
            micro_batches: As in :meth:`step`.

        Returns:
            A scalar without a graph; None if the gradients have no parameter in common, or one of them is zero.

        Raises:
            TypeError, ValueError: An argument does not fit.
        """
        self.check_batch(x, y)
        options = checked_options("forward", None, micro_batches, None)
        if targets is not None:
            self._check_given(targets, y)
        with torch.random.fork_rng(cuda_devices(self.network)), in_step(self.network, self.generator, self.ranks):
            return gradient_cosine(self._bilevel(), (x, y), targets, options.micro_batches)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the passes of both networks in :meth:`step`, :meth:`hypergradient` and the steps of one network.

        These call networks at other parameters, so a model that the user has compiled runs uncompiled in them. Results
        are the same up to rounding, and so are random numbers. The forward-mode pass, :meth:`clone` and evaluation are
        not compiled. Arguments are those of ``torch.compile``: ``backend``, ``mode``, ``options``, ``dynamic``.

        Raises:
            RuntimeError: torch is older than 2.9, and can't compile these passes as a whole.
        """
        options = compile_options(*args, **kwargs)
        self._passes = (
            CompiledPass(self.network, "read", self.network.reading, options),
            CompiledPass(self.generator, "__call__", contextlib.nullcontext, options),
        )

    def distribute(self, process_group: "dist.ProcessGroup | None" = None) -> None:
        """Makes the processes of a group train together, as its ranks: each passes its part of a batch to :meth:`step`.

        From now on all ranks call :meth:`step`, :meth:`network_step`, :meth:`generator_step` and :meth:`hypergradient`
        together, and compute what one process would on the whole batch, whatever the sizes of its parts: gradients, v
        (see "How it works") and the mean label of the entropy term are summed. Losses in the result are those of the
        whole batch, outputs and targets the rank's own. :meth:`adapt` and the losses remain the rank's own.

        Rank 0's parameters and buffers are sent to the others here. They stay equal because all ranks take equal steps;
        optimizers must be new, or have the same state on all ranks. BatchNorm normalises each rank's part by itself, as
        in DistributedDataParallel, and its statistics are averaged. ``nn.SyncBatchNorm.convert_sync_batchnorm`` makes
        it use the whole batch. Ranks with equal random states draw different dropout masks, and keep equal states.

        Args:
            process_group: Of torch.distributed; the default group if None. Its timeout bounds how long a rank waits.

        Raises:
            RuntimeError: torch.distributed is not initialised, this process is not in the group, its backend lacks a
                collective for the model's device, or the ranks' psi, models or generators differ.
        """
        self.ranks = joined_ranks(self, self.learner_options(), process_group)
        self.experience = Experience()  # ranks learn together from here on

    def end_epoch(self) -> None:
        """Waits until no rank has a batch left; :func:`fit` calls it, and so should your own training loop.

        Raises:
            RuntimeError: Another rank has one more batch, and would wait for this one forever. It raises there too.
        """
        self.ranks.at_end()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_passes": None}  # a copy has other modules than those that were compiled

    def check_batch(self, x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> None:
        """Raises unless y is a tensor with an entry for each sample of x, on its device; names are for the message."""
        check_batch(x, y, names)

    def check_targets(self, targets: Any, y: Tensor) -> None:
        """Raises ValueError unless the generator's targets fit the batch."""
        check_rows(targets, y.shape[0], "generator")

    def learner_options(self) -> dict[str, Any]:
        """The learner's options apart from its networks, as plain data; the same on all ranks."""
        return {}

    def _outputs(self, x: Any, network: TwoHeaded | None) -> tuple[Tensor, Tensor]:
        with COMPUTING, sdpa_kernel(SDPBackend.MATH):  # adapt() differentiates twice, which fused attention can't be
            return self.network(x) if network is None else two_outputs(network(x))

    def _shared(self) -> tuple[object, ...]:
        return (*super()._shared(), self.objective)

    def _bilevel(self) -> Bilevel:
        passes = passes_of(self.network, self.generator, self._passes)
        return Bilevel(
            self.network, self.generator, self.objective, self.check_targets, self.experience, *passes, self.ranks
        )

    def _check_given(self, targets: Any, y: Tensor) -> None:
        check_rows(targets, y.shape[0], "targets")


class _Mean:
    """Reduces a loss, a value for each sample or a scalar, to a scalar."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets).mean()


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(outputs), targets, reduction="none")
