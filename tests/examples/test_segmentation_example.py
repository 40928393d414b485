"""The segmentation example runs, shortened; its measure is right, and its page shows what was measured."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_examples import run_example

ROOT = Path(__file__).parents[2]
SOURCES = ["Single task", "Given digits", "Entropy term alone", "Invented labels"]


@pytest.fixture(scope="module")
def example():
    """The example as a module; it imports its figure from beside it."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import segmentation
    finally:
        sys.path.remove(str(ROOT / "examples"))
    return segmentation


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    printed = run_example("segmentation.py", "--seeds", 2, "--epochs", 2, "--processes", 1, "--out", folder)
    return folder, printed


def test_prints_a_row_for_each_source(shortened):
    _, printed = shortened
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][1:]
    assert rows == SOURCES


def test_writes_every_run_and_the_figure(shortened):
    folder, _ = shortened
    result = json.loads((folder / "segmentation.json").read_text())
    assert [(run["source"], run["seed"]) for run in result["runs"]] == [(s, seed) for seed in (0, 1) for s in SOURCES]
    assert (folder / "segmentation.png").read_bytes().startswith(b"\x89PNG")


def test_goes_on_with_the_checkpoints_of_runs_that_are_done(shortened, tmp_path):
    folder, _ = shortened
    first = json.loads((folder / "segmentation.json").read_text())["runs"]
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "segmentation-invented-labels-1.pt").unlink()
    options = {"seeds": 2, "epochs": 2, "processes": 1, "out": tmp_path}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    run_example("segmentation.py", *given, "--resume")
    again = json.loads((tmp_path / "segmentation.json").read_text())["runs"]
    assert [run | {"seconds": 0} for run in again] == [run | {"seconds": 0} for run in first]
    assert [run["seconds"] for run in again[:7]] == [run["seconds"] for run in first[:7]]


def test_mean_iou_is_the_one_worked_by_hand(example):
    truth = torch.tensor([[0, 0, 1], [1, 2, 2]])
    predicted = torch.tensor([[0, 1, 1], [1, 2, 0]])
    # class 0: 1 of 3 pixels, class 1: 2 of 3, class 2: 1 of 2
    assert example.mean_iou(predicted, truth) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert example.mean_iou(truth, truth) == 1


def test_loss_is_the_one_worked_by_hand(example):
    y = torch.tensor([[[0, 1]]])
    # A third for each class at each pixel: Dice is (2/3 + 1) / (2/3 + 1 + 1) twice, and 1 / (2/3 + 1) for class 2.
    dice = (2 * 5 / 8 + 3 / 5) / 3
    expected = torch.tensor(3.0).log() + 1 - dice
    assert example.cross_entropy_and_dice(torch.zeros(1, 3, 1, 2), y).tolist() == pytest.approx([expected.item()])


def test_training_and_test_scenes_are_what_they_are_said_to_be(example):
    x, maps, test_x, test_maps = example.split(0)
    assert x.shape == (30, 1, 24, 24)
    assert test_x.shape == (150, 1, 24, 24)
    assert set(test_maps.unique().tolist()) == set(range(11))
    assert (example.primary(maps) == 0).equal(maps == 0)
    assert example.primary(torch.tensor([0, 1, 5, 6, 10])).tolist() == [0, 1, 1, 2, 2]
    # Every seed has scenes of its own, and the same ones again.
    assert example.split(0)[0].equal(x)
    assert not example.split(1)[0].equal(x)


def test_generator_gives_probabilities_that_depend_on_the_truth(example):
    generator, x = example.PixelLabels(), torch.randn(2, 1, 24, 24)
    labels = generator(x, torch.zeros(2, 24, 24, dtype=torch.int64))
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(2, 24, 24))
    assert not labels.equal(generator(x, torch.ones(2, 24, 24, dtype=torch.int64)))


def test_page_shows_the_table_of_the_results(example):
    result = json.loads((ROOT / "docs" / "segmentation.json").read_text())
    assert example.table(result["summary"]) in (ROOT / "docs" / "segmentation.md").read_text()
    settings = {name: value for name, value in result["settings"].items() if name in example.SETTINGS}
    assert settings == example.SETTINGS


def test_results_are_the_summary_of_their_runs(example):
    result = json.loads((ROOT / "docs" / "segmentation.json").read_text())
    assert result["summary"] == example.summary(result["runs"])


def test_page_quotes_gains_of_the_results(example):
    page = " ".join((ROOT / "docs" / "segmentation.md").read_text().split("**What it shows.**")[1].split())
    rows = json.loads((ROOT / "docs" / "segmentation.json").read_text())["summary"]
    for row in rows:
        if row["source"] != "Single task":
            assert example.points(row["gain"]) in page
