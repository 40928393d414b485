"""A small classifier in a learner, a batch, and optimizers for both networks."""

import torch
from torch import nn

PSI = [2, 3]


def mlp(outputs=2):
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, outputs))


def batch(size=6):
    return torch.randn(size, 8), torch.randint(0, 2, (size,))


def optimizers(maxl):
    return torch.optim.SGD(maxl.network.parameters(), lr=0.1), torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
