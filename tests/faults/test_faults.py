"""What the programs in tests/faults find: kills, files that are no checkpoints, and long runs."""

import io
import re

import pytest
import torch

from faults import flat, hostile, kills


def test_run_killed_fifty_times_ends_as_one_that_nothing_has_killed():
    found = kills.figures(50)
    assert found["kills"] >= 50
    assert found["writing"] >= 10
    assert found["identical"] == found["runs"] > 1


def test_killed_run_whose_data_loader_has_workers_goes_on_too():
    found = kills.figures(1, seed=1, workers=2)
    assert found["identical"] == found["runs"]


def test_every_file_that_is_no_checkpoint_is_refused_with_its_reason_and_runs_nothing():
    found = hostile.figures()
    assert found["wrong"] == {}
    assert found["refused"] == found["files"] >= 200


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_careless_load_would_have_run_the_programs(tmp_path):
    """The files do what they say, so that refusing them means something."""
    marker = tmp_path / "marker"
    ran = 0
    for bad in hostile.programs(hostile.whole(), marker):
        if "plain pickle" not in bad.name and "torch.save" not in bad.name and "Popen" not in bad.name:
            torch.load(io.BytesIO(bad.content), weights_only=False)
            assert marker.exists(), bad.name
            marker.rmdir() if marker.is_dir() else marker.unlink()
            ran += 1
    assert ran >= 30


def test_whole_checkpoint_is_not_refused(tmp_path):
    (tmp_path / "run.pt").write_bytes(hostile.whole(1))
    assert len(hostile.start(tmp_path, True)) == 2


def test_earlier_checkpoint_that_is_offered_can_be_gone_on_from(tmp_path):
    path, previous = tmp_path / "run.pt", tmp_path / "run.pt.previous"
    hostile.start(tmp_path, False, epochs=3)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(f"after step 12, is whole: rename {previous} to run.pt to go on")):
        hostile.start(tmp_path, True, epochs=3)
    previous.rename(path)
    assert len(hostile.start(tmp_path, True, epochs=3)) == 3


def test_earlier_checkpoint_that_is_damaged_too_is_not_offered(tmp_path):
    (tmp_path / "run.pt").write_bytes(b"")
    (tmp_path / "run.pt.previous").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is empty\. There is no earlier checkpoint beside it: name another file"):
        hostile.start(tmp_path, True)


@pytest.mark.parametrize("loop", flat.LOOPS)
def test_memory_of_a_long_run_does_not_grow(loop):
    found = flat.figures(loops=(loop,))[loop]
    assert found["resident"] < 0.01
    assert found["objects"] < 0.01
