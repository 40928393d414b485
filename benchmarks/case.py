"""What is measured on: a network, a batch and the arithmetic, the same for every contender."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.cifar100.arithmetic import arithmetic, synchronize
from maxl_l2l import MAXL

from .contenders import LR
from .networks import network


@dataclass(frozen=True)
class Case:
    """One thing to measure on.

    Attributes:
        network: Its name, as in :func:`~benchmarks.networks.network`.
        batch: Images of 32x32 in a batch.
        psi: Sub-classes per primary class.
        inner_steps: Steps of the inner loop.
        device: ``cpu``, ``cuda`` or the like.
        precision: ``float32``; ``tf32``, which a GPU rounds to in products; ``bf16``, by autocast.
    """

    network: str
    batch: int = 100
    psi: tuple[int, ...] = (5,) * 20
    inner_steps: int = 1
    device: str = "cpu"
    precision: str = "float32"

    def learner(self) -> MAXL:
        """A new learner, with the same weights at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MAXL(network(self.network, len(self.psi)), self.psi, lr=LR).to(self.device)

    def data(self) -> tuple[Tensor, Tensor]:
        """Images ``[N, 3, 32, 32]`` and their primary labels, the same at every call."""
        numbers = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, 3, 32, 32, generator=numbers)
        y = torch.randint(0, len(self.psi), (self.batch,), generator=numbers)
        return x.to(self.device), y.to(self.device)

    def arithmetic(self) -> AbstractContextManager[None]:
        """The precision that iterations run in."""
        return arithmetic(self.device, self.precision)

    def synchronize(self) -> None:
        """Waits for the device."""
        synchronize(self.device)
