"""The error for a missing optional package says what needs it, and the command that installs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from maxl_l2l.extras import missing

ROOT = Path(__file__).parents[2]


def without(package, code):
    """Runs code as if a package were not installed; returns the last line of its errors."""
    command = [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None; {code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("package", "program", "user"),
    [
        ("sklearn", "maxl_l2l.kmeans", "KMeansLabels needs scikit-learn"),
        ("lightning", "maxl_l2l.lightning", "LightningMAXL needs lightning"),
    ],
)
def test_module_without_its_package_names_extra_and_command(package, program, user):
    line = without(package, f"import {program}")
    assert line.startswith(f"ImportError: {user}, which is not installed. Install it with: pip install 'maxl_l2l[")


@pytest.mark.parametrize(
    ("package", "example"),
    [("learn2learn", "few_shot_digits.py"), ("higher", "higher_loop.py"), ("lightning", "lightning_digits.py")],
)
def test_example_without_its_package_names_extra_and_command(package, example):
    path = str(ROOT / "examples" / example)
    line = without(package, f"import runpy; runpy.run_path({path!r}, run_name='__main__')")
    assert line.startswith("ImportError: ")
    assert f"needs {package}, which is not installed." in line
    assert f"pip install 'maxl_l2l[{package}]'" in line


@pytest.mark.parametrize(("version", "builds"), [((3, 10, 4), False), ((3, 11, 0), True), ((3, 13, 1), True)])
def test_learn2learn_comes_with_the_command_that_builds_it_where_pip_alone_fails(monkeypatch, version, builds):
    monkeypatch.setattr(sys, "version_info", version)
    message = str(missing("learn2learn", "This example"))
    assert message.startswith("This example needs learn2learn, which is not installed.")
    assert ("--no-build-isolation" in message) == builds


def test_the_command_that_builds_learn2learn_is_that_of_the_makefile():
    makefile = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text())
    message = str(missing("learn2learn", "It"))
    for part in (
        "--use-pep517",
        "--no-build-isolation",
        "--config-settings '--global-option=build_ext'",
        "learn2learn==",
    ):
        assert part in makefile
        if sys.version_info >= (3, 11):
            assert part in message


def test_every_extra_that_is_named_exists():
    extras = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), flags=re.MULTILINE))
    named = {
        re.search(r"maxl_l2l\[(\w+)\]", str(missing(package, "It", extra)))[1]
        for package, extra in (
            ("learn2learn", None),
            ("higher", None),
            ("lightning", None),
            ("scikit-learn", "kmeans"),
            ("tqdm", "progress"),
        )
    }
    assert named <= extras
