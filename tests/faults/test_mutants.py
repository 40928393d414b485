"""The mutation check itself: mutants that fit the files they change, and verdicts that are right."""

import contextlib
import json
import subprocess
import sys
import time

import pytest

from faults import mutants
from faults.mutants import MUTANTS, ROOT, Mutant, core_tests, killer, mutated


def test_there_are_enough_mutants_each_with_a_name_of_its_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 45


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_mutant_has_one_place_compiles_and_is_looked_for_by_tests_that_exist(mutant):
    path = ROOT / "maxl_l2l" / mutant.file
    sound = path.read_text()
    broken = mutated(sound, mutant)
    assert broken != sound
    compile(broken, str(path), "exec")
    assert mutant.tests
    for test in mutant.tests:
        file, *parts = test.split("[")[0].split("::")
        text = (ROOT / "tests" / file).read_text()
        for part in parts:
            assert f"def {part}(" in text or f"class {part}:" in text


@pytest.mark.parametrize("text", ["no such text", "import"])
def test_mutant_without_a_single_place_is_refused(text):
    mutant = Mutant("it is stale", "labels/losses.py", text, "", ("labels/test_losses.py",))
    with pytest.raises(
        ValueError, match=r"'it is stale' must occur once in labels/losses.py, found \d+.*change the mutant"
    ):
        mutated((ROOT / "maxl_l2l" / "labels" / "losses.py").read_text(), mutant)


FAILURE = "FAILED tests/test_a.py::test_b[one - two] - assert 1 == 2\n"


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "3 passed in 0.1s\n", None),
        (1, FAILURE + "1 failed, 2 passed in 0.1s\n", "test_a.py::test_b[one - two]"),
        (1, "FAILED tests/test_a.py::test_b\n1 failed in 0.1s\n", "test_a.py::test_b"),
        (1, "FAILED tests/test_a.py::test_b - Failed: DID NOT RAISE\n1 failed in 0.1s\n", "test_a.py::test_b"),
        (1, "FAILED tests/test_a.py::test_b - NameError: name 'x' is not defined\n1 failed in 0.1s\n", None),
        (
            1,
            FAILURE + "ERROR tests/test_a.py::test_b - Warning\n1 failed, 1 error in 0.1s\n",
            "test_a.py::test_b[one - two]",
        ),
        (1, "ERROR tests/test_a.py - SyntaxError: invalid syntax\n1 error in 0.1s\n", None),
        (2, "ERROR tests/test_a.py\nInterrupted: 1 error during collection\n1 error in 0.1s\n", None),
        (4, "ERROR: not found: tests/test_a.py::test_b\nno tests ran in 0.1s\n", None),
        (5, "no tests ran in 0.1s\n", None),
        (-9, "", None),
        (None, "", "it hangs"),
    ],
)
def test_killer_is_a_test_that_failed_and_no_crash(status, output, expected):
    assert killer(status, output) == expected


def test_core_suite_is_of_files_that_exist_and_without_this_one():
    known = {"labels/test_losses.py", "hypergradient/test_methods.py", "training/test_fitting.py"}
    assert known | {"distributed/test_ranks.py"} < set(core_tests())
    assert not {"faults/test_mutants.py", "docs/test_page.py"} & set(core_tests())
    assert all((ROOT / "tests" / name).exists() for name in mutants.NOT_CORE)


class Rehearsal:
    """A copy in which nothing runs: a mutant is noticed by the tests that are its replacement."""

    def __enter__(self):
        self.mutant = None
        return self

    def __exit__(self, *error):
        pass

    @contextlib.contextmanager
    def broken(self, mutant):
        self.mutant = mutant
        yield
        self.mutant = None

    def test(self, tests, limit=None):
        if "test_broken.py" in tests:
            return 1, FAILURE + "1 failed in 0.1s"
        if self.mutant is None or self.mutant.becomes not in tests:
            return 0, "1 passed in 0.1s"
        return 1, FAILURE + "1 failed in 0.1s"


@pytest.mark.parametrize("jobs", [1, 2])
def test_survivor_is_what_the_core_suite_does_not_notice_either(jobs, monkeypatch):
    monkeypatch.setattr(mutants, "Copy", Rehearsal)
    noticed = {"own": "test_own.py", "other": "test_other.py", "none": "test_none.py"}
    chosen = [Mutant(name, "losses.py", "text", file, ("test_own.py",)) for name, file in noticed.items()]
    lines = []
    found = mutants.verdicts(chosen, jobs, core=lambda: ("test_own.py", "test_other.py"), report=lines.append)
    assert [verdict.mutant.name for verdict in found] == list(noticed)
    assert [verdict.killer is None for verdict in found] == [False, False, True]
    assert sum(line.startswith("survived") for line in lines) == 3  # two their own tests, one the core's
    monkeypatch.setattr(mutants, "MUTANTS", chosen)
    monkeypatch.setattr(mutants, "core_tests", lambda: ("test_other.py",))
    result = mutants.figures(jobs=jobs)
    assert result | {"seconds": 0} == {"mutants": 3, "killed": 2, "survivors": ["none"], "seconds": 0}
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--only", "none"])
    assert mutants.main() == 1


def test_tests_that_fail_anyway_are_told_of(monkeypatch):
    monkeypatch.setattr(mutants, "Copy", Rehearsal)
    with pytest.raises(RuntimeError, match=r"test_broken.py must pass without a mutant.*\nFAILED"):
        mutants.verdicts([Mutant("it", "losses.py", "text", "", ("test_broken.py",))])


def test_test_that_hangs_is_stopped_with_what_it_started(tmp_path):
    copy = mutants.Copy()
    copy.folder.cleanup()
    copy.root = tmp_path
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_endless.py").write_text(
        "import subprocess, time\ndef test():\n    subprocess.run(['sleep', '60'])\n"
    )
    begun = time.monotonic()
    assert killer(*copy.test(["test_endless.py"], 2)) == "it hangs"
    assert time.monotonic() - begun < 20


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="`only` must be a part of a mutant's name, found 'no such'"):
        mutants.figures("no such")


def test_mutant_is_killed_in_a_copy_where_sound_code_passes():
    path = ROOT / "maxl_l2l" / MUTANTS[0].file
    sound = path.read_text()
    command = [sys.executable, mutants.__file__, "--only", MUTANTS[0].name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["mutants"], found["killed"], found["survivors"]) == (1, 1, [])
    assert f"hierarchy.py: {MUTANTS[0].name}  [labels/test_hierarchy.py::test_blocks_are_consecutive" in done.stdout
    assert path.read_text() == sound
