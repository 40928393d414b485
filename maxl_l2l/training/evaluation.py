"""Evaluation: what a model does on data that it is not trained on."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..checks import check_kind
from ..learners import AuxiliaryLabelGenerator
from ..metrics import Means, accuracy
from ..networks import logits_of
from .batches import check_loader, moved


def evaluate(maxl: AuxiliaryLabelGenerator, loader: Iterable[Any]) -> dict[str, float]:
    """Evaluates the model on data that it is not trained on, in evaluation mode.

    Args:
        maxl: The learner; its training mode is restored.
        loader: Batches ``(x, y)``.

    Returns:
        ``loss``, the mean primary loss over samples, and ``accuracy``, a fraction, if y holds class indices.

    After ``maxl.distribute()`` all ranks call it, each with its part of the data, of any size; the result is that of
    all samples.

    Raises:
        TypeError: maxl is no learner.
        ValueError: loader is empty.
    """
    check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Pass the learner, MAXL(model, psi).")
    if maxl.ranks.size == 1:  # of several, one may have no part of the data
        check_loader(loader, "loader", required=True)
    return evaluated(maxl, loader, "loader")


def evaluated(maxl: AuxiliaryLabelGenerator, loader: Iterable[Any], argument: str) -> dict[str, float]:
    """Evaluates as :func:`evaluate` does; argument is the name of the loader, for messages."""
    device, totals = device_of(maxl), Means()
    with evaluation_mode(maxl), torch.no_grad(), maxl.ranks.call("evaluate"):
        for batch in loader:
            x, y = moved(batch, device, argument)[:2]
            maxl.check_batch(x, y)
            outputs = logits_of(maxl(x))
            totals.add("loss", maxl.objective.primary(outputs, y), len(y))
            totals.add("accuracy", accuracy(outputs, y), len(y))
        maxl.ranks.totals("a loader")
    totals.join(maxl.ranks)
    found = totals.values()
    if not found:
        raise ValueError(
            f"`{argument}` must yield at least one batch, found none. Check the dataset behind it; an iterator that is "
            "used up is not a loader."
        )
    return found


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode; each of its parts goes back to its own mode at the end."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def device_of(maxl: AuxiliaryLabelGenerator) -> torch.device:
    """Returns the device that batches go to."""
    return next(maxl.parameters()).device
