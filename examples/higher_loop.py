"""The generator learns through several inner steps of SGD and of Adam, which higher unrolls around maxl.network.

Is one of scikit-learn's 8x8 digits below five? In each iteration the network takes three virtual steps on generated
labels, the loss on a fourth batch trains the generator through all of them, and the network then takes its real step.
higher has no AdamW: there maxl.step follows the optimizer itself, for one inner step.

Run: python examples/higher_loop.py
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import MAXL, evaluate
from maxl_l2l.extras import missing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what higher imports
    try:
        import higher
    except ImportError as error:
        raise missing("higher", "This example") from error

Batch = tuple[Tensor, Tensor]

PSI = [5, 5]
TRAIN_IMAGES, BATCH_SIZE, INNER_STEPS = 200, 25, 3


def split(seed: int) -> tuple[TensorDataset, TensorDataset]:
    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32)
    below_five = torch.tensor(data.target < 5).long()
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(images)))
    train, test = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    return TensorDataset(images[train], below_five[train]), TensorDataset(images[test], below_five[test])


def endless(data: TensorDataset, seed: int) -> Iterator[Batch]:
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(seed))
    while True:
        yield from ((x, y) for x, y in loader)


def step_through_higher(
    maxl: MAXL, batches: Iterator[Batch], optimizer: Optimizer, generator_optimizer: Optimizer
) -> float:
    """One iteration of both networks; returns the meta loss after the virtual steps."""
    first, *others, query = (next(batches) for _ in range(INNER_STEPS + 1))
    with higher.innerloop_ctx(maxl.network, optimizer) as (network, inner):
        for x, y in (first, *others):
            inner.step(maxl.loss(x, y, network=network))
        meta_loss = maxl.meta_loss(*query, network=network)
        generator_optimizer.zero_grad()
        meta_loss.backward()  # reaches the generator alone: higher has copied the network's parameters
    generator_optimizer.step()
    maxl.network_step(*first, optimizer)
    return meta_loss.item()


def step_without_higher(
    maxl: MAXL, batches: Iterator[Batch], optimizer: Optimizer, generator_optimizer: Optimizer
) -> float:
    batch, query = next(batches), next(batches)
    result = maxl.step(*batch, optimizer, generator_optimizer, meta_batch=query)
    assert result.meta_loss is not None
    assert result.regularizer is not None
    return (result.meta_loss + result.regularizer).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = split(arguments.seed)
    print(f"{'inner loop':<26} first meta loss   last   test accuracy")
    for title, optimizer_class, lr, step in (
        (f"SGD, higher, {INNER_STEPS} steps", SGD, 0.3, step_through_higher),
        (f"Adam, higher, {INNER_STEPS} steps", Adam, 0.003, step_through_higher),
        ("AdamW, maxl.step, 1 step", AdamW, 0.003, step_without_higher),
    ):
        torch.manual_seed(arguments.seed)
        maxl = MAXL(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)), PSI)
        optimizer = optimizer_class(maxl.network.parameters(), lr=lr)
        generator_optimizer = Adam(maxl.generator.parameters(), lr=0.003)
        batches = endless(train, arguments.seed)
        losses = [step(maxl, batches, optimizer, generator_optimizer) for _ in range(arguments.iterations)]
        accuracy = evaluate(maxl, DataLoader(test, batch_size=len(test)))["accuracy"]
        first, last = np.mean(losses[:20]), np.mean(losses[-20:])
        print(f"{title:<26} {first:15.3f} {last:6.3f}   {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
