"""Recipes: the settings that a run is trained with, and the optimizers made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, StepLR

from maxl_l2l import MAXL


@dataclass(frozen=True)
class Recipe:
    """How both networks are trained. The defaults are those of the released code of Liu et al. (2019).

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a batch.
        schedule: ``"epoch"``, an epoch of network steps, then one of generator steps; ``"batch"``, the fused step.
        held_out: Fraction of the training images that the meta loss is computed on, and nothing else; 0 for the
            training batch itself.
        decay: ``"halved"``, both rates after each quarter of the epochs; ``"cosine"``, both to 0 along a cosine.
        lr: Of the network's SGD.
        momentum: Its momentum, Nesterov's if there is any.
        weight_decay: Its weight decay.
        generator: ``"sgd"`` or ``"adam"``.
        generator_lr: Its learning rate.
        generator_weight_decay: Its weight decay (L2).
        generator_l1: Weight of the absolute values of its weights (L1).
        entropy_weight: Lambda of the meta loss.
        gamma: Focusing exponent of both losses.
    """

    epochs: int = 200
    batch_size: int = 100
    schedule: str = "epoch"
    held_out: float = 0.0
    decay: str = "halved"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    generator: str = "sgd"
    generator_lr: float = 1e-3
    generator_weight_decay: float = 5e-4
    generator_l1: float = 0.0
    entropy_weight: float = 0.2
    gamma: float = 2.0

    def optimizers(self, maxl: MAXL) -> tuple[Optimizer, Optimizer]:
        """Returns the network's optimizer and the generator's."""
        network = SGD(
            maxl.network.parameters(),
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )
        kind = {"sgd": SGD, "adam": Adam}[self.generator]
        generator = kind(maxl.generator.parameters(), lr=self.generator_lr, weight_decay=self.generator_weight_decay)
        if self.generator_l1:
            generator.register_step_pre_hook(self._add_l1)
        return network, generator

    def _add_l1(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach().sign(), alpha=self.generator_l1)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Returns what lowers an optimizer's rate after each epoch."""
        if self.decay == "halved":
            return StepLR(optimizer, max(1, self.epochs // 4), gamma=0.5)
        return LambdaLR(optimizer, lambda epoch: (1 + math.cos(math.pi * epoch / self.epochs)) / 2)

    def changed(self, **changes: str) -> Recipe:
        """Returns the recipe with some settings changed, given as text.

        Raises:
            ValueError: There is no such setting, or its value is of another kind.
        """
        known = vars(self)
        for name, text in changes.items():
            try:
                changes[name] = type(known[name])(text)
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"`--set` must change settings of the recipe to values of their kind, found {name}={text}. "
                    f"They are: {', '.join(f'{key}={value}' for key, value in known.items())}."
                ) from error
        return replace(self, **changes)  # type: ignore[arg-type]


RECIPES = {
    "released": Recipe(),
    # That of the paper's first draft (openreview S1gd7nCcF7).
    "draft": Recipe(schedule="batch", held_out=0.1, generator_lr=1e-5, generator_weight_decay=0.0, generator_l1=5e-4),
    "modern": Recipe(
        schedule="batch",
        decay="cosine",
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        generator="adam",
        generator_lr=0.01,
        generator_weight_decay=0.0,
    ),
}
