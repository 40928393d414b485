"""Small learners, data and runs for the tests of what is measured."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import MAXL, fit

PSI = [2, 3, 1]


def learner(*layers, **options):
    torch.manual_seed(0)
    return MAXL(nn.Sequential(nn.Linear(8, 16), *layers, nn.Tanh(), nn.Linear(16, 3)), PSI, **options)


def data(size=24, with_labels=False):
    numbers = torch.Generator().manual_seed(0)
    x, y = torch.randn(size, 8, generator=numbers), torch.arange(size) % 3
    return TensorDataset(x, y, torch.randint(0, 7, (size,), generator=numbers)) if with_labels else TensorDataset(x, y)


def loader(size=24, with_labels=False):
    return DataLoader(data(size, with_labels), batch_size=6)


def run(maxl, loader, epochs=2, **options):
    return fit(maxl, loader, epochs, seed=0, progress=False, **options)


LABELS = {
    "auxiliary_accuracy",
    "label_entropy",
    "relative_label_entropy",
    "relative_label_entropy_per_class",
    "mean_label_entropy",
    "use",
    "sub_classes_per_class",
}
