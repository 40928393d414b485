"""Examples run, shortened, and the README's snippets run as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def run_example(name, *options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    printed = run_example("digits.py", "--seeds", 2, "--epochs", 2, "--processes", 1, "--out", folder)
    return folder, printed


def test_digits_prints_a_row_for_each_source(digits):
    _, printed = digits
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][1:]
    assert rows == ["Single task", "Random labels", "K-means labels", "Human labels", "Entropy term alone", "MAXL"]


def test_digits_writes_every_run_as_json(digits):
    folder, _ = digits
    result = json.loads((folder / "digits.json").read_text())
    assert len(result["runs"]) == 12
    assert result["settings"]["seeds"] == [0, 1]
    assert {row["source"] for row in result["summary"]} == {"single", "random", "kmeans", "human", "entropy", "maxl"}
    for row in result["summary"]:
        accuracies = [run["test_accuracy"] for run in result["runs"] if run["source"] == row["source"]]
        assert row["accuracy"] == pytest.approx(sum(accuracies) / 2, abs=1e-4)
    human = next(row for row in result["summary"] if row["source"] == "human")
    assert human["nmi"] == pytest.approx(1)


def test_digits_goes_on_with_the_checkpoints_of_runs_that_are_done(digits, tmp_path):
    folder, _ = digits
    first = json.loads((folder / "digits.json").read_text())["runs"]
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "maxl-1.pt").unlink()
    run_example("digits.py", "--seeds", 2, "--epochs", 2, "--processes", 1, "--out", tmp_path, "--resume")
    again = json.loads((tmp_path / "digits.json").read_text())["runs"]
    assert [run | {"seconds": 0} for run in again] == [run | {"seconds": 0} for run in first]
    assert [run["seconds"] for run in again if run["seed"] == 0] == [
        run["seconds"] for run in first if run["seed"] == 0
    ]


def test_digits_draws_a_figure(digits):
    folder, _ = digits
    assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_digits_demo_writes_a_report(digits):
    folder, _ = digits
    page = folder / "report" / "index.html"
    assert page.stat().st_size < 3e6
    text = page.read_text(encoding="utf-8")
    assert "Is the digit below five?" in text
    assert len(list((folder / "report" / "figures").glob("*.png"))) == 6


def test_regression_runs():
    printed = run_example("regression.py", "--seeds", 2, "--epochs", 2)
    assert re.search(r"invented targets +\d\.\d{3}", printed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_readme_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    first, *others = snippets
    namespace = {}
    for snippet in others:
        exec(snippet, namespace)
    assert (tmp_path / "out" / "history.json").exists()
    # The three lines of the first screen, with the names that the later snippets have made.
    import_free = first.replace("[5] * 20", "[3, 3, 2, 5]").replace("epochs=30", "epochs=1")
    namespace["loader"] = [(namespace["x"][:50], namespace["y"][:50])]
    exec(import_free, namespace)
    assert (tmp_path / "model.pt").exists()


def test_readme_table_is_the_one_in_the_results():
    text = README
    result = json.loads((ROOT / "docs" / "digits.json").read_text())
    for row in result["summary"]:
        assert f"{100 * row['accuracy']:.2f} ± {100 * row['accuracy_se']:.2f} %" in text
        if row["source"] != "single":
            assert f"{100 * row['difference']:+.2f} ± {100 * row['difference_se']:.2f} pp" in text


def test_readme_quotes_what_the_meta_gradient_earns():
    gain, error = json.loads((ROOT / "docs" / "digits.json").read_text())["maxl_over_entropy"]
    assert f"{100 * gain:+.2f} ± {100 * error:.2f} pp ahead of the control" in " ".join(README.split())


@pytest.mark.parametrize("name", ["digits-lr-0.02.json", "digits-gamma-0.json"])
def test_readme_quotes_the_results_with_other_settings(name):
    text = " ".join(README.split())
    rows = json.loads((ROOT / "docs" / name).read_text())["summary"]
    found = {row["source"]: row for row in rows}
    assert f"{100 * found['single']['accuracy']:.2f} %" in text
    for source in ("maxl", "entropy"):
        row = found[source]
        assert f"{100 * row['difference']:+.2f} ± {100 * row['difference_se']:.2f} pp" in text
