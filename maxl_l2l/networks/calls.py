"""Calls: how a model takes a batch, and which of what it returns are its logits."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..checks import some

# Names of the logits in what a model returns: "logits" in transformers' classifiers, GoogLeNet and Inception (in
# training mode), "out" in torchvision's segmentation models.
NAMES = ("logits", "out")
RETURN_DICT = ", or give a transformers model return_dict=True"


def call(module: nn.Module, x: Any) -> Any:
    """Calls a module with a batch's x: a mapping as keyword arguments, anything else as the one argument.

    A tokenizer's output is such a mapping: ``module(input_ids=..., attention_mask=...)``. A module whose ``forward``
    takes the whole mapping as its one argument, under a name that is not one of the mapping's keys, gets the mapping.
    """
    if isinstance(x, Mapping) and _takes_keywords(module, x):
        return module(**x)
    return module(x)


def logits_of(output: Any, subject: str = "`model`", what: str = "logits") -> Tensor:
    """Returns the logits in what a model returned: itself, or its tensor named ``logits`` (``out`` in a mapping).

    Args:
        output: A tensor; an object or named tuple with the attribute ``logits``; or a mapping with one of these keys.
        subject: The model's name in the message.
        what: The tensor's name in the message; "features" for a headless backbone.

    Raises:
        TypeError: There is no such tensor.
    """
    if isinstance(output, Tensor):
        return output
    named = [output.get(name) for name in NAMES] if isinstance(output, Mapping) else []
    for found in (*named, getattr(output, "logits", None)):
        if isinstance(found, Tensor):
            return found
    where = "as one tensor" if what != "logits" else "as one tensor or under the name 'logits' (or 'out', in a dict)"
    starts = isinstance(output, (tuple, list)) and len(output) > 0 and isinstance(output[0], Tensor)
    first = f", `return self.model(x)[0]` for instance{RETURN_DICT}" if starts else ""
    raise TypeError(
        f"{subject} must return its {what}, {where}, found {_described(output)}. "
        f"Wrap it in a module whose forward returns the {what} alone{first}."
    )


def two_outputs(found: Any) -> tuple[Tensor, Tensor]:
    """Returns the outputs of a replacement of the multi-task network; raises TypeError if they are no pair."""
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(one, Tensor) for one in found):
        return found[0], found[1]
    words = f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise TypeError(f"`network` must return (primary, auxiliary) outputs, found {words}. Pass a clone of maxl.network.")


def _takes_keywords(module: nn.Module, x: Mapping[Any, Any]) -> bool:
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # compiled code has none
        return False
    try:
        signature.bind(**x)
    except TypeError:
        # With several parameters, keywords are meant even so: the call's own error names the wrong key.
        return len(signature.parameters) > 1 and any(key in signature.parameters for key in x)
    return True


def _described(output: Any) -> str:
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} with {', '.join(map(repr, output))}" if output else f"an empty {name}"
    if not isinstance(output, (tuple, list)):
        return f"an object of class {name}"
    fields = getattr(output, "_fields", None)
    if fields:
        return f"a {name} with {', '.join(map(repr, fields))}"
    parts = [f"a tensor {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__ for part in output]
    return f"a {name} of {some(parts, 4)}" if parts else f"an empty {name}"
