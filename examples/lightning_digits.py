"""Lightning's Trainer on real 8x8 digit images, without invented labels and with them: is the digit below five?

A LightningDataModule, a ModelCheckpoint that keeps the best epoch, fit and test, as for any LightningModule. 200 of
scikit-learn's 1,797 images train a small CNN, 200 choose the epoch, the others test it.

Run: python examples/lightning_digits.py     (pip install 'maxl_l2l[lightning]' scikit-learn)
"""

from __future__ import annotations

import argparse
import logging
import warnings
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from maxl_l2l import MAXL, GeneratedLabels, LabelSource, SingleTask
from maxl_l2l.extras import missing

try:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.utilities import rank_zero_only

    from maxl_l2l.lightning import LightningMAXL
except ImportError as error:
    raise missing("lightning", "This example") from error

PSI = [5, 5]
SIZES = [200, 200, 1397]
BATCH_SIZE = 20  # of all devices together


class Digits(L.LightningDataModule):
    """Is the digit below five? In parts for training, validation and test."""

    def __init__(self, seed: int, batch_size: int) -> None:
        super().__init__()
        self.seed, self.batch_size = seed, batch_size

    def setup(self, stage: str) -> None:
        images, digits = load_digits(return_X_y=True)
        x, y = torch.as_tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.as_tensor(digits >= 5).long()
        self.parts = random_split(TensorDataset(x, y), SIZES, torch.Generator().manual_seed(self.seed))

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.parts[0], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.parts[1], 200)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.parts[2], 1397)


def classifier() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 2)),
    )


def train(source: LabelSource, seed: int, settings: argparse.Namespace) -> float:
    """Returns the test accuracy of the epoch that was best in validation."""
    L.seed_everything(seed, verbose=False)
    module = LightningMAXL(
        MAXL(classifier(), PSI),
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        generator_optimizer=partial(torch.optim.Adam, lr=0.003),
        source=source,
    )
    folder = settings.out / f"{type(source).__name__}-{seed}"
    trainer = L.Trainer(
        max_epochs=settings.epochs,
        accelerator="cpu",
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        callbacks=[ModelCheckpoint(folder, monitor="val_accuracy", mode="max")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits(seed, BATCH_SIZE // settings.devices)
    trainer.fit(module, data)
    return float(trainer.test(module, data, ckpt_path="best", verbose=False)[0]["test_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    parser.add_argument("--epochs", type=int, default=20, help="default 20")
    parser.add_argument("--devices", type=int, default=1, help="processes that share each batch (default 1)")
    parser.add_argument("--out", type=Path, default=Path("out/lightning"), help="folder for the checkpoints")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # its advice on loaders and folders
    say = rank_zero_only(partial(print, flush=True))
    say("seed  without    with")
    found = []
    for seed in range(settings.seeds):
        found.append([train(source, seed, settings) for source in (SingleTask(), GeneratedLabels())])
        say(f"{seed:4}  {found[-1][0]:7.2%}  {found[-1][1]:7.2%}")
    without, with_labels = torch.tensor(found).mean(dim=0).tolist()
    say(f"mean  {without:7.2%}  {with_labels:7.2%}  test accuracy without and with invented labels")


if __name__ == "__main__":
    main()
