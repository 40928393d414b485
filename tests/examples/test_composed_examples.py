"""The examples with learn2learn and higher run, shortened, and docs/composing.md has the results that were measured."""

import importlib.util
import json
import random
import warnings
from pathlib import Path

import pytest
import torch
from test_examples import run_example

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def few_shot():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("few_shot_digits", ROOT / "examples" / "few_shot_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    path = tmp_path_factory.mktemp("few_shot") / "results" / "few_shot.json"
    options = {"seeds": 2, "iterations": 1, "test-tasks": 5, "processes": 1, "out": path}
    printed = run_example(
        "few_shot_digits.py", *(part for key, value in options.items() for part in (f"--{key}", value))
    )
    return printed, json.loads(path.read_text())


def test_few_shot_prints_a_row_for_each_variant(shortened, few_shot):
    printed, result = shortened
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in printed.splitlines() if line.startswith("| ")]
    assert [tuple(row) for row in rows[1:]] == few_shot.VARIANTS
    assert few_shot.table(result["rows"]) in printed


def test_few_shot_writes_every_run(shortened, few_shot):
    _, result = shortened
    runs = {(run["algorithm"], run["labels"], run["seed"]): run["test_accuracy"] for run in result["runs"]}
    assert len(runs) == len(result["runs"]) == 8
    assert all(0.1 < accuracy < 1 for accuracy in runs.values())
    for row in result["rows"]:
        mean, base = (
            sum(runs[row["algorithm"], labels, seed] for seed in (0, 1)) / 2 for labels in (row["labels"], "none")
        )
        assert row["accuracy"] == pytest.approx(mean, abs=1e-4)
        assert row["gain"] == pytest.approx(mean - base, abs=1e-4)


def test_few_shot_goes_on_with_the_runs_that_are_done(shortened, few_shot, tmp_path):
    _, result = shortened
    path, options = tmp_path / "few_shot.json", "--seeds 2 --iterations 1 --test-tasks 5 --processes 1 --resume"
    about = {name: result[name] for name in ("settings", "versions")}
    marked = [run | {"mark": True} for run in result["runs"][:7]]
    few_shot.write(tmp_path / "few_shot.runs.json", {**about, "runs": marked})
    run_example("few_shot_digits.py", *options.split(), "--out", path)
    assert json.loads(path.read_text())["runs"] == marked + result["runs"][7:]
    assert [file.name for file in tmp_path.iterdir()] == ["few_shot.json"]
    few_shot.write(tmp_path / "few_shot.runs.json", {**about, "runs": marked})
    with pytest.raises(SystemExit, match=r"few_shot\.runs\.json has runs of other settings or versions"):
        few_shot.finished(tmp_path / "few_shot.runs.json", about | {"versions": {}})


def test_few_shot_tasks_follow_the_seed_and_test_digits_are_held_out(few_shot):
    settings = few_shot.SETTINGS
    assert not set(settings["train_digits"]) & set(settings["test_digits"])
    tasks = []
    for seed in (0, 0, 1):
        random.seed(seed)
        tasks.append(few_shot.taskset(settings["test_digits"]).sample())
    (x, y), again, other = tasks
    assert torch.equal(x, again[0])
    assert torch.equal(y, again[1])
    assert not torch.equal(x, other[0])
    assert y.bincount().tolist() == [settings["shots"] + settings["queries"]] * settings["ways"]


def test_few_shot_trains_what_its_optimizer_holds(few_shot):
    random.seed(0)
    task = few_shot.taskset(few_shot.SETTINGS["train_digits"]).sample()
    for algorithm, labels in few_shot.VARIANTS:
        variant = few_shot.FewShot(algorithm, labels, 0.1)
        variant.query(task)[0].backward()
        reached = [parameter for parameter in variant.maxl.parameters() if parameter.grad is not None]
        assert {id(parameter) for parameter in reached} <= {id(parameter) for parameter in variant.parameters()}
        generator = list(variant.maxl.generator.parameters())
        assert all((parameter.grad is not None) == (labels == "generated") for parameter in generator)


@pytest.mark.parametrize("name", ["few_shot.json", "few_shot-lr-0.1.json"])
def test_page_has_the_results_that_were_measured(few_shot, name):
    result = json.loads((ROOT / "docs" / name).read_text())
    assert few_shot.summary(result["runs"]) == result["rows"]
    assert result["settings"] == few_shot.SETTINGS
    assert len({run["seed"] for run in result["runs"]}) == 8
    for run in result["runs"]:
        chosen = result["settings"]["inner_lr"][run["algorithm"]][run["labels"]]
        assert run["inner_lr"] == (0.1 if "lr-0.1" in name else chosen)
    page = (ROOT / "docs" / "composing.md").read_text(encoding="utf-8")
    shown = page.split(f"<!-- table {name} -->\n")[1].split("\n<!-- /table -->")[0]
    assert shown == few_shot.table(result["rows"])


def test_higher_loop_prints_the_same_three_rows_each_time():
    printed, again = (run_example("higher_loop.py", "--iterations", 3) for _ in range(2))
    assert printed == again
    assert [line.split(",")[0] for line in printed.splitlines()[1:]] == ["SGD", "Adam", "AdamW"]


def test_higher_loop_trains_both_networks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = importlib.util.spec_from_file_location("higher_loop", ROOT / "examples" / "higher_loop.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    train, _ = module.split(0)
    for step in (module.step_through_higher, module.step_without_higher):
        maxl = module.MAXL(torch.nn.Linear(64, 2), module.PSI)
        before = [parameter.detach().clone() for parameter in maxl.parameters()]
        optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
        generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
        step(maxl, module.endless(train, 0), optimizer, generator_optimizer)
        assert all(not torch.equal(parameter, old) for parameter, old in zip(maxl.parameters(), before))
