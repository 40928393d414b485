"""Files of older versions of this package, and what it says of its own version."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from faults import fixtures, program

import maxl_l2l

ROOT = Path(__file__).parents[2]
VERSIONS = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_each_version_in_the_changelog_has_its_files_and_the_last_one_is_this():
    assert sorted(folder.name for folder in fixtures.FOLDER.iterdir()) == sorted(VERSIONS)
    assert maxl_l2l.__version__ == VERSIONS[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_state_of_a_learner_loads_and_says_what_it_said(version):
    found = torch.load(fixtures.FOLDER / version / "learner.pt", weights_only=True)
    maxl = program.learner()
    maxl.load_state_dict(found["state"])
    torch.testing.assert_close(fixtures.outputs(maxl), found["outputs"])


@pytest.mark.parametrize(("name", "epochs"), [(fixtures.FINISHED, 1), (fixtures.INSIDE, 0)])
@pytest.mark.parametrize("version", VERSIONS)
def test_checkpoint_of_a_version_is_gone_on_from(version, name, epochs, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes((fixtures.FOLDER / version / name).read_bytes())
    steps = torch.load(path, weights_only=True)["progress"]["steps"]
    assert 0 < steps <= 6
    history = fixtures.train(program.learner(), 2, path, resume=True)
    assert [record["epoch"] for record in history.epochs] == [1, 2]
    assert torch.load(path, weights_only=True)["progress"]["steps"] == 12
    # As a run without an end between, but for rounding in other versions of torch.
    whole = fixtures.train(program.learner(), 2)
    torch.testing.assert_close(history["primary_loss"], whole["primary_loss"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_whole_objects_of_a_version_load_and_go_on(version):
    found = torch.load(fixtures.FOLDER / version / "whole.pt", weights_only=False)
    maxl, expected = found["maxl"], fixtures.whole()
    assert type(maxl) is maxl_l2l.MAXL
    assert [type(one).__name__ for one in found["sources"]] == ["SingleTask", "RandomLabels", "GeneratedLabels"]
    torch.testing.assert_close(found["history"]["primary_loss"], expected["history"]["primary_loss"])
    results = []
    for learner in (maxl, expected["maxl"]):
        torch.manual_seed(1)
        optimizer, generator_optimizer, _ = program.parts(learner).values()
        results.append(learner.step(*fixtures.batch(), optimizer, generator_optimizer))
    for name in ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer"):
        torch.testing.assert_close(getattr(results[0], name), getattr(results[1], name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("inner_step", "InnerStep"),
        ("kmeans", "KMeansLabels"),
        ("label_meter", "LabelMeter"),
        ("lightning", "LightningMAXL"),
        ("rules", "RULES"),
        ("sources", "FixedLabels"),
        ("watch", "warn_of_collapse"),
    ],
)
def test_imports_that_pages_have_shown_still_work(module, name):
    assert hasattr(importlib.import_module(f"maxl_l2l.{module}"), name)
