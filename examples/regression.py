"""Beyond classes: a generator that invents real-valued auxiliary targets for a regression task.

Primary task: a year's progression of diabetes from ten measurements, scikit-learn's 442 patients (shipped with it).
AuxiliaryLabelGenerator is given a model, a generator of three targets a patient and a loss for each task; the rest is
the same as for classes: the hypergradient teaches the generator which targets help.

Run: python examples/regression.py
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import AuxiliaryLabelGenerator, GeneratedLabels, LabelSource, SingleTask, evaluate, fit

TRAIN_PATIENTS, NUM_TARGETS = 60, 3


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


class TargetGenerator(nn.Module):
    """Invents targets in (-1, 1) from a patient's measurements and progression: ``[N, 10], [N, 1]`` to ``[N, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(11, NUM_TARGETS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.body(torch.cat([x, y], dim=1)))


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """One value for each sample: ``[N, K]`` to ``[N]``."""
    return (outputs - targets).square().mean(dim=1)


def spread(targets: Tensor) -> Tensor:
    """Keeps the targets from collapsing to a constant, as the entropy term does for classes."""
    return -0.02 * targets.var(dim=0).mean()


def test_error(source: LabelSource, seed: int, epochs: int) -> float:
    """Mean squared test error, in units of the target's variance."""
    data = load_diabetes()
    x = torch.tensor(data.data / data.data.std(axis=0), dtype=torch.float32)
    y = torch.tensor((data.target - data.target.mean()) / data.target.std(), dtype=torch.float32).unsqueeze(1)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(x)))
    train, test = order[:TRAIN_PATIENTS], order[TRAIN_PATIENTS:]
    torch.manual_seed(seed)
    learner = AuxiliaryLabelGenerator(
        mlp(10, 1),
        TargetGenerator(),
        NUM_TARGETS,
        primary_loss=squared_error,
        auxiliary_loss=squared_error,
        regularizer=spread,
    )
    fit(
        learner,
        DataLoader(TensorDataset(x[train], y[train]), batch_size=20, shuffle=True),
        epochs,
        optimizer=torch.optim.SGD(learner.network.parameters(), lr=0.01, momentum=0.9),
        generator_optimizer=torch.optim.Adam(learner.generator.parameters(), lr=0.003),
        source=source,
        seed=seed,
        progress=False,
    )
    return evaluate(learner, DataLoader(TensorDataset(x[test], y[test]), batch_size=len(test)))["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [
        [test_error(source, seed, arguments.epochs) for source in (SingleTask(), GeneratedLabels())]
        for seed in range(arguments.seeds)
    ]
    errors = np.array(runs)
    difference = errors[:, 1] - errors[:, 0]
    standard_error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else float("nan")
    print(f"Mean squared test error over {arguments.seeds} seeds (1 is what predicting the mean gives):")
    print(f"  single task        {errors[:, 0].mean():.3f}")
    print(f"  invented targets   {errors[:, 1].mean():.3f}")
    print(f"  paired difference  {difference.mean():+.3f} ± {standard_error:.3f}")


if __name__ == "__main__":
    main()
