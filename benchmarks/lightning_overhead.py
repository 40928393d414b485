"""Measures what Lightning's Trainer adds to an iteration: `LightningMAXL` beside `maxl.step` in a loop, and `fit`.

All go through the same batches with the same weights at the start, and take turns, an epoch each. The time of an epoch
includes its data loader, not what a run does before its first epoch.

Run: python -m benchmarks.lightning_overhead
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import fit
from maxl_l2l.lightning import LightningMAXL

from .environment import environment, write
from .overhead import NUM_CLASSES, learner, rows, table

TITLES = {
    "plain": "`maxl.step` in a loop",
    "fit": "`fit`",
    "lightning": "Lightning, no logger, no progress bar",
    "lightning-shown": "Lightning, `CSVLogger` and progress bar",
}
Epoch = Callable[[], float]
"""Trains for an epoch and returns how many seconds it took."""


class Clock(L.Callback):
    """Keeps how long the last epoch took."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


def plain_epoch(name: str, loader: DataLoader[Any]) -> Epoch:
    maxl = learner(name)
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.01)
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.001, weight_decay=5e-4)

    def run() -> float:
        started = time.perf_counter()
        for x, y in loader:
            maxl.step(x, y, optimizer, generator_optimizer)
        return time.perf_counter() - started

    return run


def fit_epoch(name: str, loader: DataLoader[Any]) -> Epoch:
    maxl = learner(name)

    def run() -> float:
        return float(fit(maxl, loader, 1, progress=False).epochs[0]["seconds"])

    return run


def lightning_epoch(name: str, loader: DataLoader[Any], folder: str | None) -> Epoch:
    """Lightning's way; with a logger and a progress bar if there is a folder to log to."""
    module, clock = LightningMAXL(learner(name)), Clock()

    def run() -> float:
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[clock] if folder is None else [clock, TQDMProgressBar()],
            logger=folder is not None and CSVLogger(folder),
            log_every_n_steps=min(10, len(loader)),
            enable_progress_bar=folder is not None,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.fit(module, loader)
        return clock.seconds

    return run


def measure(name: str, batch: int, iterations: int, repeats: int) -> dict[str, Any]:
    """Measures one network; returns rows for the table and all times."""
    numbers = torch.Generator().manual_seed(1)
    x = torch.randn(batch * iterations, 3, 32, 32, generator=numbers)
    y = torch.randint(0, NUM_CLASSES, (len(x),), generator=numbers)
    loader: DataLoader[Any] = DataLoader(TensorDataset(x, y), batch_size=batch)
    seconds: dict[str, list[float]] = {entrant: [] for entrant in TITLES}
    with tempfile.TemporaryDirectory() as folder:
        epochs = {
            "plain": plain_epoch(name, loader),
            "fit": fit_epoch(name, loader),
            "lightning": lightning_epoch(name, loader, None),
            "lightning-shown": lightning_epoch(name, loader, folder),
        }
        for repeat in range(-1, repeats):  # the first for warm-up
            for entrant, epoch in epochs.items():
                gc.collect()
                taken = epoch() / iterations
                if repeat >= 0:
                    seconds[entrant].append(taken)
    return {"network": name, "batch": batch, "rows": rows(seconds, TITLES), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16-0.25", "mlp"])
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (default 32)")
    parser.add_argument("--iterations", type=int, default=10, help="in an epoch (default 10)")
    parser.add_argument("--repeats", type=int, default=15, help="epochs that each is timed for (default 15)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/lightning.json"), help="the JSON file")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    about = environment(argparse.Namespace(device="cpu", **vars(arguments)))
    about["versions"]["lightning"] = version("lightning")
    found = []
    for name in arguments.networks:
        found.append(measure(name, arguments.batch, arguments.iterations, arguments.repeats))
        print(f"\n{name}, batch {arguments.batch}, {about['device']}\n\n{table(found[-1]['rows'])}", flush=True)
        write(arguments.out, {**about, "lightning": found})
    print(f"\nWritten: {arguments.out}")


if __name__ == "__main__":
    main()
