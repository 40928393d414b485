"""Measuring: seconds in alternating repeats, peak memory above the floor, and the error of the hypergradient."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .case import Case
from .contenders import Contender
from .libraries import CONTENDERS

WARM_UP = 2
# In a process that measures memory, glibc gives every tensor pages of its own and returns them when it is freed, so
# that resident memory is that of live tensors, without what malloc would keep for later.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass
class Result:
    """What was found out about one contender.

    Attributes:
        contender: Its name.
        failure: The error without help, if it raised one.
        math_attention: Whether it is measured with torch's math attention, because it failed without.
        first_seconds: Of its first iteration, compilation included.
        seconds: Of one iteration, one value for each repeat.
        peak_bytes: Most memory in use at a time, above the floor.
        error: Distance of its hypergradient from the exact one in float64, relative to the norm of the exact one.
        method_error: The same from the exact one in the same precision, which leaves out rounding. (Rounding decides on
            which side of its kink a ReLU is, so that all exact ways are equally far from float64.)
        method_error_without_entropy: The same with the entropy term left out of the exact one, if the contender leaves
            it out.
    """

    contender: str
    failure: str | None = None
    math_attention: bool = False
    first_seconds: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    error: float | None = None
    method_error: float | None = None
    method_error_without_entropy: float | None = None


class Entrant:
    """A contender, set up on a case and ready to run.

    Args:
        case: What to measure on.
        name: Of the contender.
        math_attention: Whether attention is kept to torch's math kernel, which has a second derivative.
    """

    def __init__(self, case: Case, name: str, math_attention: bool = False) -> None:
        self.case = case
        self.name = name
        self.math_attention = math_attention
        self.contender: Contender = CONTENDERS[name](case.learner(), case.inner_steps)
        self.start = copy.deepcopy(self.contender.maxl.state_dict())
        self.x, self.y = case.data()

    def run(self, iterations: int = 1) -> float:
        """Runs some iterations; returns the seconds that one took."""
        attention = sdpa_kernel(SDPBackend.MATH) if self.math_attention else contextlib.nullcontext()
        with attention, self.case.arithmetic():
            self.case.synchronize()
            started = time.perf_counter()
            for _ in range(iterations):
                self.contender.iteration(self.x, self.y)
            self.case.synchronize()
            return (time.perf_counter() - started) / iterations

    def hypergradient(self) -> Tensor | None:
        """The hypergradient of an iteration from the start, as one float64 vector; None without a generator to train.

        Not that of the very first iteration, in which finite differences search for their distance.
        """
        self.contender.maxl.load_state_dict(self.start)
        self.run()
        grads = [parameter.grad for parameter in self.contender.theta_2]
        found = [grad.detach().double().flatten() for grad in grads if grad is not None]
        return torch.cat(found) if len(found) == len(grads) else None

    def forget(self) -> None:
        """Drops the gradients and all else that the last iteration has left."""
        self.contender.optimizer.zero_grad()
        self.contender.generator_optimizer.zero_grad()
        gc.collect()


def compare(case: Case, names: Iterable[str], repeats: int, iterations: int, errors: bool = True) -> list[Result]:
    """Measures contenders on a case; one that raises is reported with its error.

    Args:
        case: What to measure on.
        names: Of the contenders.
        repeats: How often each is timed; they take turns.
        iterations: How many iterations are timed at once.
        errors: Whether hypergradients are compared with the exact one.
    """
    exact = exact_hypergradients(case, double=True) if errors else None
    same = exact_hypergradients(case, double=False) if errors else None
    results, entrants = [], {}
    for name in names:
        result, entrant = first_iteration(case, name)
        results.append(result)
        if entrant is not None:
            entrants[name] = entrant
            found = None if exact is None else entrant.hypergradient()
            if exact is not None and same is not None and found is not None:
                result.error = relative_error(found, exact[0])
                result.method_error = relative_error(found, same[0])
                if not entrant.contender.has_entropy:
                    result.method_error_without_entropy = relative_error(found, same[1])
    seconds = timed(entrants, repeats, iterations)
    for result in results:
        if result.contender in entrants:
            result.seconds = seconds[result.contender]
            result.peak_bytes = peak_memory(entrants[result.contender])
    return results


def first_iteration(case: Case, name: str) -> tuple[Result, Entrant | None]:
    """Runs a contender's first iteration; if it raises, a second time with torch's math attention."""
    result = Result(name)
    for math_attention in (False, True):
        try:
            entrant = Entrant(case, name, math_attention)
            result.first_seconds = entrant.run()
        except Exception as error:  # whatever another library raises is a result
            result.failure = result.failure or reason(error)
        else:
            result.math_attention = math_attention
            return result, entrant
    return result, None


def reason(error: Exception) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def timed(entrants: Mapping[str, Entrant], repeats: int, iterations: int) -> dict[str, list[float]]:
    """Seconds of one iteration, one value for each repeat; entrants take turns, so that a slow moment affects all."""
    for entrant in entrants.values():
        entrant.run(WARM_UP)
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(repeats):
        for name, entrant in entrants.items():
            gc.collect()  # so that garbage of one is not collected in the time of another
            seconds[name].append(entrant.run(iterations))
    return seconds


def exact_hypergradients(case: Case, double: bool) -> tuple[Tensor, Tensor]:
    """The hypergradient by the unrolled double backward pass; and the same without the entropy term.

    Args:
        case: What to measure on.
        double: Whether to compute in float64 rather than in the case's precision.
    """
    found = []
    for method in ("unrolled", "regularizer"):
        maxl = case.learner()
        x, y = case.data()
        if double:
            maxl.double().hypergradient(x.double(), y, method=method)
        else:
            with case.arithmetic():
                maxl.hypergradient(x, y, method=method)
        grads = [parameter.grad for parameter in maxl.generator.parameters()]
        found.append(torch.cat([grad.double().flatten() for grad in grads if grad is not None]))
    return found[0], found[0] - found[1]


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def peak_memory(entrant: Entrant) -> int | None:
    """The most bytes that a contender holds at a time, above what is held between iterations.

    On a GPU: the allocator's count. Elsewhere: the resident set of a process of its own; None if that was killed.
    """
    case = entrant.case
    if torch.device(case.device).type == "cuda":
        return peak_of_allocator(entrant)
    os.environ.update(ALLOCATOR)
    # Forked from a server that has one thread and has imported everything, once.
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        try:
            return process.submit(peak_of_process, case, entrant.name, entrant.math_attention).result()
        except BrokenProcessPool:
            return None


def peak_of_allocator(entrant: Entrant) -> int:
    entrant.forget()
    floor = torch.cuda.memory_allocated(entrant.case.device)
    torch.cuda.reset_peak_memory_stats(entrant.case.device)
    entrant.run(WARM_UP)
    return int(torch.cuda.max_memory_allocated(entrant.case.device)) - floor


def peak_of_process(case: Case, name: str, math_attention: bool) -> int:
    """Runs in a fresh process; the floor is taken when libraries are loaded and gradients dropped."""
    entrant = Entrant(case, name, math_attention)
    if not Path("/proc/self/clear_refs").exists():  # not Linux: no peak can be reset, so there is no warm-up
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        entrant.run(WARM_UP)
        unit = 1 if sys.platform == "darwin" else 1024
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - floor) * unit
    entrant.run(WARM_UP)
    entrant.forget()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    floor = resident("VmRSS")
    entrant.run(WARM_UP)
    return resident("VmHWM") - floor


def resident(key: str) -> int:
    """A figure of this process's status on Linux, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])
