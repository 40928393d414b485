"""Beyond images with one class each: per-pixel labels invented for a segmentation network.

Scenes of 24 x 24 pixels are composed from scikit-learn's real 8x8 digit images (shipped with it). Primary task, for
every pixel: background, part of a digit below five, or part of a digit from five on. AuxiliaryLabelGenerator is given a
small U-Net, a generator of soft labels per pixel and the usual losses: cross-entropy plus soft Dice.

Four sources of auxiliary labels get the same networks, scenes, batches and optimizers, seed by seed. The network's
settings were chosen for single-task training and the generator's for invented labels, on seeds 100 to 107: other
splits and scenes than those reported.

What came out (docs/segmentation.md): no gain. Invented labels are no better than single-task training, within the
error, nor than their control without a hypergradient; the true digits of each pixel do not help either.

Run: python examples/segmentation.py
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segmentation_figure import draw
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from maxl_l2l import (
    AuxiliaryLabelGenerator,
    EntropyLabels,
    GeneratedLabels,
    LabelSource,
    SingleTask,
    StepResult,
    entropy_loss,
    fit,
)
from maxl_l2l.checkpoints import replace_file

NUM_CLASSES, NUM_LABELS = 3, 8  # of the primary task; of those invented for each pixel
ENTROPY_WEIGHT = 0.2
SETTINGS: dict[str, Any] = {
    "canvas": 24,
    "noise": 0.1,  # standard deviation; ink is between 0 and 1
    "train_digits": 200,  # images that the training scenes are composed of; the other 1,597 make the test scenes
    "train_scenes": 30,
    "test_scenes": 150,
    "width": 16,
    "epochs": 60,
    "batch_size": 10,
    "lr": 0.1,  # SGD, to 0 along a cosine
    "momentum": 0.9,
    "generator_lr": 0.003,  # Adam
}


class GivenMaps(LabelSource):
    """A user-defined label source: given auxiliary classes for each pixel, the third element of each batch."""

    def network_step(
        self, maxl: AuxiliaryLabelGenerator, batch: Any, optimizer: torch.optim.Optimizer, **options: Any
    ) -> StepResult:
        x, y, labels = batch
        return maxl.network_step(x, y, optimizer, targets=labels, **options)


SOURCES: dict[str, LabelSource] = {
    "Single task": SingleTask(),
    "Given digits": GivenMaps(),
    "Entropy term alone": EntropyLabels(),
    "Invented labels": GeneratedLabels(),
}


def block(inputs: int, outputs: int) -> nn.Module:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A small U-Net on three scales: ``[N, inputs, H, W]`` to logits ``[N, outputs, H, W]``; 4 divides H and W."""

    def __init__(self, inputs: int, outputs: int, width: int = SETTINGS["width"]) -> None:
        super().__init__()
        self.fine, self.middle = block(inputs, width), block(width, 2 * width)
        self.coarse = block(2 * width, 4 * width)
        self.middle_up, self.fine_up = block(6 * width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        middle = self.middle_up(torch.cat([middle, F.interpolate(coarse, scale_factor=2)], dim=1))
        logits: Tensor = self.head(self.fine_up(torch.cat([fine, F.interpolate(middle, scale_factor=2)], dim=1)))
        return logits


class PixelLabels(nn.Module):
    """The generator: invents soft labels ``[N, 8, H, W]`` from a scene ``[N, 1, H, W]`` and its truth ``[N, H, W]``.

    The truth is an input beside the scene, so that labels can separate edges from insides, and extend over class
    borders. Those of LabelGenerator can't, as they are sub-classes of each primary class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = UNet(1 + NUM_CLASSES, NUM_LABELS)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        truth = F.one_hot(y, NUM_CLASSES).movedim(-1, 1)
        logits: Tensor = self.body(torch.cat([x, truth], dim=1))
        return logits.softmax(dim=1)


def cross_entropy_and_dice(logits: Tensor, y: Tensor) -> Tensor:
    """The primary loss, one value for each scene: ``[N, 3, H, W]`` and ``[N, H, W]`` to ``[N]``."""
    probs, truth = logits.softmax(dim=1), F.one_hot(y, NUM_CLASSES).movedim(-1, 1)
    dice = (2 * (probs * truth).sum(dim=(2, 3)) + 1) / ((probs + truth).sum(dim=(2, 3)) + 1)
    return F.cross_entropy(logits, y, reduction="none").mean(dim=(1, 2)) + 1 - dice.mean(dim=1)


def spread(labels: Tensor) -> Tensor:
    """The regulariser: keeps the invented labels ``[N, K, H, W]`` from collapsing into one."""
    return ENTROPY_WEIGHT * entropy_loss(labels)


def mean_iou(predicted: Tensor, truth: Tensor, num_classes: int = NUM_CLASSES) -> float:
    """Intersection over union of each class over all pixels, and the mean over classes, background included."""
    hits = [((predicted == c) & (truth == c)).sum() for c in range(num_classes)]
    either = [((predicted == c) | (truth == c)).sum() for c in range(num_classes)]
    return float(torch.stack(hits).div(torch.stack(either)).mean())


def scenes(images: Any, digits: Any, count: int, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
    """Scenes ``[count, 1, 24, 24]`` of three to five digits each, and per pixel 0 or 1 + its digit."""
    size = SETTINGS["canvas"]
    x, maps = np.zeros((count, size, size)), np.zeros((count, size, size), dtype=np.int64)
    for scene in range(count):
        for index in random.choice(len(images), random.randint(3, 6)):
            top, left = random.randint(0, size - 7, 2)
            place, ink = np.s_[scene, top : top + 8, left : left + 8], images[index] > 0.25
            x[place][ink], maps[place][ink] = images[index][ink], 1 + digits[index]
    x += SETTINGS["noise"] * random.randn(*x.shape)
    return torch.tensor(x, dtype=torch.float32).unsqueeze(1), torch.tensor(maps)


def split(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training scenes and maps, test scenes and maps, of disjoint digit images."""
    data, random = load_digits(), np.random.RandomState(seed)
    train, test = np.split(random.permutation(len(data.images)), [SETTINGS["train_digits"]])
    images = data.images / 16
    return (
        *scenes(images[train], data.target[train], SETTINGS["train_scenes"], random),
        *scenes(images[test], data.target[test], SETTINGS["test_scenes"], random),
    )


def primary(maps: Tensor) -> Tensor:
    """0 for background, 1 for digits below five, 2 for the others."""
    return (maps > 0).long() + (maps > 5).long()


def train(job: tuple[str, int, argparse.Namespace]) -> dict[str, Any]:
    """Trains one network with one label source; returns what the table and the figure need."""
    name, seed, chosen = job
    torch.set_num_threads(1)
    x, maps, test_x, test_maps = split(seed)
    torch.manual_seed(seed)
    learner = AuxiliaryLabelGenerator(
        UNet(1, NUM_CLASSES),
        PixelLabels(),
        11 if name == "Given digits" else NUM_LABELS,
        primary_loss=cross_entropy_and_dice,
        auxiliary_loss=F.cross_entropy,  # takes probabilities as targets, too
        regularizer=spread,
    )
    optimizer = torch.optim.SGD(learner.network.parameters(), SETTINGS["lr"], SETTINGS["momentum"])
    data, order = TensorDataset(x, primary(maps), maps), torch.Generator().manual_seed(seed)
    history = fit(
        learner,
        DataLoader(data, SETTINGS["batch_size"], shuffle=True, generator=order),
        chosen.epochs,
        optimizer=optimizer,
        generator_optimizer=torch.optim.Adam(learner.generator.parameters(), SETTINGS["generator_lr"]),
        schedulers=[torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.epochs)],
        source=SOURCES[name],
        seed=seed,
        progress=False,
        checkpoint=chosen.out / "checkpoints" / f"segmentation-{name.lower().replace(' ', '-')}-{seed}.pt",
        checkpoint_minutes=1,  # and at the end, which most runs reach sooner
        resume=chosen.resume,
        settings={name: value for name, value in SETTINGS.items() if name not in ("epochs", "lr", "generator_lr")},
    )
    run: dict[str, Any] = {"source": name, "seed": seed, "seconds": round(sum(history["seconds"]), 2)}
    learner.eval()
    truth = primary(test_maps)
    with torch.no_grad():
        predicted, labels = learner(test_x).argmax(dim=1), learner.generator(test_x, truth).argmax(dim=1)
    run["mean_iou"] = mean_iou(predicted, truth)
    run["shown"] = [part[:4].numpy() for part in (test_x[:, 0], truth, predicted, labels)]
    return run


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each source: means over seeds with standard errors; gains are paired by seed."""
    scores = {name: np.array([run["mean_iou"] for run in runs if run["source"] == name]) for name in SOURCES}
    rows = []
    for name, found in scores.items():
        row: dict[str, Any] = {"source": name, "mean_iou": mean_and_error(found)}
        row["gain"] = mean_and_error(found - scores["Single task"])
        row["gain_over_entropy"] = mean_and_error(found - scores["Entropy term alone"])
        row["seconds"] = round(float(np.mean([run["seconds"] for run in runs if run["source"] == name])), 2)
        rows.append(row)
    return rows


def mean_and_error(values: Any) -> list[float]:
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return [round(float(values.mean()), 4), round(float(error), 4)]


def table(rows: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| Label source | Mean IoU | Gain, paired | Over the entropy term alone | Seconds a run |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        cells = [row["source"], f"{100 * row['mean_iou'][0]:.2f} ± {100 * row['mean_iou'][1]:.2f} %"]
        cells.append("" if row["source"] == "Single task" else points(row["gain"]))
        cells.append(points(row["gain_over_entropy"]) if row["source"] == "Invented labels" else "")
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.1f} |")
    return "\n".join(lines)


def points(gain: list[float]) -> str:
    return f"{100 * gain[0]:+.2f} ± {100 * gain[1]:.2f} pp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="how many seeds (default 16)")
    parser.add_argument("--epochs", type=int, default=SETTINGS["epochs"], help=f"default {SETTINGS['epochs']}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for segmentation.json and .png")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoints in that folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    jobs = [(name, seed, arguments) for seed in range(arguments.seeds) for name in SOURCES]
    # Spawned, not forked: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        runs = list(tqdm(pool.imap(train, jobs), total=len(jobs), desc="training", unit="run"))
    shown = {run["source"]: run.pop("shown") for run in reversed(runs)}  # of the first seed, which comes last
    rows = summary(runs)
    names = {name: version(name) for name in ("torch", "scikit-learn", "maxl_l2l")}
    result = {
        "settings": {
            **SETTINGS,
            "labels": NUM_LABELS,
            "entropy_weight": ENTROPY_WEIGHT,
            "epochs": arguments.epochs,
            "seeds": arguments.seeds,
        },
        "versions": {"python": platform.python_version(), **names},
        "summary": rows,
        "runs": runs,
    }
    text = json.dumps(result, indent=1) + "\n"
    replace_file(arguments.out / "segmentation.json", lambda file: file.write(text.encode()))
    columns = [*shown["Single task"][:3], *shown["Invented labels"][2:]]
    draw(rows, runs, columns, arguments.out / "segmentation.png")
    print(f"\nTest scenes, {arguments.seeds} seeds, mean ± standard error; background counts in the mean IoU:\n")
    print(table(rows))
    print(f"\nWritten: {arguments.out}/segmentation.json, {arguments.out}/segmentation.png")


if __name__ == "__main__":
    main()
