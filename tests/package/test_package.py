"""The package as a whole: what is shipped, what it imports, how it is laid out, and whether its docstrings are true."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maxl_l2l

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "maxl_l2l"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MODULES = [".".join(("maxl_l2l", *path.with_suffix("").parts)).removesuffix(".__init__") for path in FILES]
PACKAGES = sorted(path.parent.name for path in FILES if path.name == "__init__.py" and path.parent.name)
OPTIONAL = (
    "higher",
    "learn2learn",
    "lightning",
    "matplotlib",
    "sklearn",
    "timm",
    "torchopt",
    "torchvision",
    "transformers",
)
CORE = {"filelock", "numpy", "torch"}
OTHER_TESTS = {"benchmarks", "docs", "examples", "faults", "integrations", "package"}
TARGETS = ("demo", "docs", "bench", "faults", "test", "oldest", "lint", "package", "clean", "help")


def run(*command: str) -> str:
    """What a command run at the root of the repository prints; the test fails with its errors if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def public_globals() -> dict[str, object]:
    """What docstring examples use without importing it."""
    return {"torch": torch, "nn": nn, "F": F, **{name: getattr(maxl_l2l, name) for name in maxl_l2l.__all__}}


def test_build_ships_every_module_and_the_typed_marker_and_requires_what_torch_does(tmp_path: Path) -> None:
    run(
        sys.executable,
        *("setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)),
        *("build", "--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib")),
    )
    built = tmp_path / "lib" / "maxl_l2l"
    shipped = {path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()}
    assert shipped == {path.as_posix() for path in FILES} | {"py.typed"}
    core = (tmp_path / "maxl_l2l.egg-info" / "requires.txt").read_text().split("[", maxsplit=1)[0]
    assert {re.match(r"[\w-]+", line)[0] for line in core.split()} == CORE


def test_the_oldest_versions_that_are_tested_are_those_that_setup_claims() -> None:
    line = re.search(r"^OLDEST := (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    oldest = dict(pin.split("==") for pin in line.split())
    claims = re.findall(r'"([\w-]+)>=([\d.]+)[",]', (ROOT / "setup.py").read_text())
    assert {name: version for name, version in claims if name in oldest} == oldest
    assert {"torch", "numpy"} <= set(oldest)


def test_import_loads_no_optional_package() -> None:
    program = f"import sys, maxl_l2l; print([name for name in {OPTIONAL} if name in sys.modules])"
    assert run(sys.executable, "-W", "error", "-c", program).strip() == "[]"


def test_folders_and_files_stay_small_enough_to_be_read():
    """Modules of the root and of a package, lines of a module and of a class: the limits of docs/contributing.md."""
    assert sum(path.parent == Path(".") for path in FILES) <= 10
    for package in PACKAGES:
        assert sum(path.parts[0] == package for path in FILES) <= 15, package
    for path in FILES:
        source = (PACKAGE / path).read_text()
        sizes = [
            node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(source)) if type(node) is ast.ClassDef
        ]
        longest = max(sizes, default=0)
        assert longest <= 400, path
        assert len(source.splitlines()) <= 350 or longest > 350, path


@pytest.mark.parametrize("path", FILES, ids=str)
def test_from_outside_a_package_one_imports_from_the_package(path: Path) -> None:
    found = re.findall(r"^\s*(?:from|import) (\.+\w+\.\w+|maxl_l2l\b.*)", (PACKAGE / path).read_text(), re.MULTILINE)
    assert [one for one in found if not (path.name == "__init__.py" and one.count(".") == 1)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for_and_hands_names_on(package: str) -> None:
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    first, *others = tree.body
    assert ast.get_docstring(tree)
    assert isinstance(first, ast.Expr)
    assert others
    assert all(isinstance(node, ast.ImportFrom) and node.level == 1 for node in others)


def test_tests_lie_where_the_modules_lie() -> None:
    found = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    wrong = [
        str(path)
        for path in found
        if path.parts[0] in PACKAGES and path.parent / path.name.removeprefix("test_") not in FILES
    ]
    assert wrong == []
    assert {path.parts[0] for path in found} - set(PACKAGES) == OTHER_TESTS


@pytest.mark.parametrize("name", maxl_l2l.__all__)
def test_public_name_exists_and_has_a_docstring_of_its_own(name: str) -> None:
    docstring = getattr(maxl_l2l, name).__doc__
    assert docstring
    assert not docstring.startswith(f"{name}("), "this is what a dataclass generates"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), extraglobs=public_globals()).failed == 0


def test_make_alone_lists_the_targets() -> None:
    listed = dict(re.findall(r"^make (\w+) +(\S.*)$", run("make", "--no-print-directory"), flags=re.MULTILINE))
    assert set(listed) == set(TARGETS)
