"""Arithmetic: the precision of a run, how many operations its steps take, and how many the device can do."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from maxl_l2l import MAXL, LabelSource

from .recipes import Recipe

PRECISIONS = ("float32", "tf32", "bf16")


@contextlib.contextmanager
def arithmetic(device: torch.device | str, precision: str) -> Iterator[None]:
    """Computes in a precision.

    Args:
        device: Where to.
        precision: ``"float32"``; ``"tf32"``, which a GPU rounds to in products; ``"bf16"``, by autocast.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Some ways to write a step change weights between passes, so cast copies must not be kept for the next pass.
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    try:
        with half:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def synchronize(device: torch.device | str) -> None:
    """Waits for a device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def operations_a_batch(
    maxl: MAXL, recipe: Recipe, source: LabelSource, batch: tuple[torch.Tensor, ...], micro_batches: int = 1
) -> int:
    """Counts the floating-point operations of convolutions and matrix products in the steps on one batch.

    Args:
        maxl: The learner; a copy of it is trained.
        recipe: Whose steps.
        source: Where the labels come from.
        batch: x, y and, for a source of fixed labels, these.
        micro_batches: Parts that it is computed in.
    """
    maxl = copy.deepcopy(maxl)
    optimizer, generator_optimizer = recipe.optimizers(maxl)
    with FlopCounterMode(display=False) as counter:
        if recipe.schedule == "batch":
            source.step(maxl, batch, optimizer, generator_optimizer, micro_batches=micro_batches)
        else:
            source.network_step(maxl, batch, optimizer, micro_batches=micro_batches)
            if source.trains_generator:
                source.generator_step(maxl, batch, optimizer, generator_optimizer, micro_batches=micro_batches)
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device | str, precision: str, repeats: int = 10) -> float:
    """Measures the operations per second of a large matrix product, about the most that a device can reach."""
    size = 8192 if torch.device(device).type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one = torch.randn(size, size, device=device).to(dtype)
    with arithmetic(device, precision):
        seconds = []
        for _ in range(repeats + 2):
            synchronize(device)
            started = time.perf_counter()
            one @ one
            synchronize(device)
            seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / sorted(seconds[2:])[repeats // 2])
