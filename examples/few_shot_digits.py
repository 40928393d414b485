"""Few-shot digits with learn2learn: do generated labels in the inner loop help to learn a class from one image?

Tasks are drawn by learn2learn.data from scikit-learn's 1,797 real 8x8 digits: three classes, one image of each to learn
from and ten to be tested on. The initialisation is trained on tasks with the digits 0 to 5 and tested on tasks with 6
to 9. MAML and MetaSGD are trained with and without generated labels in their inner loop, on the same tasks and from the
same initialisation, seed by seed. Settings were chosen on the seeds 100 to 103: three inner steps rather than one, and
for each of the four variants the inner learning rate that was its best of 0.03, 0.1, 0.3 and 1.

Run: python examples/few_shot_digits.py
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import random
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from maxl_l2l import MAXL
from maxl_l2l.checkpoints import replace_file
from maxl_l2l.extras import missing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what learn2learn imports
    try:
        import learn2learn as l2l
        from learn2learn.data.transforms import KShots, LoadData, NWays, RemapLabels
    except ImportError as error:
        raise missing("learn2learn", "This example") from error

SETTINGS: dict[str, Any] = {
    "train_digits": [0, 1, 2, 3, 4, 5],
    "test_digits": [6, 7, 8, 9],
    "ways": 3,
    "shots": 1,
    "queries": 10,  # a class
    "psi": [5, 5, 5],
    "inner_steps": 3,
    "inner_lr": {"MAML": {"none": 1.0, "generated": 0.3}, "MetaSGD": {"none": 1.0, "generated": 0.1}},
    "meta_lr": 0.001,  # Adam
    "tasks_an_iteration": 4,
}
VARIANTS = [(algorithm, labels) for algorithm in ("MAML", "MetaSGD") for labels in ("none", "generated")]


def taskset(digits: list[int]) -> Any:
    """An endless supply of tasks with some of the digits, drawn by Python's random numbers."""
    data = load_digits()
    chosen = np.isin(data.target, digits)
    images = torch.tensor(data.images[chosen] / 16, dtype=torch.float32).unsqueeze(1)
    dataset = l2l.data.MetaDataset(TensorDataset(images, torch.tensor(data.target[chosen])))
    shots = KShots(dataset, SETTINGS["shots"] + SETTINGS["queries"])
    return l2l.data.Taskset(dataset, [NWays(dataset, SETTINGS["ways"]), shots, LoadData(dataset), RemapLabels(dataset)])


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, SETTINGS["ways"]),
    )


class FewShot:
    """One of the four variants: a learner of learn2learn, and the loss that it adapts to."""

    def __init__(self, algorithm: str, labels: str, inner_lr: float) -> None:
        # gamma=0 is cross-entropy, the loss of the variants without generated labels.
        self.maxl = MAXL(classifier(), SETTINGS["psi"], gamma=0.0)
        self.generated = labels == "generated"
        learner_class = getattr(l2l.algorithms, algorithm)
        self.learner = learner_class(self.maxl.network if self.generated else self.maxl.module, lr=inner_lr)

    def parameters(self) -> list[Tensor]:
        return [*self.learner.parameters(), *(self.maxl.generator.parameters() if self.generated else ())]

    def query(self, task: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The meta loss and the accuracy on a task's query images after adapting to its support images."""
        (x, y), (query_x, query_y) = l2l.data.partition_task(*task, shots=SETTINGS["shots"])
        adapted = self.learner.clone()
        for _ in range(SETTINGS["inner_steps"]):
            adapted.adapt(self.maxl.loss(x, y, network=adapted) if self.generated else F.cross_entropy(adapted(x), y))
        if self.generated:
            loss = self.maxl.meta_loss(query_x, query_y, network=adapted)
            logits = adapted(query_x)[0]
        else:
            logits = adapted(query_x)
            loss = F.cross_entropy(logits, query_y)
        return loss, (logits.argmax(dim=1) == query_y).float().mean()


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one variant; returns its accuracy on tasks with digits it has never seen."""
    torch.set_num_threads(1)
    random.seed(job["seed"])
    train_tasks, held_out = taskset(SETTINGS["train_digits"]), taskset(SETTINGS["test_digits"])
    test_tasks = [held_out.sample() for _ in range(job["test_tasks"])]
    torch.manual_seed(job["seed"])
    variant = FewShot(job["algorithm"], job["labels"], job["inner_lr"])
    optimizer = torch.optim.Adam(variant.parameters(), lr=SETTINGS["meta_lr"])
    for _ in range(job["iterations"]):
        optimizer.zero_grad()
        for _ in range(SETTINGS["tasks_an_iteration"]):
            (variant.query(train_tasks.sample())[0] / SETTINGS["tasks_an_iteration"]).backward()
        optimizer.step()
    accuracy = float(np.mean([variant.query(task)[1] for task in test_tasks]))
    return {**job, "test_accuracy": round(accuracy, 4)}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each variant: means over seeds, standard errors; gains are over no labels, paired by seed."""
    rows = []
    for algorithm, labels in VARIANTS:
        found, without = (
            [run for run in runs if (run["algorithm"], run["labels"]) == (algorithm, kind)] for kind in (labels, "none")
        )
        accuracy = np.array([run["test_accuracy"] for run in found])
        gain = accuracy - np.array([run["test_accuracy"] for run in without])
        numbers = {
            "accuracy": accuracy.mean(),
            "accuracy_se": standard_error(accuracy),
            "gain": gain.mean(),
            "gain_se": standard_error(gain),
        }
        rounded = {name: round(float(value), 4) for name, value in numbers.items()}
        rows.append({"algorithm": algorithm, "labels": labels, **rounded})
    return rows


def standard_error(values: Any) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def table(rows: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    lines = ["| Learner | Labels in its inner loop | Test accuracy | Gain, paired |", "|---|---|---|---|"]
    for row in rows:
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_se']:.1f} %"
        gain = "" if row["labels"] == "none" else f"{100 * row['gain']:+.1f} ± {100 * row['gain_se']:.1f} pp"
        lines.append(f"| {row['algorithm']} | {row['labels']} | {accuracy} | {gain} |")
    return "\n".join(lines)


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a file as a whole, so that a program that is killed leaves none that is half written."""
    text = json.dumps(result, indent=1) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def finished(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that an interrupted program has finished; none if there is no such file."""
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    runs: list[dict[str, Any]] = result.pop("runs")
    if result != about:
        raise SystemExit(f"{path} has runs of other settings or versions. Leave out --resume to begin again.")
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="how many seeds (default 8)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--iterations", type=int, default=300, help="of meta-training (default 300)")
    parser.add_argument("--test-tasks", type=int, default=200, help="default 200")
    parser.add_argument("--inner-lr", type=float, help="of all four variants (default: of each its own)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--out", type=Path, default=Path("out/few_shot.json"), help="default out/few_shot.json")
    parser.add_argument("--resume", action="store_true", help="go on with what an interrupted one has finished")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    jobs = [
        {
            "algorithm": algorithm,
            "labels": labels,
            "seed": seed,
            "inner_lr": arguments.inner_lr or SETTINGS["inner_lr"][algorithm][labels],
            "iterations": arguments.iterations,
            "test_tasks": arguments.test_tasks,
        }
        for seed in seeds
        for algorithm, labels in VARIANTS
    ]
    versions = {name: version(name) for name in ("maxl_l2l", "torch", "learn2learn")}
    about = {"settings": SETTINGS, "versions": {"python": platform.python_version(), **versions}}
    kept = arguments.out.with_suffix(".runs.json")
    runs = finished(kept, about) if arguments.resume else []
    left = [job for job in jobs if not any(job.items() <= run.items() for run in runs)]
    # Spawned, not forked: torch's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for run in pool.imap(train, left):
            runs.append(run)
            write(kept, {**about, "runs": runs})
    runs = [run for job in jobs for run in runs if job.items() <= run.items()]
    rows = summary(runs)
    write(arguments.out, {**about, "rows": rows, "runs": runs})
    kept.unlink(missing_ok=True)
    print(table(rows))
    print(f"\n{len(seeds)} seeds, mean ± standard error; written: {arguments.out}")


if __name__ == "__main__":
    main()
