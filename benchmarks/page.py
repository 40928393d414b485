"""The page of results, docs/results.md: every table is made from the JSON file of a measurement.

Run: python -m benchmarks.page
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from textwrap import fill
from types import ModuleType
from typing import Any

from examples.cifar100 import summarize
from examples.cifar100.markdown import markdown
from maxl_l2l.checkpoints import replace_file

from . import epoch, faults, overhead, ranks, report
from .growth import CURVES
from .libraries import CONTENDERS

ROOT = Path(__file__).parents[1]
PAGE = "docs/results.md"
HEAD = """\
# Benchmarks and results

`python -m benchmarks.page` writes this page from the JSON files of the measurements, and a test checks that the page
agrees with them. Results of training are means over seeds ± their standard errors. From *One iteration* on, results are
medians, and ratios have their quartiles. The page that is linked with a result explains it.
"""
Tables = Iterable[tuple[str, str]]
"""Captions, and tables in Markdown."""


@dataclass(frozen=True)
class Kind:
    """Results that have the same form.

    Attributes:
        title: What was measured.
        text: How, and where it is explained.
        files: The pattern of their names.
        tables: Makes the tables of a file's content.
        holds: Whether a file that has such a name holds such results.
        figures: Files beside the page, and what they show.
    """

    title: str
    text: str
    files: str
    tables: Callable[[dict[str, Any]], Tables]
    holds: Callable[[dict[str, Any]], bool] = lambda content: True
    figures: Mapping[str, str] = field(default_factory=dict)


def script(name: str) -> ModuleType:
    """A script of the folder examples as a module; it finds what lies beside it, as when it is run."""
    folder = str(ROOT / "examples")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(f"examples.{name}")
    finally:
        sys.path.remove(folder)


def digits_tables(content: dict[str, Any]) -> Tables:
    settings = content["settings"]
    loss = "cross-entropy" if settings.get("gamma") == 0 else "focal loss"
    words = f"{len(settings['seeds'])} seeds, {settings['epochs']} epochs, learning rate {settings['lr']}, {loss}"
    yield f"{words}:", script("digits").table(content["summary"])


def few_shot_tables(content: dict[str, Any]) -> Tables:
    runs = content["runs"]
    rates = dict.fromkeys((run["algorithm"], run["labels"], run["inner_lr"]) for run in runs)
    caption = f"{len({run['seed'] for run in runs})} seeds, {runs[0]['iterations']} iterations; inner learning rates"
    yield (
        f"{caption}, row by row: {', '.join(str(rate) for *_, rate in rates)}:",
        script("few_shot_digits").table(content["rows"]),
    )


def segmentation_tables(content: dict[str, Any]) -> Tables:
    settings = content["settings"]
    yield f"{settings['seeds']} seeds, {settings['epochs']} epochs:", script("segmentation").table(content["summary"])


def cifar100_tables(content: dict[str, Any]) -> Tables:
    settings = content["settings"]
    subset = "all" if settings["subset"] is None else settings["subset"]
    network = f"{settings['network']}, width {settings['width']}, {settings['precision']}"
    caption = (
        f"{network}, {subset} training images a class, {settings['epochs']} epochs, learning rate {settings['lr']}:"
    )
    yield caption, summarize.table(content["summary"])


def cost_tables(content: dict[str, Any]) -> Tables:
    for part in content["cases"]:
        case = part["case"]
        found = [row for row in content["summary"] if row["network"] == case["network"]]
        yield f"{case['network']}, batch {case['batch']}, {case['precision']}:", report.table(found)


def growth_tables(content: dict[str, Any]) -> Tables:
    for name in dict.fromkeys(point["curve"] for point in content["points"]):
        found = [point for point in content["points"] if point["curve"] == name]
        networks = ", ".join(dict.fromkeys(point["case"]["network"] for point in found))
        titles = [CONTENDERS[result["contender"]].title for result in found[0]["results"]]
        columns = [CURVES[name].quantity, *(f"{title}: seconds, MiB" for title in titles)]
        rows = [[str(point["value"]), *map(growth_cell, point["results"])] for point in found]
        yield f"With the {CURVES[name].quantity}, {networks}:", markdown(columns, rows)


def growth_cell(result: dict[str, Any]) -> str:
    if not result["seconds"]:
        return "fails"
    memory = "" if result["peak_bytes"] is None else f", {result['peak_bytes'] / report.MIB:.0f}"
    return f"{median(result['seconds']):.3g}{memory}"


def overhead_tables(content: dict[str, Any]) -> Tables:
    for part in content.get("lightning") or content["metrics"]:
        yield f"{part['network']}, batch {part['batch']}:", overhead.table(part["rows"])


def ranks_tables(content: dict[str, Any]) -> Tables:
    for part in content["ranks"]:
        yield f"{part['network']}, {part['batch']} images in the whole batch:", ranks.table(part["rows"])


def faults_tables(content: dict[str, Any]) -> Tables:
    yield "Faults that were provoked, and what was found:", faults.table(content)


def epoch_tables(content: dict[str, Any]) -> Tables:
    settings = content["settings"]
    caption = f"{settings['network']}, width {settings['width']}, batch {settings['batch']}, {settings['precision']}:"
    yield caption, epoch.table(content["summary"])


KINDS = (
    Kind(
        "Digits",
        "Is a digit below five? A small CNN on real 8x8 images, with six sources of auxiliary labels; the program is "
        "`examples/digits.py`, and `README.md` says what it shows.",
        "docs/digits*.json",
        digits_tables,
        figures={
            "digits.png": "Gain of each label source over single-task training, and the sub-classes that MAXL invented"
        },
    ),
    Kind(
        "CIFAR-100",
        "The paper's experiment, at the sizes that the captions name; [CIFAR-100](cifar100.md) says what they show.",
        "docs/cifar100*.json",
        cifar100_tables,
        figures={"cifar100-small.png": "Test accuracy over the epochs and the gain of each source of labels"},
    ),
    Kind(
        "Few-shot digits",
        "Generated labels in the inner loop of learn2learn's algorithms, tested on tasks with digits that were never "
        "seen; see [with learn2learn and higher](composing.md#does-it-help-few-shot-digits).",
        "docs/few_shot*.json",
        few_shot_tables,
    ),
    Kind(
        "Labels for every pixel",
        "Scenes composed of digits, with a label for each pixel; see [the page](segmentation.md#what-was-measured).",
        "docs/segmentation*.json",
        segmentation_tables,
        figures={
            "segmentation.png": "Gain of each label source over single-task training; four test scenes with "
            "predictions and invented labels"
        },
    ),
    Kind(
        "One iteration",
        "Both networks are updated once: this package beside other ways to write the same iteration. "
        "`benchmarks/README.md` says what the contenders and the columns are.",
        "benchmarks/results/*.json",
        cost_tables,
        lambda content: "cases" in content,
        {"benchmarks.png": "Time of each contender over single-task training, and its peak memory"},
    ),
    Kind(
        "Growth",
        "One iteration while one quantity grows; seconds are medians, and memory is the peak above what is held "
        "between two iterations.",
        "benchmarks/results/*.json",
        growth_tables,
        lambda content: "points" in content,
        {"growth.png": "Seconds and memory against batch, inner steps and sub-classes"},
    ),
    Kind(
        "An epoch",
        "An epoch of the CIFAR-100 experiment on 50,000 images, `python -m benchmarks.epoch`.",
        "benchmarks/results/*.json",
        epoch_tables,
        lambda content: any("way" in row for row in content.get("summary", ())),
    ),
    Kind(
        "Many processes",
        "A batch that is split over processes, `python -m benchmarks.ranks`; see "
        "[many processes](many_processes.md#what-travels).",
        "benchmarks/results/*.json",
        ranks_tables,
        lambda content: "ranks" in content,
    ),
    Kind(
        "Lightning",
        "What Lightning's Trainer adds to an iteration, `python -m benchmarks.lightning_overhead`; see "
        "[with Lightning](lightning.md#what-it-costs). `mlp` is a network of two small linear layers.",
        "benchmarks/results/*.json",
        overhead_tables,
        lambda content: "lightning" in content,
    ),
    Kind(
        "Metrics",
        "What metrics add to an iteration of `fit`, `python -m benchmarks.metrics_overhead`. `mlp` is a network of two "
        "small linear layers.",
        "benchmarks/results/*.json",
        overhead_tables,
        lambda content: "metrics" in content,
    ),
    Kind(
        "Faults",
        "Attempts to break this package, by `make faults`; see [long runs](long_runs.md#what-was-tried).",
        "benchmarks/results/*.json",
        faults_tables,
        lambda content: "kills" in content,
    ),
)


def page(root: Path = ROOT) -> str:
    """The page's text.

    Args:
        root: The folder in which docs and benchmarks/results lie.
    """
    return "\n".join([HEAD, *(section for kind in KINDS for section in sections(kind, root))])


def sections(kind: Kind, root: Path) -> Iterator[str]:
    """The heading of a kind and a section for each of its files, by their dates; nothing without files."""
    contents = {path: json.loads(path.read_text(encoding="utf-8")) for path in root.glob(kind.files)}
    found = [path for path, content in contents.items() if kind.holds(content)]
    if not found:
        return
    yield f"## {kind.title}\n\n{fill(kind.text, 120, break_long_words=False, break_on_hyphens=False)}\n"
    for figure, shows in kind.figures.items():
        yield f"![{shows}]({figure})\n"
    for path in sorted(found, key=lambda path: (environments(contents[path])[0].get("date", ""), path.stem)):
        name = path.relative_to(root).as_posix()
        link = f"[{path.name}]({path.name})" if path.parent.name == "docs" else f"`{name}`"
        yield "\n".join([f"### {path.stem}\n\nFrom {link}:\n", *map(recorded, environments(contents[path])), ""])
        for caption, table in kind.tables(contents[path]):
            yield f"{caption}\n\n{table}\n"


def environments(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What the results were measured on and with; a file of runs of several days has several."""
    found: list[dict[str, Any]] = content.get("environments") or [content]
    return found


def recorded(environment: dict[str, Any]) -> str:
    """When, where and with what, in a line, as far as it is recorded."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    if "date" not in environment:
        return f"- {versions}; date, device and commit are not recorded"
    threads = f"{environment['threads']} thread{'s' * (environment['threads'] > 1)}"
    return (
        f"- {environment['date'][:10]}, {environment['device']}, {environment['cpus']} cores, {threads}, commit "
        f"`{(environment['commit'] or 'unknown')[:10]}`; {versions}"
    )


def main() -> None:
    text = page()
    replace_file(ROOT / PAGE, lambda file: file.write(text.encode()))
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
