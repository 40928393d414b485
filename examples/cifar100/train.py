"""Trains classifiers on CIFAR-100 with each source of auxiliary labels; one JSON file a run.

The paper's main task with the settings of its released code, all sources, three seeds:

    python -m examples.cifar100.train --data DATA --out out/released

A few minutes a run on one core:

    python -m examples.cifar100.train --data DATA --out out/small --protocol modern --subset 50 --width 0.25 --epochs 20

Then: python -m examples.cifar100.summarize out/small
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maxl_l2l.files import replace_file

from .arithmetic import PRECISIONS
from .levels import LEVELS
from .networks import HEADS
from .recipes import RECIPES
from .run import HAS_SCIKIT_LEARN, SOURCES, Job, run


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, help="folder with train/ and test/, or torchvision's")
    data.add_argument("--download", action="store_true", help="let torchvision download CIFAR-100 into it")
    data.add_argument("--cache", type=Path, default=Path("out/cache"), help="folder for decoded images")
    data.add_argument("--primary", type=int, default=20, choices=LEVELS, help="classes of the task (default 20)")
    data.add_argument("--auxiliary", type=int, default=100, choices=LEVELS, help="finer classes (default 100)")
    data.add_argument("--subset", type=int, help="training images a class (default: all 500)")
    what = parser.add_argument_group("what to train")
    what.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES, help="default: all")
    what.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default 0 1 2")
    what.add_argument("--network", default="vgg16", choices=HEADS)
    what.add_argument("--width", type=float, default=1.0, help="factor on its channels (default 1)")
    what.add_argument("--protocol", default="released", choices=RECIPES, help="settings (default released)")
    what.add_argument("--epochs", type=int, help="default 200")
    what.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings of the protocol")
    what.add_argument("--label", help="what tables call it, with a single source (default: the source)")
    how = parser.add_argument_group("how")
    how.add_argument("--device", default="cuda" if cuda else "cpu")
    how.add_argument("--precision", default="float32", choices=PRECISIONS)
    how.add_argument("--contiguous", action="store_true", help="channels first in memory, not last")
    how.add_argument("--compile", action="store_true", help="compile the passes of both networks")
    how.add_argument("--micro-batches", type=int, default=1, help="parts of a batch, to save memory (default 1)")
    how.add_argument("--processes", type=int, default=1, help="runs side by side, on one GPU or on cores (default 1)")
    lasting = parser.add_argument_group("runs that last")
    lasting.add_argument("--out", type=Path, required=True, help="folder for results and checkpoints")
    lasting.add_argument("--checkpoint-minutes", type=float, default=10, help="how often to save (default 10)")
    lasting.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    lasting.add_argument("--time-limit", type=float, metavar="MINUTES", help="stop cleanly before")
    return parser.parse_args(arguments)


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """The runs that are asked for, seed by seed, so that whole comparisons are done first.

    Raises:
        ValueError: Settings do not fit.
    """
    if arguments.label and len(arguments.sources) > 1:
        raise ValueError(f"`--label` needs a single source, found {', '.join(arguments.sources)}. Give one --sources.")
    for name in ("subset", "epochs"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"`--{name}` must be at least 1, found {getattr(arguments, name)}. Leave it out for all.")
    if "kmeans" in arguments.sources and not HAS_SCIKIT_LEARN:
        raise ValueError("`--sources` kmeans needs scikit-learn, which is missing. Run: pip install scikit-learn")
    changes = dict(pair.partition("=")[::2] for pair in arguments.set)
    recipe = RECIPES[arguments.protocol].changed(**changes)
    if arguments.epochs is not None:
        recipe = replace(recipe, epochs=arguments.epochs)
    known = {field.name for field in fields(Job)}
    common = {name: value for name, value in vars(arguments).items() if name in known - {"label"}}
    return [
        Job(source, seed, arguments.label or source, recipe, channels_last=not arguments.contiguous, **common)
        for seed in arguments.seeds
        for source in arguments.sources
    ]


def still_to_do(jobs: list[Job], resume: bool) -> list[Job]:
    """The runs without a result.

    Raises:
        ValueError: There are results or checkpoints and resume is not asked for, or results of other settings.
    """
    if not resume:
        there = [path for job in jobs for path in (job.result, job.checkpoint) if path.exists()]
        if there:
            raise ValueError(f"`--out` has {there[0]} already. Pass --resume to go on with it, or another --out.")
    todo = []
    for job in jobs:
        if not job.result.exists():
            todo.append(job)
            continue
        found = json.loads(job.result.read_text())["settings"]
        if differing := differences(found, job.settings()):
            raise ValueError(
                f"`--out` has {job.result} of other settings: {differing}. Use these settings again, or another --out."
            )
    return todo


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Names the settings that differ, with both values."""
    found, wanted = ({**one, **one["recipe"], "recipe": None} for one in (found, wanted))
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {found.get(name)} there, {wanted.get(name)} here" for name in names)


def work(job: Job, deadline: float | None, progress: bool) -> tuple[Job, bool]:
    """Does a run unless the deadline is over, and writes its result; returns whether it is finished."""
    left = None if deadline is None else (deadline - time.time()) / 60
    if left is not None and left <= 0:
        return job, False
    try:
        result = run(job, left, progress)
    except torch.OutOfMemoryError as error:
        raise MemoryError(memory_advice(job, error)) from error
    if result is None:
        return job, False
    text = json.dumps(result, indent=1) + "\n"
    replace_file(job.result, lambda file: file.write(text.encode()))
    return job, True


def memory_advice(job: Job, error: Exception) -> str:
    """What a run needed of a GPU's memory, and what lowers it."""
    reason = str(error).split(". GPU")[0]
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return (
        f"{job.name}: the memory of {job.device} is too small. {reason}; the run held {peak:.2f} GiB at its peak. "
        f"--micro-batches {2 * job.micro_batches} needs less (BatchNorm then sees parts of a batch), as do fewer "
        "--processes, a smaller --width or --set batch_size=50. Checkpoints are intact; go on with --resume."
    )


def in_processes(jobs: list[Job], deadline: float | None, processes: int) -> list[tuple[Job, bool]]:
    """Does runs side by side, with a bar of runs."""
    # Spawned, not forked: neither torch's threads nor CUDA survive a fork.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    with context.Pool(processes, torch.set_num_threads, [threads]) as pool:
        calls = [pool.apply_async(work, (job, deadline, False)) for job in jobs]
        return [call.get() for call in tqdm(calls, desc="runs", unit="run")]


def report(job: Job, finished: bool) -> None:
    """Says how a run went, in a line."""
    if not finished:
        print(f"{job.name}: not finished within the time limit", flush=True)
        return
    result = json.loads(job.result.read_text())
    print(
        f"{job.name}: {100 * result['accuracy']:.2f} % in {result['seconds'] / 60:.1f} minutes, "
        f"{result['images_per_second']:,.0f} images/s, {100 * result['share_of_matrix_rate']:.0f} % of the device's "
        "rate in matrix products",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    deadline = None if options.time_limit is None else time.time() + 60 * options.time_limit
    try:
        jobs = jobs_of(options)
        todo = still_to_do(jobs, options.resume)
        if options.processes > 1:
            done = in_processes(todo, deadline, options.processes)
            for job, finished in done:
                report(job, finished)
        else:
            done = []
            for number, job in enumerate(todo, start=1):
                print(f"Run {number} of {len(todo)}: {job.name}", flush=True)
                done.append(work(job, deadline, progress=True))
                report(*done[-1])
    except (ValueError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    missing = sum(not finished for _, finished in done)
    if missing:
        print(f"{missing} of {len(jobs)} runs are not finished. Go on with the same command and --resume.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
