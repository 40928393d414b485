"""Six label sources on real 8x8 digit images: does an invented auxiliary task make a classifier generalise better?

Primary task: is the digit below five? psi = [5, 5]; human labels are the ten digits. 200 of scikit-learn's 1,797
images train a small CNN, the others test it. Every source gets the same networks, splits, batches and optimizers, seed
by seed. Settings were chosen, for MAXL, on seeds 100 to 115: other splits than those reported.

Run: python examples/digits.py     (make demo does, after installing what it needs)
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_figure import draw
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from maxl_l2l import (
    MAXL,
    EntropyLabels,
    GeneratedLabels,
    History,
    HumanLabels,
    LabelSource,
    Metrics,
    RandomLabels,
    SingleTask,
    fit,
    report,
)
from maxl_l2l.checkpoints import replace_file
from maxl_l2l.kmeans import KMeansLabels

PSI = [5, 5]
SETTINGS: dict[str, Any] = {
    "train_images": 200,
    "epochs": 30,
    "batch_size": 25,
    "lr": 0.01,  # SGD
    "momentum": 0.9,
    "generator_lr": 0.003,  # Adam
}
FEW = 8
"""Seeds that a comparison needs at least."""
TITLES = {
    "single": "Single task",
    "random": "Random labels",
    "kmeans": "K-means labels",
    "human": "Human labels",
    "entropy": "Entropy term alone",
    "maxl": "MAXL",
}


def sources(seed: int, digits: Tensor) -> dict[str, LabelSource]:
    return {
        "single": SingleTask(),
        "random": RandomLabels(seed),
        "kmeans": KMeansLabels(seed),
        "human": HumanLabels(digits),
        "entropy": EntropyLabels(),
        "maxl": GeneratedLabels(),
    }


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


def split(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images ``[200, 1, 8, 8]`` and digits, test images ``[1597, 1, 8, 8]`` and digits."""
    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    digits = torch.tensor(data.target)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(images)))
    train, test = order.split([SETTINGS["train_images"], len(images) - SETTINGS["train_images"]])
    return images[train], digits[train], images[test], digits[test]


def train(job: tuple[str, int, argparse.Namespace]) -> dict[str, Any]:
    """Trains one classifier with one label source; returns what the table, the figure and the report need."""
    name, seed, chosen = job
    torch.set_num_threads(1)
    x, digits, test_x, test_digits = split(seed)
    y, test_y = (digits >= 5).long(), (test_digits >= 5).long()
    source = sources(seed, digits)[name]
    torch.manual_seed(seed)
    maxl = MAXL(classifier(), PSI, gamma=chosen.gamma)
    dataset = source.label(TensorDataset(x, y, digits), PSI)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size=SETTINGS["batch_size"], shuffle=True, generator=order)
    history = fit(
        maxl,
        loader,
        chosen.epochs,
        optimizer=torch.optim.SGD(maxl.network.parameters(), lr=chosen.lr, momentum=SETTINGS["momentum"]),
        generator_optimizer=torch.optim.Adam(maxl.generator.parameters(), lr=SETTINGS["generator_lr"]),
        source=source,
        test_loader=[(test_x, test_y)],
        seed=seed,
        progress=False,
        metrics=Metrics(patience=None),  # the report describes labels that have collapsed
        checkpoint=chosen.out / "checkpoints" / f"{name}-{seed}.pt",
        checkpoint_minutes=1,  # and at the end, which most runs reach sooner
        resume=chosen.resume,
        settings={name: SETTINGS[name] for name in ("batch_size", "momentum")},
    )
    run: dict[str, Any] = {"source": name, "seed": seed, "history": history}
    run["seconds"] = sum(len(loader) / speed for speed in history["steps_per_second"])  # without evaluation
    run["test_accuracy"] = history["test_accuracy"][-1]
    if name == "single":
        return run
    if source.trains_generator:
        maxl.eval()
        with torch.no_grad():
            labels = maxl.generator(x, y).argmax(dim=1)
            run["test_labels"] = maxl.generator(test_x, test_y).numpy()
        run["learner"] = maxl
    else:
        labels = torch.stack([dataset[index][2] for index in range(len(x))])
    run["sub_classes"] = len(labels.unique())
    run["nmi"] = float(normalized_mutual_info_score(digits, labels))
    return run


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each source: means over seeds, with standard errors; differences are paired by seed."""
    by_source = {name: [run for run in runs if run["source"] == name] for name in TITLES}
    single = np.array([run["test_accuracy"] for run in by_source["single"]])
    rows = []
    for name, found in by_source.items():
        accuracy = np.array([run["test_accuracy"] for run in found])
        row = {
            "source": name,
            "accuracy": accuracy.mean(),
            "accuracy_se": standard_error(accuracy),
            "difference": (accuracy - single).mean(),
            "difference_se": standard_error(accuracy - single),
            "seconds": np.mean([run["seconds"] for run in found]),
        }
        for key in ("sub_classes", "nmi"):
            row[key] = np.mean([run[key] for run in found]) if key in found[0] else None
        rows.append({key: round(float(v), 4) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def meta_gradient_gain(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """What MAXL gains over its control without a hypergradient: mean and standard error, paired by seed."""
    accuracies = [[run["test_accuracy"] for run in runs if run["source"] == name] for name in ("entropy", "maxl")]
    difference = np.subtract(accuracies[1], accuracies[0])
    return round(float(difference.mean()), 4), round(standard_error(difference), 4)


def standard_error(values: Any) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def table(rows: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    titles = ["Label source", "Test accuracy", "Gain, paired", "Sub-classes in use", "NMI with digits", "Seconds a run"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        gain = f"{100 * row['difference']:+.2f} ± {100 * row['difference_se']:.2f} pp"
        cells = [
            TITLES[row["source"]],
            f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_se']:.2f} %",
            "" if row["source"] == "single" else gain,
            "" if row["sub_classes"] is None else f"{row['sub_classes']:.1f} of {sum(PSI)}",
            "" if row["nmi"] is None else f"{row['nmi']:.2f}",
            f"{row['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_report(folder: Path, seed: int, histories: list[History], learner: MAXL) -> Path:
    """Writes the report on all runs, and on one learner and the test images of its seed."""
    _, _, images, digits = split(seed)
    return report(
        folder,
        histories,
        learner,
        [(images, (digits >= 5).long(), digits)],
        class_names=["below five", "five or more"],
        human_names=[str(digit) for digit in range(10)],
        to_images=lambda x: 1 - x,  # dark on light
        title="Is the digit below five? Six sources of auxiliary labels",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24, help="how many seeds (default 24)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--epochs", type=int, default=SETTINGS["epochs"], help=f"default {SETTINGS['epochs']}")
    parser.add_argument("--lr", type=float, default=SETTINGS["lr"], help=f"of the network, default {SETTINGS['lr']}")
    parser.add_argument("--gamma", type=float, default=2.0, help="of the focal loss; 0 is cross-entropy (default 2)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for digits.json, digits.png, report")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoints in that folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [(name, seed, arguments) for seed in seeds for name in TITLES]
    started = time.perf_counter()
    # Spawned, not forked: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        runs = list(tqdm(pool.imap(train, jobs), total=len(jobs), desc="training", unit="run"))
    labels, histories, learners = (
        [run.pop(key, None) for run in runs] for key in ("test_labels", "history", "learner")
    )
    first_maxl = next(number for number, run in enumerate(runs) if run["source"] == "maxl")
    rows = summary(runs)
    result = {
        "settings": {
            **SETTINGS,
            "epochs": arguments.epochs,
            "lr": arguments.lr,
            "gamma": arguments.gamma,
            "psi": PSI,
            "seeds": list(seeds),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "maxl_l2l": version("maxl_l2l"),
        },
        "summary": rows,
        "maxl_over_entropy": meta_gradient_gain(runs),
        "runs": runs,
    }
    text = json.dumps(result, indent=1) + "\n"
    replace_file(arguments.out / "digits.json", lambda file: file.write(text.encode()))
    draw(rows, runs, TITLES, split(seeds[0])[2].squeeze(1).numpy(), labels[first_maxl], arguments.out / "digits.png")
    print(f"\nIs the digit below five? {SETTINGS['train_images']} training images, {len(seeds)} seeds, mean ± SE:\n")
    print(table(rows))
    gain, error = meta_gradient_gain(runs)
    print(
        f"\nThe meta gradient earns {100 * gain:+.2f} ± {100 * error:.2f} pp of it: MAXL less the entropy term alone."
    )
    if len(seeds) < FEW:
        print(f"A comparison of {len(seeds)} seeds is too small to judge by: the errors themselves are uncertain.")
    print(f"\n{time.perf_counter() - started:.0f} s; written: {arguments.out}/digits.json, {arguments.out}/digits.png")
    try:
        print(f"and a report: {write_report(arguments.out / 'report', seeds[0], histories, learners[first_maxl])}")
    except Exception as error:  # the results are safe, and the report can be made again
        print(f"No report: {error!r}", file=sys.stderr)


if __name__ == "__main__":
    main()
