"""Plain data: the values, besides tensors, that ``torch.load(weights_only=True)`` loads."""

import copy
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """Replaces NumPy's numbers by Python's, and arrays by tensors, in a nested value."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        found = copy.copy(value)  # keeps the class and the attributes, which a module's state has
        found.update((key, plain(entry)) for key, entry in value.items())
        return found
    if type(value) in (list, tuple):
        return type(value)(plain(entry) for entry in value)
    return value


def unreadable(value: Any) -> str | None:
    """Describes what ``weights_only=True`` refuses in a nested value; None if nothing. Tensors are skipped."""
    file = io.BytesIO()
    try:
        torch.save(_without_tensors(value), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # pickle raises errors of any kind
        return next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), str(error).split("\n")[0])
    return None


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, dict):
        found = copy.copy(value)
        found.update((key, _without_tensors(entry)) for key, entry in value.items())
        return found
    return type(value)(map(_without_tensors, value)) if type(value) in (list, tuple) else value
