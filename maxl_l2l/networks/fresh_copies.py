"""Fresh copies: a model's architecture, newly initialised, with another number of outputs."""

import contextlib
import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .calls import call, logits_of
from .heads import logits_layer, resized_head

# Methods by which layers and models of torch, transformers and timm draw their parameters.
RESETS = ("reset_parameters", "_reset_parameters", "init_weights", "_init_weights")
# Attributes in which models keep their number of outputs; some reshape by it.
COUNTS = ("num_classes", "num_labels")


def fresh_copy(model: nn.Module, num_outputs: int, head: str | None, num_features: int | None) -> nn.Module:
    """Returns a model's architecture with another number of outputs, on its device and in its dtype.

    Layers draw new values by ``reset_parameters()``, models by ``init_weights()`` without arguments, or by
    ``_init_weights(module)`` for each of their modules, as in torch, timm and transformers. Parameters that none of
    these draw are copied from the model. All are trainable.

    Args:
        model: The model to copy; nothing is shared with it.
        num_outputs: Outputs of the copy.
        head: Name of the model's head, a layer or a sequence that ends with one; not used with num_features.
        num_features: Width of a headless backbone's output, which gets a linear layer then; None if there is a head.

    Raises:
        ValueError: The model can't be copied.
    """
    try:
        body = copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"`generator` must be given for this model, which can't be copied: {error}. "
            "Pass generator=LabelGenerator(your_network, psi)."
        ) from error
    like = place(model)
    if num_features is not None:
        body = _Headed(body, nn.Linear(num_features, num_outputs, **like))
    elif layer := logits_layer(body, head or ""):
        _replace(body, body.get_submodule(layer), num_outputs)
    else:
        body = resized_head(body, num_outputs)
    for module in body.modules():
        # transformers marks what it has initialised or loaded, and would not draw it again.
        vars(module).pop("_is_hf_initialized", None)
    # Children first: a parent that initialises its children overrides them.
    for module in reversed(list(body.modules())):
        _reset(module)
    for parameter in body.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return body


def fresh_head(head: nn.Module, num_outputs: int) -> nn.Module:
    """Returns a head like the model's with another number of outputs: a single layer, or a fresh copy of a sequence.

    Raises:
        ValueError: The sequence can't be copied.
    """
    if not isinstance(head, nn.Sequential):
        return resized_head(head, num_outputs)
    try:
        return fresh_copy(head, num_outputs, "", None)
    except ValueError as error:
        raise ValueError(
            f"`head` must name layers that can be copied, found a sequence that can't be: {error.__cause__}. "
            "Name the last of its layers alone."
        ) from error


def place(model: nn.Module) -> dict[str, Any]:
    """Device and dtype of the model's first floating-point parameter."""
    like = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), torch.empty(0))
    return {"device": like.device, "dtype": like.dtype}


class _Headed(nn.Sequential):
    """A headless backbone and a linear layer on its features."""

    def forward(self, x: Any, /) -> Tensor:
        backbone, head = self
        logits: Tensor = head(logits_of(call(backbone, x), what="features"))
        return logits


def _replace(body: nn.Module, old_head: nn.Module, num_outputs: int) -> None:
    """Replaces a model's head by one with another number of outputs, and sets that number where the model keeps it."""
    new_head = resized_head(old_head, num_outputs)
    for module in list(body.modules()):  # the head may be registered under several names
        for name, child in module._modules.items():
            if child is old_head:
                module._modules[name] = new_head
    old = getattr(old_head, "out_features", None) or getattr(old_head, "out_channels", None)
    for holder in (body, getattr(body, "config", None)):
        for name in COUNTS:
            count = getattr(holder, name, None)
            if isinstance(count, int) and count == old:
                with contextlib.suppress(AttributeError):  # a read-only one follows the head by itself
                    setattr(holder, name, num_outputs)


def _reset(module: nn.Module) -> None:
    """Draws new values for a module's parameters, if it knows how to."""
    reset = next((found for name in RESETS if (found := _prepared(module, name)) is not None), None)
    if reset is None:
        return
    if not parametrize.is_parametrized(module):
        reset()
        return
    # A parametrized tensor is computed at each access: draw into one that stays, then assign it.
    places = [name for name, _ in module.get_submodule("parametrizations").named_children()]
    with parametrize.cached():
        reset()
        drawn = {name: getattr(module, name).detach().clone() for name in places}
    for name, value in drawn.items():
        setattr(module, name, value)


def _prepared(module: nn.Module, name: str) -> Callable[[], Any] | None:
    """A module's method as a function without arguments; None if it has none that can be called so."""
    method = getattr(module, name, None)
    if not callable(method):
        return None
    signature = inspect.signature(method)
    if _fits(signature):
        reset: Callable[[], Any] = method
        return reset
    return (lambda: module.apply(method)) if name == "_init_weights" and _fits(signature, module) else None


def _fits(signature: inspect.Signature, *args: Any) -> bool:
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True
