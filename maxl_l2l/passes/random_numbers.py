"""Random numbers: the states of torch's generators, or of all that a run draws from, saved and restored."""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


def cuda_devices(module: nn.Module) -> list[int]:
    """Returns the indices of the CUDA devices that hold a module's parameters."""
    return sorted(
        {p.device.index for p in module.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )


class RandomState:
    """The state of the CPU's and the devices' random number generators at one moment."""

    def __init__(self, devices: Iterable[int]) -> None:
        self.cpu = torch.get_rng_state()
        self.devices = {device: torch.cuda.get_rng_state(device) for device in devices}

    def restore(self) -> None:
        """Puts the generators back into that state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.cuda.set_rng_state(state, device)

    @contextlib.contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Puts the generators back into that state if what runs inside raises."""
        try:
            yield
        except BaseException:
            self.restore()
            raise

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Puts the generators into that state inside; afterwards they continue as if nothing had been drawn."""
        now = RandomState(self.devices)
        self.restore()
        try:
            yield
        finally:
            now.restore()


PARTS = ("sampler", "batch_sampler", "dataset")
"""The parts of a data loader, its samplers and its datasets that may hold random number generators of their own."""
KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


class RandomNumbers:
    """All generators of this process that the data and the steps of a run draw from.

    Those are torch's, Python's and NumPy's own generators, and those that a data loader, its samplers or its dataset
    hold as attributes.

    Args:
        devices: CUDA devices whose random state is included.
        loaders: Data loaders, or what stands for them, by name.
    """

    def __init__(self, devices: Sequence[int], loaders: Mapping[str, Any]) -> None:
        self.devices = devices
        self.generators: dict[str, Any] = {}
        for path, generator in _generators(loaders):
            if not any(generator is other for other in self.generators.values()):
                self.generators[path] = generator

    def state(self) -> dict[str, Any]:
        """Returns the state of all generators at this moment, tensors and plain data."""
        found = RandomState(self.devices)
        return {
            "cpu": found.cpu,
            "devices": found.devices,
            "python": random.getstate(),
            "numpy": _plain(np.random.get_state(legacy=False)),
            "generators": {path: _state(generator) for path, generator in self.generators.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts all generators into that state."""
        torch.set_rng_state(state["cpu"])
        for device, own in state["devices"].items():
            torch.cuda.set_rng_state(own, device)
        random.setstate(state["python"])
        np.random.set_state(_arrays(state["numpy"]))
        for path, generator in self.generators.items():
            if path in state["generators"]:
                _restore(generator, state["generators"][path])


def _generators(loaders: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every generator that loaders and their parts hold, with the path at which it is found."""
    open_ends: list[tuple[str, Any]] = list(loaders.items())
    seen: set[int] = set()
    while open_ends:
        path, holder = open_ends.pop(0)
        if id(holder) in seen or not hasattr(holder, "__dict__"):
            continue
        seen.add(id(holder))
        found = ((f"{path}.{name}", own) for name, own in _attributes(holder) if isinstance(own, KINDS))
        yield from (pair for pair in found if not isinstance(pair[1], random.SystemRandom))  # which has no state
        open_ends += [(f"{path}.{name}", own) for name, own in _attributes(holder) if name in PARTS]


def _attributes(holder: Any) -> Iterable[tuple[str, Any]]:
    return sorted(vars(holder).items())


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _plain(generator.get_state(legacy=False))
    return _plain(generator.bit_generator.state)


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_arrays(state))
    else:
        generator.bit_generator.state = _arrays(state)


def _plain(state: Any) -> Any:
    """A state of NumPy's with tensors in the place of arrays, which ``weights_only=True`` refuses to load."""
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    return torch.from_numpy(state.astype(np.int64)) if isinstance(state, np.ndarray) else state


def _arrays(state: Any) -> Any:
    """The inverse of :func:`_plain`."""
    if isinstance(state, Mapping):
        return {name: _arrays(value) for name, value in state.items()}
    return state.numpy().astype(np.uint64) if isinstance(state, torch.Tensor) else state
