"""The bilevel problem: two networks, the losses of both levels, and what earlier steps found out about them."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from ..distributed import Ranks
from ..passes import virtual_pass
from .finite_difference import Distance
from .tape import Tape

Batch = tuple[Any, Tensor]
"""Samples x, as the network takes them, and their primary labels y."""


@runtime_checkable
class MeanRegularizer(Protocol):
    """A regulariser that depends on the mean target alone, so that processes exchange only that mean."""

    def mean(self, targets: Tensor, /) -> Tensor:
        """The mean over the samples that the regulariser is a function of."""
        ...

    def of_mean(self, mean: Tensor, /) -> Tensor:
        """The regulariser, a scalar."""
        ...


@dataclass(frozen=True)
class Objective:
    """The scalar losses of the two levels.

    Attributes:
        primary: ``(primary outputs, y) -> scalar``.
        auxiliary: ``(auxiliary outputs, targets) -> scalar``, twice differentiable.
        regularizer: ``targets -> scalar``, added to the meta loss; None for none. Processes exchange less if it is a
            :class:`MeanRegularizer`.
    """

    primary: Callable[[Tensor, Tensor], Tensor]
    auxiliary: Callable[[Tensor, Tensor], Tensor]
    regularizer: Callable[[Tensor], Tensor] | None


class Pass(Protocol):
    """A module's virtual pass: ``(parameters, buffers, *args, tape=None) -> outputs``."""

    def __call__(
        self, parameters: Mapping[str, Tensor], buffers: dict[str, Tensor], /, *args: Any, tape: Tape | None = None
    ) -> Any: ...


def plain_pass(module: nn.Module) -> Pass:
    """Returns a module's virtual pass, uncompiled."""

    def run(parameters: Mapping[str, Tensor], buffers: dict[str, Tensor], *args: Any, tape: Tape | None = None) -> Any:
        with tape or contextlib.nullcontext():
            return virtual_pass(module, parameters, buffers, *args)

    return run


@dataclass
class Experience:
    """What the first steps find out about a network, for use in later ones.

    Attributes:
        fallbacks: Methods that do not work, each with the one to use instead.
        plain_kernels: Which passes of method ``"forward"`` need :func:`forward_mode.plain_kernels`: none if False,
            ``"forward-mode"`` for that pass alone, True for all, so that they have the same dropout masks.
        repeats: Whether a second pass gives the same outputs; None if that is not known yet.
        compared: How often outputs have been compared.
        distance: The best distance for finite differences.
    """

    fallbacks: dict[str, str] = field(default_factory=dict)
    plain_kernels: bool | str = False
    repeats: bool | None = None
    compared: int = 0
    distance: Distance = field(default_factory=Distance)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, so that a resumed run computes exactly the same steps."""
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a saved state."""
        vars(self).update(state_dict | {"distance": Distance(**state_dict["distance"])})


class Bilevel(NamedTuple):
    """The two networks and what each is trained for.

    Attributes:
        network: ``x -> (primary outputs, auxiliary outputs)``, parameters theta_1.
        generator: ``(x, y) -> targets``, parameters theta_2.
        objective: The losses.
        check_targets: ``(targets, y) -> None``; raises if the generator's targets do not fit.
        experience: What earlier steps found out about these networks.
        network_pass, generator_pass: How their passes are run, see :func:`virtual_pass`.
        ranks: The processes that share each batch.
    """

    network: nn.Module
    generator: nn.Module
    objective: Objective
    check_targets: Callable[[Any, Tensor], None]
    experience: Experience
    network_pass: Pass
    generator_pass: Pass
    ranks: Ranks
