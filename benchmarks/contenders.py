"""The contenders: one iteration of MAXL, in which both networks are updated once, with this package and in plain torch.

All get the same learner, optimizers and losses, and the cheapest form that their library allows: labels without a graph
in the network's own step, one pass of the generator however many inner steps, and a backward pass that computes the
generator's gradient alone.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from maxl_l2l import MAXL

LR = 0.01
GENERATOR_LR = 0.001


class Contender(ABC):
    """A way to write one iteration; what must persist between iterations is made by the constructor.

    Args:
        maxl: Network, generator and losses; trained in place.
        inner_steps: Steps of the inner loop, where a contender can do more than one.

    Attributes:
        title: Its name in tables and figures.
        has_entropy: Whether its hypergradient has the entropy term in it.
    """

    title: ClassVar[str]
    has_entropy: ClassVar[bool] = True

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        self.maxl, self.network, self.generator, self.objective = maxl, maxl.network, maxl.generator, maxl.objective
        self.theta_1, self.theta_2 = list(maxl.network.parameters()), list(maxl.generator.parameters())
        self.optimizer = SGD(self.theta_1, lr=LR)
        self.generator_optimizer = SGD(self.theta_2, lr=GENERATOR_LR)
        self.inner_steps = inner_steps

    @abstractmethod
    def iteration(self, x: Tensor, y: Tensor) -> None:
        """Updates both networks once; leaves the hypergradient in ``.grad`` of the generator's parameters."""

    def loss(self, outputs: tuple[Tensor, Tensor], y: Tensor, labels: Tensor) -> Tensor:
        """The multi-task loss."""
        return self.objective.primary(outputs[0], y) + self.objective.auxiliary(outputs[1], labels)

    def meta_loss(self, outputs: tuple[Tensor, Tensor], y: Tensor, labels: Tensor) -> Tensor:
        """The meta loss of a network's outputs after the inner steps."""
        assert self.objective.regularizer is not None  # MAXL has one
        return self.objective.primary(outputs[0], y) + self.objective.regularizer(labels)


class SingleTask(Contender):
    """Training without auxiliary labels: the baseline."""

    title = "single task"

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        super().__init__(maxl, inner_steps)
        self.model: Callable[[Tensor], Tensor] = maxl.module

    def iteration(self, x: Tensor, y: Tensor) -> None:
        loss = self.objective.primary(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class SingleTaskCompiled(SingleTask):
    title = "single task, compiled"

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        super().__init__(maxl, inner_steps)
        self.model = torch.compile(maxl.module)


class Ours(Contender):
    """``maxl.step``, with its default method."""

    title = "ours"
    method: ClassVar[str] = "forward"

    def iteration(self, x: Tensor, y: Tensor) -> None:
        self.maxl.step(x, y, self.optimizer, self.generator_optimizer, method=self.method)


class OursFiniteDifference(Ours):
    title = "ours, finite difference"
    method = "finite-difference"


class OursCompiled(Ours):
    title = "ours, compiled"

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        super().__init__(maxl, inner_steps)
        maxl.compile()


class SharedUnroll(Contender):
    """As Unroll, but the inner gradient is computed once and used for the network's step too."""

    title = "torch, unrolled, gradient shared"

    def iteration(self, x: Tensor, y: Tensor) -> None:
        labels = self.generator(x, y)
        grads = torch.autograd.grad(self.loss(self.network(x), y, labels), self.theta_1, create_graph=True)
        stepped = {name: p - LR * grad for (name, p), grad in zip(self.network.named_parameters(), grads)}
        meta_loss = self.meta_loss(functional_call(self.network, stepped, x), y, labels)
        self.generator_optimizer.zero_grad()
        meta_loss.backward(inputs=self.theta_2)
        for parameter, grad in zip(self.theta_1, grads):
            parameter.grad = grad.detach()
        self.optimizer.step()
        self.generator_optimizer.step()


class TwoStages(Contender):
    """First the hypergradient, then the network's own step, computed separately, as in the paper's code."""

    def iteration(self, x: Tensor, y: Tensor) -> None:
        self.generator_optimizer.zero_grad()
        self.add_hypergradient(x, y)
        self.network_step(x, y)
        self.generator_optimizer.step()

    @abstractmethod
    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        """Adds the hypergradient to ``.grad`` of the generator's parameters."""

    def network_step(self, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            labels = self.generator(x, y)
        loss = self.loss(self.network(x), y, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Unroll(TwoStages):
    """Plain torch: ``create_graph=True`` and ``functional_call``."""

    title = "torch, unrolled"

    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        labels = self.generator(x, y)
        stepped: dict[str, Tensor] = dict(self.network.named_parameters())
        for _ in range(self.inner_steps):
            loss = self.loss(functional_call(self.network, stepped, x), y, labels)
            grads = torch.autograd.grad(loss, tuple(stepped.values()), create_graph=True)
            stepped = {name: p - LR * grad for (name, p), grad in zip(stepped.items(), grads)}
        self.meta_loss(functional_call(self.network, stepped, x), y, labels).backward(inputs=self.theta_2)


class OursAdapted(TwoStages):
    """The same program as for learn2learn, with our learner in the place of MAML."""

    title = "ours, clone and adapt"

    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        labels = self.generator(x, y)
        learner = self.maxl.clone()
        for _ in range(self.inner_steps):
            learner.adapt(self.loss(learner.network(x), y, labels))
        self.meta_loss(learner.network(x), y, labels).backward(inputs=self.theta_2)


class Published(TwoStages):
    """The scheme of the paper's first-order script: two perturbed losses, each with a backward pass of the generator.

    As there, the network's own step takes labels with their graph, so that its backward pass runs through the
    generator as well, the perturbation has length 0.01, and the entropy term is lost.
    """

    title = "published finite difference"
    has_entropy = False
    length = 0.01

    def __init__(self, maxl: MAXL, inner_steps: int = 1) -> None:
        super().__init__(maxl, inner_steps)
        self.stepped: nn.Module = copy.deepcopy(maxl.network)

    def add_hypergradient(self, x: Tensor, y: Tensor) -> None:
        theta_1_plus = list(self.stepped.parameters())
        grads = torch.autograd.grad(self.loss(self.network(x), y, self.generator(x, y)), self.theta_1)
        with torch.no_grad():
            for parameter, stepped, grad in zip(self.theta_1, theta_1_plus, grads):
                stepped.copy_(parameter - LR * grad)
        loss = self.objective.primary(self.stepped(x)[0], y)
        slope = torch.autograd.grad(loss, theta_1_plus, allow_unused=True, materialize_grads=True)
        step = self.length / torch.cat([part.flatten() for part in slope]).norm()
        self.move(step, slope)
        above = self.label_gradient(x, y)
        self.move(-2 * step, slope)
        below = self.label_gradient(x, y)
        self.move(step, slope)
        for parameter, a, b in zip(self.theta_2, above, below):
            parameter.grad = -LR * (a - b) / (2 * step)

    def label_gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """The gradient of the multi-task loss with respect to the generator."""
        return torch.autograd.grad(self.loss(self.network(x), y, self.generator(x, y)), self.theta_2)

    def move(self, step: Tensor, slope: tuple[Tensor, ...]) -> None:
        """Moves the network by step * slope."""
        with torch.no_grad():
            for parameter, part in zip(self.theta_1, slope):
                parameter.add_(step * part)

    def network_step(self, x: Tensor, y: Tensor) -> None:
        hypergradient = [parameter.grad for parameter in self.theta_2]
        loss = self.loss(self.network(x), y, self.generator(x, y))
        self.optimizer.zero_grad()
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for parameter, grad in zip(self.theta_2, hypergradient):
            parameter.grad = grad
