"""Trains classifiers on CIFAR-100 with each source of auxiliary labels; one JSON file for each run.

The paper's main task with the settings of its released code, all sources, three seeds; for a GPU:

    python -m examples.cifar100.train --data DATA --out out/released

Some minutes for each run on one core:

    python -m examples.cifar100.train --data DATA --out out/small --protocol modern --network resnet18 --width 0.125 \\
        --subset 50 --epochs 20

Then: python -m examples.cifar100.summarize out/small
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from maxl_l2l.checkpoints import replace_file

from .arithmetic import PRECISIONS, matrix_rate
from .data import PER_CLASS, load
from .job import Job, differences, flat
from .levels import LEVELS, task
from .networks import HEADS
from .recipes import RECIPES
from .run import HAS_SCIKIT_LEARN, SOURCES, run


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


class Outcome(NamedTuple):
    """How a run ended: finished, stopped by the time limit, or with an error."""

    job: Job
    finished: bool
    error: str | None = None


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """The runs that are asked for, seed by seed, so that whole comparisons are done first.

    Raises:
        ValueError: Settings do not fit.
    """
    check(arguments)
    changes = dict(pair.partition("=")[::2] for pair in arguments.set)
    recipe = RECIPES[arguments.protocol].changed(changes)
    if arguments.epochs is not None:
        recipe = replace(recipe, epochs=arguments.epochs)
    known = {field.name for field in fields(Job)}
    common = {name: value for name, value in vars(arguments).items() if name in known - {"label"}}
    return [
        Job(source, seed, arguments.label or source, recipe, channels_last=not arguments.contiguous, **common)
        for seed in dict.fromkeys(arguments.seeds)
        for source in dict.fromkeys(arguments.sources)
    ]


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError unless the arguments are in their ranges and what they need is there."""
    if arguments.label and len(arguments.sources) > 1:
        raise ValueError(f"`--label` needs a single source, found {', '.join(arguments.sources)}. Give one --sources.")
    most = {"subset": PER_CLASS["train"]}
    for name in ("subset", "epochs", "micro_batches", "processes"):
        value = getattr(arguments, name)
        if value is not None and not 1 <= value <= most.get(name, value):
            limit = f" and at most {most[name]}" if name in most else ""
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1{limit}, found {value}. Change it.")
    if not 0 < arguments.width < float("inf"):
        raise ValueError(f"`--width` must be a number above 0, found {arguments.width}. The paper's network has 1.")
    if "kmeans" in arguments.sources and not HAS_SCIKIT_LEARN:
        raise ValueError("`--sources` kmeans needs scikit-learn, which is missing. Run: pip install scikit-learn")
    task(arguments.primary, arguments.auxiliary)
    try:
        torch.empty(1, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` must be there, found {arguments.device}: {error}. Try --device cpu.") from error


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
        try:
            found = json.loads(job.result.read_text())["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"`--out` has {job.result}, which is no result ({error!r}). Move it elsewhere.") from error
        if differing := differences(flat(found), flat(job.settings())):
            values = ", ".join(f"{name} {there} there, {here} here" for name, (there, here) in differing.items())
            raise ValueError(
                f"`--out` has {job.result} of other settings: {values}. Use these settings again, or another --out."
            )
    return todo


def work(job: Job, rate: float, deadline: float | None, progress: bool) -> Outcome:
    """Does a run and writes its result; an error is that of this run alone."""
    if deadline is not None and time.time() >= deadline:
        return Outcome(job, False)
    try:
        result = run(job, rate, deadline, progress)
        if result is None:
            return Outcome(job, False)
        text = json.dumps(result, indent=1) + "\n"
        replace_file(job.result, lambda file: file.write(text.encode()))
    except torch.cuda.OutOfMemoryError as error:
        return Outcome(job, False, memory_advice(job, error))
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        return Outcome(job, False, str(error))
    except Exception:  # unexpected, so all of it is shown; the other runs continue
        return Outcome(job, False, traceback.format_exc())
    return Outcome(job, True)


def memory_advice(job: Job, error: Exception) -> str:
    """What a run needed of a GPU's memory, and what lowers it."""
    reason = str(error).split(". GPU")[0]
    peak = torch.cuda.max_memory_allocated(job.device) / 2**30 if torch.cuda.is_available() else 0.0
    return (
        f"the memory of {job.device} is too small. {reason}; this process held {peak:.2f} GiB at its peak. "
        f"--micro-batches {2 * job.micro_batches} needs less (BatchNorm then sees parts of a batch), as do fewer "
        "--processes, a smaller --width or --set batch_size=50. Checkpoints are intact; go on with --resume."
    )


def one_by_one(jobs: Sequence[Job], rate: float, deadline: float | None) -> Iterator[Outcome]:
    """Does runs in this process, each with its progress bar."""
    for number, job in enumerate(jobs, start=1):
        print(f"Run {number} of {len(jobs)}: {job.name}", flush=True)
        yield work(job, rate, deadline, progress=True)


def side_by_side(
    jobs: Sequence[Job], rate: float, deadline: float | None, processes: int, threads: int
) -> Iterator[Outcome]:
    """Does runs in processes of their own, with a bar of runs."""
    # Spawned, not forked: neither torch's threads nor CUDA survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (threads,)) as pool:
        calls = {pool.submit(work, job, rate, deadline, False): job for job in jobs}
        for call in tqdm(as_completed(calls), total=len(calls), desc="runs", unit="run"):
            try:
                yield call.result()
            except BrokenProcessPool:
                killed = "a process was killed, perhaps for want of memory. Go on with --resume, or fewer --processes."
                yield Outcome(calls[call], False, killed)


def report(outcome: Outcome) -> None:
    """Says how a run went."""
    job = outcome.job
    if outcome.error is not None:
        tqdm.write(f"{job.name}: error: {outcome.error}", file=sys.stderr)
    elif not outcome.finished:
        tqdm.write(f"{job.name}: not finished within the time limit")
    else:
        result = json.loads(job.result.read_text())
        tqdm.write(
            f"{job.name}: {100 * result['accuracy']:.2f} % in {result['seconds'] / 60:.1f} minutes, "
            f"{result['images_per_second']:,.0f} images/s, {100 * result['share_of_matrix_rate']:.0f} % of the "
            "device's rate in matrix products"
        )


def main(arguments: list[str] | None = None) -> int:
    """Does all runs that are asked for; returns 0, 1 if one failed, or 130 after an interrupt."""
    options = parsed(arguments)
    deadline = None if options.time_limit is None else time.time() + 60 * options.time_limit
    threads = max(1, (os.cpu_count() or 1) // options.processes) if options.processes > 1 else torch.get_num_threads()
    done: list[Outcome] = []
    try:
        jobs = jobs_of(options)
        todo = still_to_do(jobs, options.resume)
        load(options.data, options.cache, options.download)  # reports errors in the data before the first run
        torch.set_num_threads(threads)
        rate = matrix_rate(options.device, options.precision)
        if options.processes > 1:
            outcomes = side_by_side(todo, rate, deadline, options.processes, threads)
        else:
            outcomes = one_by_one(todo, rate, deadline)
        for outcome in outcomes:
            report(outcome)
            done.append(outcome)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command with --resume goes on from the last checkpoints.", file=sys.stderr)
        return 130
    missing = sum(not outcome.finished for outcome in done)
    if missing:
        print(f"{missing} of {len(jobs)} runs are not finished. Go on with the same command and --resume.")
    return int(any(outcome.error is not None for outcome in done))


if __name__ == "__main__":
    sys.exit(main())
