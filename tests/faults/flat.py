"""Long runs: memory and time of a step after ten thousand, beside those at the beginning."""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maxl_l2l import MAXL

WARM_UP = 0.1
"""Part of the iterations after which memory is looked at first: until then allocators and caches fill."""
LOOPS = {"step": 10_000, "clone and adapt": 1_000}


def learner(device: str) -> tuple[MAXL, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    return MAXL(model, [3, 4]).to(device), torch.randn(8, 6).to(device), torch.randint(0, 2, (8,)).to(device)


def stepping(device: str) -> Callable[[], object]:
    maxl, x, y = learner(device)
    optimizer = torch.optim.Adam(maxl.network.parameters(), lr=1e-3)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=1e-3)
    return lambda: maxl.step(x, y, optimizer, generator_optimizer)


def adapting(device: str) -> Callable[[], object]:
    maxl, x, y = learner(device)

    def once() -> None:
        clone = maxl.clone()
        for _ in range(3):
            clone.adapt(clone.loss(x, y))
        clone.meta_loss(x, y).backward()

    return once


def plain(device: str) -> Callable[[], object]:
    """A training step of plain torch: what the time of others is measured by, as the machine's own speed changes."""
    maxl, x, y = learner(device)
    optimizer = torch.optim.Adam(maxl.module.parameters(), lr=1e-3)

    def once() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(maxl.module(x), y).backward()
        optimizer.step()

    return once


def seconds(once: Callable[[], object]) -> float:
    begun = time.perf_counter()
    once()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def held(device: str) -> dict[str, int]:
    """What this process holds: bytes of memory, Python objects, and bytes on a GPU if that is the device."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {"resident": pages * os.sysconf("SC_PAGE_SIZE"), "objects": len(gc.get_objects())}
    if device != "cpu":
        torch.cuda.synchronize()
        found["allocated"] = torch.cuda.memory_allocated()
    return found


def measured(loop: str, iterations: int, device: str = "cpu") -> dict[str, Any]:
    """Runs a loop and returns, of each thing that is held and of a step's time, by what part it has grown.

    The time is that of a step over that of a plain one, which takes turns with it.
    """
    torch.set_num_threads(1)
    once, baseline = (stepping if loop == "step" else adapting)(device), plain(device)
    warm_up = int(iterations * WARM_UP)
    ratios, before = [], {"resident": 0}
    for number in range(iterations):
        if number == warm_up:
            before = held(device)
        ratios.append(seconds(once) / seconds(baseline))
    after = held(device)
    first, last = (statistics.median(part) for part in (ratios[warm_up : 2 * warm_up], ratios[-warm_up:]))
    # The list of ratios is this program's own.
    after["resident"] -= sys.getsizeof(ratios) + sum(map(sys.getsizeof, ratios[warm_up:]))
    growth = {name: after[name] / before[name] - 1 for name in before}
    return {"loop": loop, "iterations": iterations, **growth, "time": last / first - 1}


def figures(device: str = "cpu", loops: Iterable[str] = LOOPS) -> dict[str, Any]:
    """Measures loops, each in a process of its own.

    Returns:
        ``{loop: {"iterations": ..., "resident": growth, "objects": growth, "time": growth}}``, and ``"allocated"`` on a
        GPU.
    """
    found = {}
    for loop in loops:
        iterations = str(LOOPS[loop])
        command = [sys.executable, __file__, "--loop", loop, "--iterations", iterations, "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[loop] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=LOOPS)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a file for the figures of all loops")
    chosen = parser.parse_args()
    if chosen.loop:
        print(json.dumps(measured(chosen.loop, chosen.iterations, chosen.device)))
    else:
        found = figures(chosen.device)
        print(json.dumps(found, indent=1))
        if chosen.out is not None:
            from benchmarks.environment import environment, write

            write(chosen.out, {**environment(chosen), "growth": found})
