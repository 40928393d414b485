"""Checks of arguments that several methods share: each raises before anything is computed."""

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer


def check_batch(x: Any, y: Any, names: tuple[str, str]) -> None:
    """Raises unless y is a tensor with an entry per sample of x, on its device; x may be a mapping of tensors too."""
    if not isinstance(y, Tensor):
        raise TypeError(f"`{names[1]}` must be a tensor, found {type(y).__name__}. Use torch.as_tensor.")
    if isinstance(x, Mapping):
        for key, value in x.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                check_batch(value, y, (f"{names[0]}[{key!r}]", names[1]))
        return
    if isinstance(x, np.ndarray):
        raise TypeError(f"`{names[0]}` must be a tensor, found a NumPy array. Use torch.as_tensor.")
    if not isinstance(x, Tensor):
        return
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must have the same number of samples, at least one, "
            f"found shapes {list(x.shape)} and {list(y.shape)}. Give one label per sample."
        )
    if x.device != y.device:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` must be on the same device, found {x.device} and {y.device}. "
            "Move both with .to(device)."
        )


def check_rows(targets: Any, num_samples: int, argument: str) -> None:
    """Raises unless targets are a tensor with a row per sample."""
    if not isinstance(targets, Tensor) or targets.dim() < 1 or targets.shape[0] != num_samples:
        found = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"`{argument}` must give a tensor with a target per sample, {num_samples} in all, found {found}. "
            "Give one row for each row of x."
        )


def check_probabilities(targets: Tensor, argument: str, normalized: bool = True) -> None:
    """Raises unless targets are non-negative and sum over dimension 1 to 1; to anything positive if not normalized."""
    sums = targets.detach().sum(dim=1)
    lowest = targets.detach().min()
    wrong = (sums - 1).abs().max() > 1e-3 if normalized else sums.min() <= 0
    if not lowest >= 0 or wrong:
        farthest = sums.flatten()[(sums - 1).abs().argmax()] if normalized else sums.min()
        raise ValueError(
            f"`{argument}` must give probabilities, non-negative and summing over dimension 1 to "
            f"{'1' if normalized else 'a positive weight'}, found a lowest entry of {lowest:.3g} and a sum of "
            f"{farthest:.3g}. End a generator with a softmax, or wrap its logits in LabelGenerator(body, psi)."
        )


def check_count(value: Any, argument: str, advice: str) -> None:
    """Raises unless value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{argument}` must be an integer, found {value!r} ({type(value).__name__}). {advice}")
    if value < 1:
        raise ValueError(f"`{argument}` must be at least 1, found {value}. {advice}")


def check_number(value: Any, argument: str, advice: str, positive: bool = False) -> None:
    """Raises unless value is a finite number of at least 0, or above 0 if it must be positive."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{argument}` must be a number, found {value!r} ({type(value).__name__}). {advice}")
    if not 0 <= float(value) < float("inf") or (positive and value == 0):
        raise ValueError(f"`{argument}` must be a finite number {'>' if positive else '>='} 0, found {value}. {advice}")


def check_flag(value: Any, argument: str, advice: str) -> None:
    """Raises TypeError unless value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{argument}` must be True or False, found {value!r}. {advice}")


def check_kind(value: Any, kind: type, argument: str, advice: str) -> None:
    """Raises TypeError unless value is an instance of a class."""
    if not isinstance(value, kind):
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"`{argument}` must be an instance of {kind.__name__}, found {found}. {advice}")


def check_choice(value: Any, allowed: Iterable[str], argument: str, advice: str) -> None:
    """Raises unless value is one of several strings."""
    names = list(allowed)
    if value not in names:
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, names))}, found {value!r}. {advice}.")


def check_generator(generator: Any, model: nn.Module) -> None:
    """Raises unless the generator is a module that shares no parameter with the model."""
    if not isinstance(generator, nn.Module):
        raise TypeError(
            f"`generator` must be a torch.nn.Module called with (x, y), found {type(generator).__name__}. "
            "Wrap a function's network in LabelGenerator(body, psi)."
        )
    own = {parameter: name for name, parameter in model.named_parameters()}
    tied = [own[parameter] for parameter in generator.parameters() if parameter in own]
    if tied:
        raise ValueError(
            f"`generator` must not share parameters with `model`, found {len(tied)} shared: {some(tied)}. "
            "Build it from a second instance or from copy.deepcopy(model)."
        )


def check_is_optimizer(optimizer: Any, argument: str, kind: str) -> None:
    """Raises TypeError unless this is an optimizer; kind is the name of its network."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"`{argument}` must be a torch.optim.Optimizer, found {type(optimizer).__name__}. "
            f"Make one with torch.optim.SGD(maxl.{kind}.parameters(), lr=0.01)."
        )


def check_optimizer(optimizer: Any, argument: str, module: nn.Module, kind: str, other: nn.Module) -> None:
    """Raises unless the optimizer holds all trainable parameters of one network and none of the other."""
    check_is_optimizer(optimizer, argument, kind)
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            f"`{argument}` must take a step without a closure, found LBFGS. Use SGD or Adam, or a method like them."
        )
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError(
            f"`{argument}` must have parameters to train, found that all of the {kind}'s are frozen. "
            "Call requires_grad_(True) on some of them."
        )
    missing = [name for name, parameter in trainable.items() if parameter not in held]
    if missing:
        is_swapped = len(missing) == len(trainable) and any(parameter in held for parameter in other.parameters())
        raise ValueError(
            f"`{argument}` must hold all {len(trainable)} trainable parameters of the {kind}, "
            f"found {len(trainable) - len(missing)}; missing: {some(missing)}. "
            f"Make it with maxl.{kind}.parameters()."
            + " It holds those of the other network: perhaps two optimizers are swapped."
            * is_swapped
        )
    foreign = [name for name, parameter in other.named_parameters() if parameter in held]
    if foreign:
        raise ValueError(
            f"`{argument}` must hold the parameters of the {kind} alone, "
            f"found the other network's too: {some(foreign)}. "
            f"Make it with maxl.{kind}.parameters(), not maxl.parameters()."
        )


def refuse(names: set[str], rule: str, found: str, remedy: str) -> None:
    """Raises RuntimeError if there are parameters, given by name, that break a rule of adapt()."""
    if names:
        listed = some(sorted(name.removeprefix("module.") for name in names))
        raise RuntimeError(
            f"`adapt` needs all of the model's parameters to {rule}, found {found}: {listed}. Pass {remedy}."
        )


def some(names: list[str], most: int = 5) -> str:
    """Lists the first names and counts the rest."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
