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


@runtime_checkable
class MeanRegularizer(Protocol):
    """A regulariser of the mean target alone, which is then all of it that processes need to exchange."""

    def mean(self, targets: Tensor, /) -> Tensor:
        """The mean over the samples of what the regulariser is a function of."""
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
        regularizer: ``targets -> scalar`` that joins the meta loss, already weighted; None for none. Best one that is
            a :class:`MeanRegularizer` too.
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
    """Runs a module's passes as they are."""

    def run(parameters: Mapping[str, Tensor], buffers: dict[str, Tensor], *args: Any, tape: Tape | None = None) -> Any:
        with tape or contextlib.nullcontext():
            return virtual_pass(module, parameters, buffers, *args)

    return run


@dataclass
class Experience:
    """What the first steps find out about a network, so that later ones need not.

    Attributes:
        fallbacks: Methods that turned out not to work, each with the one to use instead.
        plain_kernels: Whether all passes need them, see :func:`plain_kernels`: they share dropout masks then.
        repeats: Whether a second pass gives the same outputs; None if that is not known yet.
        compared: How often outputs have been compared.
        distance: The best distance for finite differences.
    """

    fallbacks: dict[str, str] = field(default_factory=dict)
    plain_kernels: bool = False
    repeats: bool | None = None
    compared: int = 0
    distance: Distance = field(default_factory=Distance)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs for the next step to be computed as it would have been, to the last digit."""
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what was saved."""
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
