"""Results: the gradients of both networks, the values computed on the way, and a check that they are finite."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..errors import NonFiniteError
from ..passes import magnitude, non_finite

ADVICE = "Lower the learning rates, clip gradients, or check the input for values that are far too large."
"""What to do about numbers that are not finite, for messages."""


class Origin(NamedTuple):
    """What makes a loss or gradient NaN or infinite.

    Attributes:
        term: A name for it: ``"input"``, ``"network parameters"``, ``"generator parameters"`` or buffers.
        words: What is wrong with it.
        advice: What to do.
    """

    term: str
    words: str
    advice: str


class StepResult(NamedTuple):
    """What one iteration computed, without a graph.

    Attributes:
        primary_loss: Mean primary loss, a scalar tensor.
        auxiliary_loss: Mean auxiliary loss, a scalar tensor; None if the step had no auxiliary task.
        meta_loss: Mean primary loss of the meta batch after the inner step, a scalar tensor; None if not computed.
        regularizer: The weighted regulariser of the targets, a scalar tensor; None if there is none.
        outputs: Primary outputs ``[N, C, ...]`` of the training pass.
        targets: Auxiliary targets of the batch; None if the step had none.
        error: Estimated relative error of the hypergradient without its regulariser, a scalar tensor, where finite
            differences measured it; None otherwise.
        skipped: Whether a gradient scaler skipped an update because a gradient overflowed.
        auxiliary_outputs: Auxiliary outputs ``[N, K, ...]`` of the training pass; None if the step had no auxiliary
            task.
        hypergradient_norm: Euclidean norm of the hypergradient with the regulariser's, before clipping; None if not
            computed.
    """

    primary_loss: Tensor
    auxiliary_loss: Tensor | None = None
    meta_loss: Tensor | None = None
    regularizer: Tensor | None = None
    outputs: Tensor | None = None
    targets: Tensor | None = None
    error: Tensor | None = None
    skipped: bool = False
    auxiliary_outputs: Tensor | None = None
    hypergradient_norm: Tensor | None = None


@dataclass(frozen=True)
class Derivatives:
    """What a step needs: the gradients of both networks, and the buffers that their passes have updated.

    Attributes:
        result: Losses, outputs and targets.
        network_grads: Of the multi-task loss, for the parameters that it depends on.
        generator_grads: The hypergradient.
        network_buffers: By name.
        generator_buffers: By name.
        share: This rank's share of the batch.
    """

    result: StepResult
    network_grads: Mapping[Tensor, Tensor]
    generator_grads: Mapping[Tensor, Tensor]
    network_buffers: Mapping[str, Tensor]
    generator_buffers: Mapping[str, Tensor]
    share: float = 1.0

    def check_finite(self, origin: Callable[[], Origin | None], scaled: bool = False) -> bool:
        """Checks losses and gradients for NaN and infinity, with one synchronisation with the device.

        Args:
            origin: Finds what was not finite before the step; called if something is not.
            scaled: Whether there is a gradient scaler, which skips steps that overflow after the first losses.

        Returns:
            Whether the scaler will skip a step.

        Raises:
            NonFiniteError: A term is not finite; the first one is named, and its origin.
        """
        losses = {
            "primary loss": self.result.primary_loss,
            "auxiliary loss": self.result.auxiliary_loss,
            "regularizer": self.result.regularizer,
        }
        found = non_finite(
            {
                **losses,
                "network gradient": magnitude(self.network_grads.values()),
                "meta loss": self.result.meta_loss,
                "hypergradient": self.result.hypergradient_norm,
            }
        )
        if "hypergradient" in found and not non_finite({"": magnitude(self.generator_grads.values())}):
            del found["hypergradient"]  # only the squares in its norm overflowed
        for name, value in found.items():
            if not scaled or name in losses:
                earlier = origin()
                term, advice = (earlier.term, earlier.advice) if earlier else (name, ADVICE)
                because = f", as {earlier.words}" if earlier else ""
                raise NonFiniteError(
                    term, f"the {name} is {value}{because}; no parameter was updated with it. {advice}"
                )
        return bool(found)
