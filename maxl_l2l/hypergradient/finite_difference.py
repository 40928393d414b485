"""Finite differences: the derivative of a network's outputs along a direction, by passes a small distance apart."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..passes import RandomState, at_least_float32, clones, map_tensors, norm, virtual_pass

SEARCH_EVERY = 100
"""Differences after which the best distance is looked for again."""


@dataclass
class Distance:
    """The distance that was found best, kept from one difference to the next.

    Attributes:
        relative: As a fraction of the norm of theta_1; None before the first search.
        error: Relative error that was measured there, a scalar tensor.
        uses: Differences since the last search.
    """

    relative: float | None = None
    error: Tensor | None = None
    uses: int = 0


class Measured(NamedTuple):
    """A central difference.

    Attributes:
        relative: Its distance, as a fraction of the norm of theta_1.
        slope: The derivative it gives.
        error: The difference of the slopes on the two sides, relative to slope: about the error of either of them,
            rounding included, and larger than the error of slope if the network is smooth.
    """

    relative: float
    slope: Tensor
    error: Tensor


Norm = Callable[[Iterable[Tensor]], Tensor]
"""The Euclidean norm of all entries of several tensors together."""


class Line:
    """A network's auxiliary outputs along a straight line through its parameters.

    Args:
        network: ``x -> (primary outputs, auxiliary outputs)``; neither its buffers nor its parameters change.
        x: What the network takes.
        direction: The line's direction, by parameter name; other parameters are constant.
        buffers: Buffers to start each pass from, by name.
        rng: The random state to start each pass from.
        output_norm: The norm of outputs; over all ranks if these must take the same distance.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Any,
        direction: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        rng: RandomState,
        output_norm: Norm = norm,
    ) -> None:
        self.network, self.x, self.direction, self.buffers, self.rng = network, x, direction, buffers, rng
        self.output_norm = output_norm
        if torch.is_autocast_enabled(next(network.parameters()).device.type):
            self.x = map_tensors(at_least_float32, x)  # passes are made without autocast
        self.parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
        size = norm([self.parameters[name] for name in direction])
        self.size = torch.where(size > 0, size, 1.0)  # parameters that are all zero have no scale
        self.length = norm(direction.values()).clamp_min(torch.finfo(torch.float32).tiny)
        self.rounding = max(torch.finfo(part.dtype).eps for part in direction.values())

    def at(self, relative: float) -> Tensor:
        """The outputs at a signed distance, a fraction of the norm of theta_1."""
        step = self.step(relative)
        moved = {name: self.parameters[name] + step.to(part) * part for name, part in self.direction.items()}
        # Differences of half-precision outputs would be noise.
        with torch.no_grad(), self.rng.again(), torch.autocast(step.device.type, enabled=False):
            outputs: Tensor = virtual_pass(self.network, moved, clones(self.buffers), self.x)[1]
        return outputs

    def step(self, relative: float) -> Tensor:
        """The factor on the direction that gives a distance."""
        step: Tensor = relative * self.size / self.length
        return step

    def central(self, relative: float, middle: Tensor) -> Measured:
        """The central difference, given the outputs in the middle."""
        ahead, behind = self.at(relative), self.at(-relative)
        twice = self.output_norm([ahead - behind]).clamp_min(torch.finfo(torch.float32).tiny)
        slope = (ahead - behind) / (2 * self.step(relative)).to(ahead)
        return Measured(relative, slope, self.output_norm([ahead + behind - 2 * middle]) / twice)

    def best(self, middle: Tensor) -> Measured:
        """Searches for the distance with the smallest error, by factors of 8 from one that suits many networks.

        The error of rounding grows with the inverse of the distance, that of curvature with the distance, that of the
        kinks of a deep ReLU network with about its square root; the best distance depends on the network.
        """
        found = self.central(self.rounding ** (2 / 3) / 12, middle)
        for factor in (8.0, 1 / 8):
            start = found
            while self.rounding < found.relative * factor < self.rounding**0.25:
                other = self.central(found.relative * factor, middle)
                if not other.error < found.error:
                    break
                found = other
            if found is not start:
                break
        return found


def output_difference(
    line: Line, outputs: Tensor, chosen: Distance, epsilon: float | None, measure: bool
) -> tuple[Tensor, Tensor | None]:
    """Estimates what :func:`output_tangent` computes, by one pass; by more when it searches for the distance.

    Args:
        line: The outputs along the direction.
        outputs: The outputs at theta_1.
        chosen: The distance found so far; updated by a search.
        epsilon: Euclidean distance in theta_1 to use instead.
        measure: Whether to measure the error now, by a central difference.

    Returns:
        The tangent, and its relative error as last measured; None if it never was.
    """
    autocast = torch.is_autocast_enabled(outputs.device.type)
    middle = line.at(0.0) if autocast else outputs
    if epsilon is not None:
        relative = epsilon / float(line.size)
        if measure:
            return line.central(relative, middle)[1:]
        return (line.at(relative) - middle) / line.step(relative).to(middle), None
    if measure or chosen.relative is None or chosen.uses >= SEARCH_EVERY:
        found = line.best(middle)
        chosen.relative, chosen.error, chosen.uses = found.relative, found.error, 0
        return found.slope, found.error
    chosen.uses += 1
    return (line.at(chosen.relative) - middle) / line.step(chosen.relative).to(middle), chosen.error
