"""The page of results is what the JSON files make of it, and has all of them."""

import functools
import json
import operator
import shutil
from pathlib import Path

import pytest

from benchmarks import epoch, faults
from benchmarks.page import KINDS, PAGE, page

ROOT = Path(__file__).parents[2]
RESULTS = [
    path.relative_to(ROOT) for folder in ("docs", "benchmarks/results") for path in (ROOT / folder).glob("*.json")
]
# A number that each table shows, by the beginning of its file's name.
SHOWN = {
    "digits": ("summary", -1, "difference"),
    "cifar100": ("summary", -1, "accuracy", 0),
    "few_shot": ("rows", 1, "gain"),
    "segmentation": ("summary", -1, "gain_over_entropy", 0),
    "cpu-vgg16": ("summary", 1, "ratio", "high"),
    "cpu-vit": ("summary", -1, "method_error"),
    "cpu-faults": ("calls", "right"),
    "cpu-growth": ("points", -1, "results", -1, "peak_bytes"),
    "cpu-lightning": ("lightning", -1, "rows", -1, "more", "median"),
    "cpu-metrics": ("metrics", -1, "rows", -1, "more", "median"),
    "cpu-ranks": ("ranks", 0, "rows", 1, "of_parameters"),
}


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of all results."""
    for path in RESULTS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_page_is_what_the_results_make_it():
    assert page() == (ROOT / PAGE).read_text(encoding="utf-8"), "run python -m benchmarks.page"


@pytest.mark.parametrize("path", RESULTS, ids=str)
def test_a_number_that_is_changed_changes_the_page(path, copied):
    assert page(copied) == page()
    content = json.loads((ROOT / path).read_text())
    *way, last = next(keys for name, keys in SHOWN.items() if path.name.startswith(name))
    row = functools.reduce(operator.getitem, way, content)
    row[last] *= 1.5
    (copied / path).write_text(json.dumps(content))
    changed = [one for one, other in zip(page(copied).split("\n"), page().split("\n")) if one != other]
    assert len(changed) == 1
    assert changed[0].startswith("| ")


@pytest.mark.parametrize("path", RESULTS, ids=str)
def test_every_file_of_results_is_named_with_its_versions(path):
    text, content = page(), json.loads((ROOT / path).read_text())
    name = f"[{path.name}]({path.name})" if path.parent.name == "docs" else f"`{path.as_posix()}`"
    assert text.count(f"\nFrom {name}:\n") == 1
    section = text.split(f"\nFrom {name}:\n")[1].split("\n#")[0]
    for environment in content.get("environments") or [content]:
        assert all(f"{name} {version}" in section for name, version in environment["versions"].items())
        if "commit" in environment:
            assert environment["commit"][:10] in section
            assert not environment["commit"].endswith("dirty")
            assert environment["date"][:10] in section
            assert environment["device"] in section


def test_long_runs_shows_what_was_tried_and_all_of_it_is_as_wanted():
    found = json.loads((ROOT / "benchmarks/results/cpu-faults.json").read_text())
    text = (ROOT / "docs" / "long_runs.md").read_text(encoding="utf-8")
    shown = text.split("<!-- table cpu-faults.json -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == faults.table(found)
    assert len(faults.rows(found)) == 7
    assert [row for row in faults.rows(found) if not row[3]] == []


def test_every_figure_of_the_page_is_there():
    figures = [figure for kind in KINDS for figure in kind.figures]
    assert [figure for figure in figures if not (ROOT / "docs" / figure).exists()] == []


def test_an_epoch_that_was_measured_gets_its_table(tmp_path, monkeypatch, copied):
    monkeypatch.setattr(epoch, "IMAGES", 300)
    out = copied / "benchmarks" / "results" / "one-epoch.json"
    epoch.main(["--width", "0.05", "--batch", "10", "--repeats", "1", "--iterations", "1", "--out", str(out)])
    text = page(copied)
    assert "### one-epoch\n\nFrom `benchmarks/results/one-epoch.json`:\n" in text
    assert f"vgg16, width 0.05, batch 10, float32:\n\n{epoch.table(json.loads(out.read_text())['summary'])}\n" in text


def test_kinds_without_results_are_left_out(tmp_path):
    assert page(tmp_path).count("\n#") == 0
