"""Measures an epoch of the CIFAR-100 experiment: single task, MAXL as published and fused, and a plain unroll.

Run: python -m benchmarks.epoch --device cuda --precision bf16 --compile

Batches are cut, cropped and flipped from 50,000 images on the device, as in examples/cifar100; their pixels are random.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from examples.cifar100.arithmetic import PRECISIONS, arithmetic, matrix_rate, synchronize
from examples.cifar100.data import Batches, Images
from examples.cifar100.levels import task
from examples.cifar100.markdown import markdown
from examples.cifar100.networks import HEADS, network
from examples.cifar100.recipes import Recipe
from maxl_l2l import MAXL

from .contenders import SingleTask, Unroll
from .environment import environment, write
from .spread import spread

IMAGES = 50_000
WARM_UP = 3
UNROLL = "plain torch, unrolled"
COLUMNS = (
    "",
    "Seconds an epoch",
    "Ratio to the unroll",
    "Images a second",
    "Share of the matrix rate",
    "Peak memory, MiB",
)


Make = Callable[[MAXL], Callable[[Tensor, Tensor], object]]


class Way:
    """A way to train on a batch, set up with networks and optimizers of its own.

    Args:
        options: Of the command line.
        title: Its name in tables.
        make: From a learner to what is done with x and y.
        batches: What it trains on, without an end.
        compiled: Whether the learner's passes are compiled.
    """

    def __init__(
        self, options: argparse.Namespace, title: str, make: Make, batches: Iterator[Any], compiled: bool = False
    ) -> None:
        self.title, self.device, self.precision, self.batches = title, options.device, options.precision, batches
        torch.manual_seed(0)
        psi = task(20, 100).psi
        model = network(options.network, len(psi), options.width).to(memory_format=torch.channels_last)
        maxl = MAXL(model, psi, head=HEADS[options.network]).to(options.device)
        self.step = make(maxl)
        with FlopCounterMode(display=False) as counter:
            self.run(1)
        self.operations = int(counter.get_total_flops())
        if compiled:
            maxl.compile()
        self.run(WARM_UP)

    def run(self, iterations: int) -> float:
        """Trains on some batches; returns the seconds that one took."""
        with arithmetic(self.device, self.precision):
            synchronize(self.device)
            started = time.perf_counter()
            for x, y in islice(self.batches, iterations):
                self.step(x, y)
            synchronize(self.device)
            return (time.perf_counter() - started) / iterations


def peak_mib(options: argparse.Namespace, title: str, make: Make, batches: Iterator[Any], compiled: bool) -> float:
    """The most memory that a GPU's allocator gives out to a way: its networks and all that it computes."""
    gc.collect()
    floor = torch.cuda.memory_allocated(options.device)
    way = Way(options, title, make, batches, compiled)
    torch.cuda.reset_peak_memory_stats(options.device)
    way.run(WARM_UP)
    return round((torch.cuda.max_memory_allocated(options.device) - floor) / 2**20, 1)


def stages(maxl: MAXL, fused: bool) -> Callable[[Tensor, Tensor], object]:
    """Both stages on each batch: as published, a step of the network and a virtual one; or fused."""
    optimizer, generator_optimizer = Recipe().optimizers(maxl)

    def published(x: Tensor, y: Tensor) -> None:
        maxl.network_step(x, y, optimizer)
        maxl.generator_step(x, y, optimizer, generator_optimizer)

    def at_once(x: Tensor, y: Tensor) -> None:
        maxl.step(x, y, optimizer, generator_optimizer)

    return at_once if fused else published


WAYS: dict[str, Make] = {
    "single task": lambda maxl: SingleTask(maxl).iteration,
    "MAXL, both stages": lambda maxl: stages(maxl, fused=False),
    "MAXL, fused": lambda maxl: stages(maxl, fused=True),
    UNROLL: lambda maxl: Unroll(maxl).iteration,
}
COMPILED = ("MAXL, both stages", "MAXL, fused")


def endless(options: argparse.Namespace) -> Iterator[Any]:
    """Batches of random images with a class each, pass after pass."""
    numbers = torch.Generator(options.device).manual_seed(0)
    pixels = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8, device=options.device, generator=numbers)
    classes = torch.arange(IMAGES) % 100
    batches = Batches(Images(pixels, classes), [classes % 20], options.batch, torch.device(options.device), seed=0)
    while True:
        yield from batches


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all ways in turns; one row each."""
    batches = endless(options)
    made = [(title, make, False) for title, make in WAYS.items()]
    if options.compile:
        made += [(f"{title}, compiled", WAYS[title], True) for title in COMPILED]
    ways = [Way(options, title, make, batches, compiled) for title, make, compiled in made]
    seconds: dict[str, list[float]] = {way.title: [] for way in ways}
    for _ in range(options.repeats):
        for way in ways:
            gc.collect()  # so that garbage of one is not collected in the time of another
            seconds[way.title].append(way.run(options.iterations))
    rate = matrix_rate(options.device, options.precision)
    found = []
    for way in ways:
        batch = median(seconds[way.title])
        found.append(
            {
                "way": way.title,
                "seconds_a_batch": spread(seconds[way.title]),
                "seconds_an_epoch": batch * IMAGES / options.batch,
                "ratio_to_unroll": spread([one / other for one, other in zip(seconds[way.title], seconds[UNROLL])]),
                "images_a_second": options.batch / batch,
                "operations_a_batch": way.operations,
                "share_of_matrix_rate": way.operations / batch / rate,
                "peak_mib": None,
            }
        )
    if torch.device(options.device).type == "cuda":
        del way
        ways.clear()  # each is measured alone
        for row, (title, make, compiled) in zip(found, made):
            row["peak_mib"] = peak_mib(options, title, make, batches, compiled)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    return markdown(COLUMNS, map(cells, found))


def cells(row: dict[str, Any]) -> list[str]:
    ratio = row["ratio_to_unroll"]
    return [
        row["way"],
        f"{row['seconds_an_epoch']:.1f}",
        f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
        f"{row['images_a_second']:,.0f}",
        f"{100 * row['share_of_matrix_rate']:.0f} %",
        "" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or the like (default cpu)")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--network", default="vgg16", choices=HEADS)
    parser.add_argument("--width", type=float, default=1.0, help="factor on its channels (default 1)")
    parser.add_argument("--batch", type=int, default=100, help="images in a batch (default 100)")
    parser.add_argument("--compile", action="store_true", help="measure compiled passes too")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is timed, in turns (default 5)")
    parser.add_argument("--iterations", type=int, help="batches timed at once; default 2, on cuda 100")
    parser.add_argument("--out", type=Path, default=Path("out/bench/epoch.json"))
    options = parser.parse_args(arguments)
    if options.iterations is None:
        options.iterations = 100 if torch.device(options.device).type == "cuda" else 2
    about = environment(options)
    found = rows(options)
    write(options.out, {**about, "summary": found})
    print(f"{options.network}, width {options.width}, {options.precision}, {about['device']}\n\n{table(found)}")
    print(f"\nWritten: {options.out}")


if __name__ == "__main__":
    main()
