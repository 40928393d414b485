"""Plain data: what a file can hold that is read without trusting it."""

import copy
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """Returns a nested value with Python's numbers in the place of NumPy's, and tensors in the place of arrays."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        found = copy.copy(value)  # of its class, with its attributes: a module's state has some
        found.update((key, plain(entry)) for key, entry in value.items())
        return found
    if type(value) in (list, tuple):
        return type(value)(plain(entry) for entry in value)
    return value


def unreadable(value: Any) -> str | None:
    """Says what of a nested value a safe load would refuse; None if it would load it. Tensors are passed over."""
    file = io.BytesIO()
    try:
        torch.save(_without_tensors(value), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # what pickle raises depends on what it meets
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
