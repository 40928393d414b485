"""Long runs are flat: nothing of a step, or of a clone and its inner steps, is left behind."""

import gc
import itertools

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL

PSI = [3, 4]


def learner():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    return MAXL(model, PSI)


def batch():
    numbers = torch.Generator().manual_seed(0)
    return torch.randn(8, 6, generator=numbers), torch.randint(0, 2, (8,), generator=numbers)


def stepping(**options):
    maxl = learner()
    optimizer = torch.optim.Adam(maxl.network.parameters(), lr=0.01)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
    return lambda: maxl.step(*batch(), optimizer, generator_optimizer, **options)


def adapting():
    maxl = learner()

    def once():
        clone = maxl.clone()
        for _ in range(3):
            clone.adapt(clone.loss(*batch()))
        clone.meta_loss(*batch()).backward()

    return once


LOOPS = {
    "forward": stepping,
    "finite-difference": lambda: stepping(method="finite-difference"),
    "unrolled": lambda: stepping(method="unrolled"),
    "micro-batches": lambda: stepping(micro_batches=2),
    "clone and adapt": adapting,
}


def held():
    """Tensors that are alive, and the elements in them."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(tensors), sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("name", LOOPS)
def test_memory_is_flat_over_a_thousand_iterations(name):
    once = LOOPS[name]()
    for _ in range(5):
        once()
    before = held()
    gc.freeze()  # what other tests have left behind is not counted, and not collected meanwhile
    try:
        for _ in range(1000 if name in ("forward", "clone and adapt") else 100):
            once()
        gc.collect()
        left = len(gc.get_objects())
    finally:
        gc.unfreeze()
    assert held() == before
    assert left < 1000


def test_graphs_are_freed_without_the_garbage_collector():
    once = stepping()
    once()
    gc.collect()
    gc.disable()
    try:
        counts = [once() and sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) for _ in range(6)]
    finally:
        gc.enable()
    assert all(later <= earlier for earlier, later in itertools.pairwise(counts[1:]))
