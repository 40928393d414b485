"""A training program with all that a run can carry: what is killed, resumed, and has its checkpoints tampered with."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from maxl_l2l import MAXL, fit

PSI = [2, 3]
EPOCHS = 3
SIZE, BATCH = 48, 8


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from torch's, Python's, NumPy's and the dataset's own random numbers."""

    def __init__(self, size: int = SIZE, seed: int = 0) -> None:
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))
        self.own = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.tensor([random.random(), np.random.rand(), self.own.random(), float(torch.rand(()))])
        return self.x[index] + 0.1 * noise, (self.x[index, 0] > 0).long()


def learner(psi: list[int] | None = None, width: int = 8, depth: int = 1) -> MAXL:
    """A small classifier with BatchNorm and dropout, wrapped."""
    torch.manual_seed(0)
    block = [nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3)]
    more = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    psi = psi or PSI
    return MAXL(nn.Sequential(*block, *more, nn.Linear(width, len(psi))), psi)


def parts(maxl: MAXL) -> dict[str, Any]:
    """Optimizers and a scheduler, as fit takes them."""
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9)
    return {
        "optimizer": optimizer,
        "generator_optimizer": torch.optim.Adam(maxl.generator.parameters(), lr=0.01),
        "schedulers": [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)],
    }


def trained(checkpoint: Path | None, workers: int = 0, **options: Any) -> dict[str, Any]:
    """Trains, going on from a checkpoint if there is one, and returns all that a run ends with."""
    torch.set_num_threads(1)
    maxl = learner()
    made = parts(maxl)
    if checkpoint is None or not checkpoint.exists():
        torch.manual_seed(1)
        random.seed(2)
        np.random.seed(3)
    data = Noisy()
    history = fit(
        maxl,
        DataLoader(data, BATCH, shuffle=True, num_workers=workers),
        EPOCHS,
        **made,
        meta_loader=DataLoader(Noisy(10, 5), 5, shuffle=True),
        test_loader=DataLoader(Noisy(10, 9), 5),
        progress=False,
        checkpoint=checkpoint,
        checkpoint_minutes=None if checkpoint is None else 1e-9,  # that is, after each step
        resume=checkpoint is not None,
        **options,
    )
    return {
        "history": [{name: value for name, value in record.items() if name != "seconds"} for record in history.epochs],
        "maxl": maxl.state_dict(),
        "optimizer": made["optimizer"].state_dict(),
        "generator_optimizer": made["generator_optimizer"].state_dict(),
        "scheduler": made["schedulers"][0].state_dict(),
        "torch": torch.get_rng_state(),
        "python": list(random.getstate()[1]),
        "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
        "data": str(data.own.bit_generator.state) if workers == 0 else "",
    }


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same to the last bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
