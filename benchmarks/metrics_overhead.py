"""Measures what metrics cost: `fit` without them, with all, with TensorBoard, and with the gradient cosine.

All go through the same batches, which have a given label too, with the same weights at the start, and take turns, an
epoch each.

Run: python -m benchmarks.metrics_overhead
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import Metrics, fit

from .environment import environment, write
from .overhead import NUM_CLASSES, PSI, learner, rows, table

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # its row is left out then
    SummaryWriter = None  # type: ignore[assignment,misc]

TITLES = {
    "plain": "`fit`",
    "metrics": "`metrics=True`",
    "logged": "`metrics=True`, TensorBoard, every step logged",
    "cosine-10": "`metrics=Metrics(gradient_cosine=10)`",
    "cosine": "`metrics=Metrics(gradient_cosine=1)`",
}


def measure(name: str, batch: int, iterations: int, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Measures one network; returns rows for the table and all times."""
    numbers = torch.Generator().manual_seed(1)
    x = torch.randn(batch * iterations, 3, 32, 32, generator=numbers)
    y = torch.randint(0, NUM_CLASSES, (len(x),), generator=numbers)
    given = torch.randint(0, sum(PSI), (len(x),), generator=numbers)
    loader: DataLoader[Any] = DataLoader(TensorDataset(x, y, given), batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, dict[str, Any]] = {
            "plain": {},
            "metrics": {"metrics": True},
            "logged": {"metrics": True, "log_every": 1},
            "cosine-10": {"metrics": Metrics(gradient_cosine=10)},
            "cosine": {"metrics": Metrics(gradient_cosine=1)},
        }
        if SummaryWriter is None:
            del options["logged"]
        else:
            options["logged"]["logger"] = SummaryWriter(folder)
        learners = {entrant: learner(name).to(device) for entrant in options}
        seconds: dict[str, list[float]] = {entrant: [] for entrant in options}
        for repeat in range(-1, repeats):  # the first for warm-up
            for entrant, given_options in options.items():
                gc.collect()
                history = fit(learners[entrant], loader, 1, progress=False, **given_options)
                if repeat >= 0:
                    seconds[entrant].append(history.epochs[0]["seconds"] / iterations)
    return {"network": name, "batch": batch, "rows": rows(seconds, TITLES), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16-0.25", "mlp"])
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (default 32)")
    parser.add_argument("--iterations", type=int, default=10, help="in an epoch (default 10)")
    parser.add_argument("--repeats", type=int, default=15, help="epochs that each is timed for (default 15)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--out", type=Path, default=Path("out/bench/metrics.json"), help="the JSON file")
    arguments = parser.parse_args()
    about = environment(arguments)
    found = []
    for name in arguments.networks:
        found.append(measure(name, arguments.batch, arguments.iterations, arguments.repeats, arguments.device))
        print(f"\n{name}, batch {arguments.batch}, {about['device']}\n\n{table(found[-1]['rows'])}", flush=True)
        write(arguments.out, {**about, "metrics": found})
    print(f"\nWritten: {arguments.out}")


if __name__ == "__main__":
    main()
