"""Data-parallel training: each process takes its part of every batch, and all compute what one process would.

The digits of examples/digits.py (is it below five? 200 images train, 1,597 test) in as many processes as torchrun
starts. What is new against training in one process: four lines, marked below. The script prints the accuracy of rank 0,
which is everyone's, and checks that the ranks have equal parameters and buffers.

Run: torchrun --nproc-per-node 2 examples/distributed.py
On CPUs the processes talk by gloo; with a GPU for each of them by NCCL.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from maxl_l2l import MAXL, evaluate, fit

PSI = [5, 5]
TRAIN_IMAGES, BATCH_SIZE = 200, 20


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 2),
    )


def datasets(seed: int) -> tuple[TensorDataset, TensorDataset]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)[order]
    labels = torch.tensor(data.target >= 5).long()[order]
    train, test = slice(TRAIN_IMAGES), slice(TRAIN_IMAGES, None)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def train(epochs: int, seed: int, device: torch.device) -> tuple[MAXL, float]:
    """Trains in all processes of the default group; returns this one's learner and the test accuracy."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(seed)
    # 1. BatchNorm over the whole batch. Without this line each process normalises its own part.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier())
    maxl = MAXL(model.to(device), PSI)
    # 2. From here on the processes train together.
    maxl.distribute()
    train_set, test_set = datasets(seed)
    # 3. Each process loads its part of the training set: the whole batch has BATCH_SIZE samples.
    sampler: DistributedSampler[int] = DistributedSampler(train_set, size, rank, seed=seed)
    loader = DataLoader(train_set, batch_size=BATCH_SIZE // size, sampler=sampler)
    fit(
        maxl,
        loader,
        epochs,
        optimizer=torch.optim.SGD(maxl.network.parameters(), lr=0.01, momentum=0.9),
        generator_optimizer=torch.optim.Adam(maxl.generator.parameters(), lr=0.003),
        progress=False,
    )
    own_part = torch.utils.data.Subset(test_set, range(rank, len(test_set), size))
    return maxl, evaluate(maxl, DataLoader(own_part, batch_size=500))["accuracy"]


def in_step(maxl: MAXL) -> bool:
    """Whether all processes hold the same parameters and buffers, bit by bit."""
    mine = torch.cat([tensor.double().flatten() for tensor in maxl.state_dict().values()])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return all(torch.equal(mine, other) for other in everyone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # 4. torchrun gives each process its rank; a process that waits longer than the timeout stops with a message.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=5))
    try:
        maxl, accuracy = train(arguments.epochs, arguments.seed, device)
        agree = in_step(maxl)
        if dist.get_rank() == 0:
            print(f"{dist.get_world_size()} processes, test accuracy {100 * accuracy:.2f} %")
            print(f"parameters and buffers are the same in all processes: {agree}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
