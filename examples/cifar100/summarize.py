"""Turns a folder of runs into a table and a figure: means over seeds, standard errors, gains paired by seed.

    python -m examples.cifar100.summarize out/small --out docs/cifar100-small

writes docs/cifar100-small.json and docs/cifar100-small.png and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from maxl_l2l.checkpoints import replace_file

from .figure import draw
from .job import differences, flat
from .markdown import markdown

TITLES = {
    "single": "Single task",
    "random": "Random labels",
    "kmeans": "K-means labels",
    "human": "Human labels",
    "entropy": "Entropy term alone",
    "maxl": "MAXL",
    "weighted": "MAXL, weighted",
}
COLUMNS = (
    "Auxiliary labels",
    "Seeds",
    "Test accuracy",
    "Gain, paired",
    "Over the entropy term alone",
    "Label entropy, nats",
    "Sub-classes in use",
    "NMI with human labels, within classes",
    "Minutes a run",
)
NEEDED = ("label", "source", "seed", "accuracy", "seconds", "settings", "environment", "epochs")
OWN = ("label_source", "seed")
SINGLE, CONTROL = "single", "entropy"


def read(folder: Path) -> list[dict[str, Any]]:
    """Reads the results of a folder, by label and seed.

    Raises:
        ValueError: There are none, or a file is something else.
    """
    runs = []
    for path in sorted(folder.glob("*.json")):
        try:
            run = json.loads(path.read_text())
            runs.append({name: run[name] for name in NEEDED} | run)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"`folder` must hold results of examples.cifar100.train alone, found {path}, which is none ({error}). "
                "Move it elsewhere."
            ) from error
    if not runs:
        raise ValueError(f"`folder` must hold results of examples.cifar100.train, found none in {folder}.")
    check_alike(runs)
    order = [*TITLES, *dict.fromkeys(run["label"] for run in runs)]
    return sorted(runs, key=lambda run: (order.index(run["label"]), run["seed"]))


def check_alike(runs: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError unless the runs of each label differ in nothing but their seed."""
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        usual = first.setdefault(run["label"], run)
        if differing := differences(comparable(run["settings"]), comparable(usual["settings"])):
            values = ", ".join(f"{name} {wanted} and {found}" for name, (found, wanted) in differing.items())
            raise ValueError(
                f"`folder` must hold runs of {run['label']} that differ in their seed alone, found {values} in "
                f"those of seeds {usual['seed']} and {run['seed']}. Move one elsewhere, or give it its own --label."
            )


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each label, accuracies as fractions; two numbers are a mean and its standard error."""
    by_label: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_label.setdefault(run["label"], {})[run["seed"]] = run
    usual = usual_settings(runs)
    rows = []
    for label, found in by_label.items():
        first = next(iter(found.values()))
        row: dict[str, Any] = {"label": label, "source": first["source"], "seeds": list(found)}
        row["accuracy"] = mean_and_error([run["accuracy"] for run in found.values()])
        for name, other in (("gain", SINGLE), ("gain_over_control", CONTROL)):
            row[name] = None if label == other else paired(found, by_label.get(other, {}))
        for name in ("entropy", "sub_classes", "nmi", "weight_sd"):
            values = [run["labels"][name] for run in found.values() if name in run.get("labels", {})]
            row[name] = round(statistics.mean(values), 4) if values else None
        row["minutes"] = round(statistics.mean(run["seconds"] for run in found.values()) / 60, 2)
        settings = comparable(first["settings"])
        row["special"] = {name: value for name, value in settings.items() if name in usual and value != usual[name]}
        rows.append(row)
    return rows


def usual_settings(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the runs that are called by their source; the generator's are of the first that has one."""
    usual: dict[str, Any] = {}
    for run in runs:
        if run["label"] == run["source"]:
            usual = comparable(run["settings"]) | usual
    return usual


def comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those in which runs of a table differ by nature."""
    return {name: value for name, value in flat(settings).items() if name not in OWN}


def paired(found: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> list[float | None] | None:
    """Mean and standard error of the difference in accuracy to the others' runs of the same seeds; None without any."""
    pairs = [run["accuracy"] - others[seed]["accuracy"] for seed, run in found.items() if seed in others]
    return mean_and_error(pairs) if pairs else None


def mean_and_error(values: Sequence[float]) -> list[float | None]:
    """Mean and standard error; None for the error of a single value."""
    error = round(statistics.stdev(values) / math.sqrt(len(values)), 5) if len(values) > 1 else None
    return [round(statistics.mean(values), 5), error]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    return markdown(COLUMNS, map(cells, rows))


def cells(row: dict[str, Any]) -> list[str]:
    return [
        title(row),
        str(len(row["seeds"])),
        in_hundredths(row["accuracy"], ".2f", "%"),
        in_hundredths(row["gain"], "+.2f", "pp"),
        in_hundredths(row["gain_over_control"], "+.2f", "pp") if row["source"] in ("maxl", "weighted") else "",
        "" if row["entropy"] is None else f"{row['entropy']:.2f}",
        "" if row["sub_classes"] is None else f"{row['sub_classes']:.0f}",
        "" if row["nmi"] is None else f"{row['nmi']:.2f}",
        f"{row['minutes']:.1f}",
    ]


def title(row: dict[str, Any]) -> str:
    """The name of a row: its source, and the settings in which it is special."""
    words = [TITLES.get(row["label"], row["label"]), *(f"{name}={value}" for name, value in row["special"].items())]
    return ", ".join(words)


def in_hundredths(value: list[float | None] | None, form: str, unit: str) -> str:
    """A mean and its standard error, if there is one, in percent or percentage points."""
    if value is None or value[0] is None:
        return ""
    error = "" if value[1] is None else f" ± {100 * value[1]:.2f}"
    return f"{100 * value[0]:{form}}{error} {unit}"


def distinct(environments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the runs were made on and with, each once; when is the date of the first."""
    found: dict[str, dict[str, Any]] = {}
    for one in sorted(environments, key=lambda one: str(one.get("date"))):
        found.setdefault(json.dumps({**one, "date": None}, sort_keys=True), one)
    return list(found.values())


def compact(run: dict[str, Any]) -> dict[str, Any]:
    """A run in short: its curve of test accuracies in one list, and its accuracy in training in the last epoch."""
    kept = ("label", "source", "seed", "accuracy", "seconds", "labels")
    curve = [round(record["test_accuracy"], 4) for record in run["epochs"]]
    last = run["epochs"][-1].get("accuracy")
    own = {name: run[name] for name in kept if name in run}
    return {**own, "train_accuracy": last if last is None else round(last, 4), "test_accuracy": curve}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where train has written")
    parser.add_argument("--out", type=Path, help="JSON and PNG without suffix (default: <folder>-summary)")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    out = options.out or folder.with_name(f"{folder.name}-summary")
    json_file, figure = (out.with_name(out.name + suffix) for suffix in (".json", ".png"))
    try:
        runs = read(options.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = summary(runs)
    result: dict[str, Any] = {
        "settings": usual_settings(runs),
        "environments": distinct(run["environment"] for run in runs),
        "summary": rows,
        "runs": [compact(run) for run in runs],
    }
    text = json.dumps(result, indent=1) + "\n"
    replace_file(json_file, lambda file: file.write(text.encode()))
    draw(rows, result["runs"], [title(row) for row in rows], figure)
    print(table(rows))
    print(f"\nMeans ± standard errors. Written: {json_file}, {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
