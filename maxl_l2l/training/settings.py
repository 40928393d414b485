"""Settings: what a run is made of, as plain data, and their comparison with those of a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from ..checkpoints import plain
from ..learners import AuxiliaryLabelGenerator
from ..metrics import hierarchy_of

VERSIONS = ("torch",)
"""Settings that may differ when a run is resumed."""


def learner_settings(maxl: AuxiliaryLabelGenerator) -> dict[str, Any]:
    """What a learner is made of: the sizes of its networks, its hierarchy and the options of its losses, if any."""
    networks = (maxl.network, maxl.generator)
    found: dict[str, Any] = {"parameters": [sum(p.numel() for p in network.parameters()) for network in networks]}
    hierarchy = hierarchy_of(maxl)
    if hierarchy is not None:
        found["psi"] = list(hierarchy.psi)
    # That there are weights shows in the number of parameters.
    return found | {name: value for name, value in maxl.learner_options().items() if name != "weighted"}


def optimizer_settings(optimizer: Optimizer, generator_optimizer: Optimizer) -> dict[str, Any]:
    """The kinds of both optimizers and the learning rates that they were made with."""
    return {
        "optimizer": type(optimizer).__name__,
        "lr": _initial_lr(optimizer),
        "generator_optimizer": type(generator_optimizer).__name__,
        "generator_lr": _initial_lr(generator_optimizer),
    }


def joined_settings(own: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a run's own settings and those that were given to it.

    Raises:
        TypeError: What was given is no mapping, or can't be written as JSON.
        ValueError: It names one of the run's own.
    """
    own = plain(dict(own))
    if given is None:
        return dict(own)
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`settings` must be a mapping of names to plain data, found {type(given).__name__}. "
            'Write settings={"width": 0.5}.'
        )
    taken = [name for name in given if name in own]
    if taken:
        raise ValueError(
            f"`settings` must not name what is recorded anyway, found {', '.join(taken)}. Leave it out, or rename it."
        )
    try:
        return {**own, **_plain(given)}
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`settings` must be plain data that JSON can hold, found that {error}. Pass numbers, texts and lists."
        ) from error


def check_same_settings(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError if a checkpoint's settings are not those of the run that is to be resumed from it."""
    wanted = _flat(_plain(wanted))
    try:
        found = _flat(_plain(found))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`checkpoint` must hold what fit() writes, found in {path} settings that are no plain data: {error}. "
            "Name another file."
        ) from error
    names = [name for name in {**wanted, **found} if name not in VERSIONS]
    differences = [
        f"{name} {found.get(name, 'not given')} where this run has {wanted.get(name, 'none')}"
        for name in names
        if (name in found, found.get(name)) != (name in wanted, wanted.get(name))
    ]
    if differences:
        raise ValueError(
            f"`checkpoint` must be of a run with the same settings, found {', '.join(differences)} in {path}. "
            "Use these settings again, or another checkpoint."
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with nested ones under names such as ``"recipe.lr"``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= {f"{name}.{key}": one for key, one in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _initial_lr(optimizer: Optimizer) -> float:
    """The learning rate before a scheduler has changed it: schedulers note it."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: a tuple is a list there."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return plain
