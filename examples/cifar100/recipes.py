"""Recipes: the settings that a run is trained with, and the optimizers made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

    def __post_init__(self) -> None:
        """Raises ValueError unless a run can be made with all settings."""
        choices = {"schedule": ("epoch", "batch"), "decay": ("halved", "cosine"), "generator": ("sgd", "adam")}
        rules = {name: f"one of {', '.join(allowed)}" for name, allowed in choices.items()}
        wrong = [name for name, allowed in choices.items() if getattr(self, name) not in allowed]
        rules |= {"epochs": "at least 1", "batch_size": "at least 1", "held_out": "at least 0 and below 1"}
        wrong += [name for name in ("epochs", "batch_size") if getattr(self, name) < 1]
        wrong += ["held_out"] if not 0 <= self.held_out < 1 else []
        for name, value in vars(self).items():
            if isinstance(value, float) and name not in rules and not 0 <= value < math.inf:
                rules[name] = "a number from 0 on"
                wrong.append(name)
        if wrong:
            raise ValueError(f"`{wrong[0]}` must be {rules[wrong[0]]}, found {getattr(self, wrong[0])}. Change it.")

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

    def changed(self, changes: Mapping[str, str]) -> Recipe:
        """Returns the recipe with some settings changed, given as text.

        Raises:
            ValueError: There is no such setting, or its value is of another kind.
        """
        known, values = vars(self), {}
        for name, text in changes.items():
            try:
                values[name] = type(known[name])(text)
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"`--set` must change settings of the recipe to values of their kind, found {name}={text}. "
                    f"They are: {', '.join(f'{key}={value}' for key, value in known.items())}."
                ) from error
        return replace(self, **values)


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
