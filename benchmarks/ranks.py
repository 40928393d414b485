"""Measures what training in several processes costs: one step of MAXL and of single-task training, over gloo on CPUs.

A batch is split over the ranks, each with one thread. Measured in turns: one process with the whole batch, the ranks
with their parts, and the ranks each for itself (the same work without a collective). The baseline is
DistributedDataParallel on the single task. Bytes are counted at torch.distributed's functions.

Run: python -m benchmarks.ranks
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from examples.cifar100.markdown import markdown
from maxl_l2l import MAXL

from .environment import environment, write
from .networks import network
from .spread import spread

NUM_CLASSES = 20
PSI = [5] * NUM_CLASSES
ENTRANTS = {
    "alone": "MAXL, one process, the whole batch",
    "ranks": "MAXL, {ranks} ranks, a part each",
    "apart": "the same without collectives",
    "single-alone": "single task, one process, the whole batch",
    "single-ranks": "single task, DistributedDataParallel, {ranks} ranks",
    "single-apart": "the same without collectives",
}
COLUMNS = ("", "Seconds", "Ratio to one process", "Bytes a step, MB", "Of the parameters", "Collectives")


class Counter:
    """Counts the bytes that this process hands to collectives, and the collectives."""

    def __init__(self) -> None:
        self.bytes = self.calls = 0

    def __enter__(self) -> Counter:
        self.originals = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")}
        for name, original in self.originals.items():
            setattr(dist, name, self.counted(original))
        return self

    def __exit__(self, *error: object) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)

    def counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tensor: Tensor = next(arg for arg in reversed(args) if isinstance(arg, Tensor))
            self.bytes += tensor.numel() * tensor.element_size()
            self.calls += 1
            return original(*args, **options)

        return call


def step_of(maxl: MAXL, x: Tensor, y: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.01)
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.001)
    return lambda: maxl.step(x, y, optimizer, generator_optimizer)


def single_step_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def measured(rank: int, ranks: int, store: str, name: str, batch: int, repeats: int) -> dict[str, Any]:
    """What one rank measures: seconds of each entrant, and the bytes and collectives of a step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = network(name, NUM_CLASSES)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, NUM_CLASSES, (batch,))
    part = slice(rank, None, ranks)
    together = MAXL(copy.deepcopy(model), PSI)
    together.distribute()
    spread_model = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    steps = {
        "alone": step_of(MAXL(copy.deepcopy(model), PSI), x, y),
        "ranks": step_of(together, x[part], y[part]),
        "apart": step_of(MAXL(copy.deepcopy(model), PSI), x[part], y[part]),
        "single-alone": single_step_of(copy.deepcopy(model), x, y),
        "single-ranks": single_step_of(spread_model, x[part], y[part]),
        "single-apart": single_step_of(copy.deepcopy(model), x[part], y[part]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-2, repeats):  # the first two for warm-up
        for entrant, step in steps.items():
            dist.barrier()
            started = time.perf_counter()
            if rank == 0 or "alone" not in entrant:
                step()
            dist.barrier()
            if repeat >= 0:
                seconds[entrant].append(time.perf_counter() - started)
    with Counter() as counter:
        steps["ranks"]()
    sizes = [sum(4 * p.numel() for p in net.parameters()) for net in (together.network, together.generator)]
    dist.destroy_process_group()
    return {"seconds": seconds, "bytes": counter.bytes, "collectives": counter.calls, "parameter_bytes": sizes}


def serve(connection: Any, *arguments: Any) -> None:
    connection.send(measured(*arguments))


def measure(name: str, batch: int, ranks: int, repeats: int) -> dict[str, Any]:
    """Measures one network; returns rows for the table and all times, as rank 0 took them."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(ranks)]
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=serve, args=(end, rank, ranks, store, name, batch, repeats))
            for rank, (_, end) in enumerate(ends)
        ]
        for process in processes:
            process.start()
        for _, end in ends:
            end.close()
        found: dict[str, Any]
        found, *_ = [receiving.recv() for receiving, _ in ends]
        for process in processes:
            process.join()
    rows = []
    for entrant, title in ENTRANTS.items():
        own, base = found["seconds"][entrant], found["seconds"]["single-alone" if "single" in entrant else "alone"]
        row = {
            "entrant": entrant,
            "title": title.format(ranks=ranks),
            "seconds": spread(own),
            "ratio": spread([one / other for one, other in zip(own, base)]),
        }
        if entrant == "ranks":
            row |= {"bytes": found["bytes"], "collectives": found["collectives"]}
            row["of_parameters"] = found["bytes"] / sum(found["parameter_bytes"])
        rows.append(row)
    return {"network": name, "batch": batch, "ranks": ranks, "rows": rows, **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table in Markdown."""
    return markdown(COLUMNS, map(cells, rows))


def cells(row: dict[str, Any]) -> list[str]:
    ratio = row["ratio"]
    return [
        row["title"],
        f"{row['seconds']['median']:.3g}",
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else "",
        f"{row['of_parameters']:.2f}" if "bytes" in row else "",
        str(row.get("collectives", "")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vgg16-0.5", "resnet18"])
    parser.add_argument("--batch", type=int, default=64, help="images in the whole batch (default 64)")
    parser.add_argument("--ranks", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for ranks.json")
    arguments = parser.parse_args()
    about = environment(argparse.Namespace(device="cpu", **vars(arguments)))
    found = []
    for name in arguments.networks:
        found.append(measure(name, arguments.batch, arguments.ranks, arguments.repeats))
        print(f"\n{name}, batch {arguments.batch}, {about['device']}\n\n{table(found[-1]['rows'])}", flush=True)
        write(arguments.out / "ranks.json", {**about, "ranks": found})
    print(f"\nWritten: {arguments.out}/ranks.json")


if __name__ == "__main__":
    main()
