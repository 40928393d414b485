"""The interface of learn2learn's MAML around a model and its two networks."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..checks import check_flag, check_number, refuse
from ..errors import NonFiniteError
from ..networks import MultiTaskNetwork
from ..passes import connected_clone, magnitude, non_finite, replace_parameters

LearnerType = TypeVar("LearnerType", bound="Learner")


class Learner(nn.Module):
    """What :class:`AuxiliaryLabelGenerator` shares with ``learn2learn.algorithms.MAML``; it explains the options."""

    network: MultiTaskNetwork
    generator: nn.Module

    def __init__(
        self,
        network: MultiTaskNetwork,
        generator: nn.Module,
        lr: float,
        first_order: bool,
        allow_unused: bool | None,
        allow_nograd: bool,
    ) -> None:
        super().__init__()
        self.network = network
        self.generator = generator
        self.lr = lr
        self.first_order = first_order
        self.allow_nograd = allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused
        if first_order:
            # One frame for each constructor between this one and the caller's line.
            _warn_first_order(stacklevel=3 + type(self).__mro__.index(Learner))

    @property
    def module(self) -> nn.Module:
        """The user's model itself, not a copy."""
        return self.network.module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the model's own output, untouched; primary logits ``[N, C]`` for a headless backbone."""
        return self.network.predict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Looks unknown attributes up on the model, as learn2learn's wrappers do."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            network = self.__dict__.get("_modules", {}).get("network")
            # Protocols such as copying and pickling must see this object, not the model.
            if network is None or name.startswith("__"):
                raise
            return getattr(network.module, name)

    def clone(
        self: LearnerType,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> LearnerType:
        """Returns a learner of the same class whose network is a differentiable copy; the generator is shared.

        Back-propagating through the clone reaches the original's parameters. Buffers are copied: a clone's passes do
        not update the original's BatchNorm statistics.

        Args:
            first_order: As in the constructor; this learner's if None. So are allow_unused and allow_nograd.
        """
        if first_order and not self.first_order:
            _warn_first_order()
        learner = connected_clone(self, shared=self._shared())
        learner.first_order = self.first_order if first_order is None else first_order
        learner.allow_unused = self.allow_unused if allow_unused is None else allow_unused
        learner.allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        return learner

    def adapt(
        self,
        loss: Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Replaces the (cloned) network's parameters by those after one gradient step of size lr on a loss.

        Args:
            loss: A scalar that depends on this learner's parameters.
            first_order: Whether to drop second derivatives; as in this learner if None.
            allow_unused: Whether the loss may leave parameters of the model unused; as in this learner if None.
            allow_nograd: Whether the model may have frozen parameters; as in this learner if None.

        Raises:
            TypeError, ValueError: The loss is no scalar with a graph that reaches this learner.
            RuntimeError: Parameters are frozen or unused and that is not allowed; they are named.
            NonFiniteError: The loss or its gradient is NaN or infinite; the learner stays as it was.
        """
        if first_order and not self.first_order:
            _warn_first_order()
        first_order = self.first_order if first_order is None else first_order
        allow_unused = self.allow_unused if allow_unused is None else allow_unused
        allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        _check_loss(loss)
        parameters = dict(self.network.named_parameters())
        own = {f"module.{name}" for name, _ in self.module.named_parameters()}
        trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        if not allow_nograd:
            refuse(own - trainable.keys(), "be trainable", "frozen", "allow_nograd=True")
        found = torch.autograd.grad(
            loss,
            list(trainable.values()),
            create_graph=not first_order,
            retain_graph=not first_order,
            allow_unused=True,
        )
        grads = {name: grad for name, grad in zip(trainable, found) if grad is not None}
        if not grads:
            raise ValueError(
                "`loss` must depend on this learner's parameters, found none that it reaches. "
                "Compute it with this learner: learner.loss(x, y), anew for each step."
            )
        if not allow_unused:
            refuse((own & trainable.keys()) - grads.keys(), "enter `loss`", "unused", "allow_unused=True")
        _check_finite(loss, grads)
        replace_parameters(self.network, {parameters[n]: parameters[n] - self.lr * grad for n, grad in grads.items()})

    def _shared(self) -> tuple[object, ...]:
        """What clones refer to instead of copying it."""
        return (self.generator,)


def check_options(lr: Any, first_order: Any, allow_unused: Any, allow_nograd: Any) -> None:
    """Raises TypeError or ValueError unless these are a learner's options of :meth:`Learner.adapt`."""
    check_number(lr, "lr", "It is the step size of adapt().")
    check_flag(first_order, "first_order", "It says whether adapt() drops second derivatives.")
    check_flag(allow_nograd, "allow_nograd", "It says whether adapt() accepts frozen parameters.")
    if allow_unused is not None:
        check_flag(allow_unused, "allow_unused", "It says whether adapt() accepts unused parameters.")


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"`loss` must be a scalar tensor, found {loss!r} ({type(loss).__name__}). Pass learner.loss(x, y), without "
            "item()."
        )
    if loss.numel() != 1 or not loss.requires_grad:
        found = f"shape {list(loss.shape)}" if loss.numel() != 1 else "one without a graph"
        raise ValueError(
            f"`loss` must be a scalar with a graph, found {found}. Pass learner.loss(x, y), without detach() and where "
            "gradients are enabled."
        )


def _check_finite(loss: Tensor, grads: Mapping[str, Tensor]) -> None:
    for name, value in non_finite({"loss": loss, "gradient": magnitude(g.detach() for g in grads.values())}).items():
        raise NonFiniteError(
            name,
            f"`loss` must be finite, and its gradient, found the {name} {value}; no parameter was moved with it. Check "
            "its input, or lower lr if earlier calls of adapt() went too far.",
        )


def _warn_first_order(stacklevel: int = 3) -> None:
    warnings.warn(
        "first_order=True cuts the path from the primary loss to the generator in adapt(): the regularizer alone would "
        "train it. Use step() or hypergradient(), which are exact and need no second derivatives of the network.",
        stacklevel=stacklevel,
    )
