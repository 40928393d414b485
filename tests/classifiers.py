"""Small classifiers, batches and hypergradients for the tests of how these are computed."""

import torch
from torch import nn

from maxl_l2l import MAXL

PSI = [3, 4]


def hypergradient(maxl, x, y, **options):
    maxl.generator.zero_grad()
    torch.manual_seed(7)
    maxl.hypergradient(x, y, **options)
    return torch.cat([p.grad.flatten() for p in maxl.generator.parameters() if p.grad is not None])


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


OPTIMIZERS = {
    "none": None,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
}


def cnn():
    """BatchNorm and dropout, and smooth, so that central differences meet no kink."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(96, 2),
    )


def batch(size=10, seed=0, dtype=torch.float64):
    numbers = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 8, 8, generator=numbers, dtype=dtype)
    return x, torch.randint(0, 2, (size,), generator=numbers)


def trained(make_optimizer, dtype=torch.float64, **options):
    """A learner after two steps, so that the optimizer has state to follow."""
    torch.manual_seed(0)
    maxl = MAXL(cnn().to(dtype), PSI, **options)
    optimizer = None if make_optimizer is None else make_optimizer(maxl.network.parameters())
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
    for seed in range(2 if optimizer else 0):
        maxl.step(*batch(seed=seed, dtype=dtype), optimizer, generator_optimizer)
    maxl.generator.zero_grad()
    return maxl, optimizer
