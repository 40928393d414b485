"""The package as a whole: what is shipped, what it imports, which way, and whether its docstrings are true."""

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
ROOMS = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.parent == PACKAGE or path.stem != "__init__"
)

# Each module may import those above it, never one below; `__init__` is the package root. A new module needs one entry.
ORDER = (
    "version",
    "errors",
    "concurrency",
    "interrupts",
    "extras",
    "checks",
    "files",
    "hierarchy",
    "losses",
    "heads",
    "calls",
    "copies",
    "networks",
    "cloning",
    "rules",
    "shadow_step",
    "inner_step",
    "passes",
    "ranks",
    "reduction",
    "sync_norm",
    "derivatives",
    "random_numbers",
    "plain",
    "snapshots",
    "meter",
    "micro_batches",
    "tape",
    "forward_mode",
    "finite_difference",
    "compiled_pass",
    "inner_pass",
    "hypergradient",
    "cosine",
    "updates",
    "origins",
    "steps",
    "learner",
    "algorithm",
    "maxl",
    "differences",
    "probes",
    "model_check",
    "sources",
    "kmeans",
    "agreement",
    "metrics",
    "label_meter",
    "watch",
    "measures",
    "loggers",
    "history",
    "settings",
    "clock",
    "checkpoint_file",
    "checkpoints",
    "batches",
    "evaluation",
    "replay",
    "schedules",
    "progress",
    "run_state",
    "run",
    "training",
    "reporting.samples",
    "reporting.comparison",
    "reporting.evidence",
    "reporting.summary",
    "reporting.figures",
    "reporting.curves",
    "reporting.maps",
    "reporting.gallery",
    "reporting.embedding",
    "reporting.run_figures",
    "reporting.sample_figures",
    "reporting.sections",
    "reporting.page",
    "reports",
    "lightning",
    "__init__",
)
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
TARGETS = ("demo", "docs", "bench", "faults", "test", "oldest", "lint", "package", "clean", "help")


def run(*command: str) -> str:
    """What a command run at the root of the repository prints; the test fails with its errors if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imported_rooms(source: str, room: str = "") -> set[str]:
    """Names of our own modules that a room's source imports, at the top or inside a function."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = room.split(".")[: -node.level]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            names = [".".join([*folder, module]) for module in modules]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = own_names([node.module])
        elif isinstance(node, ast.Import):
            names = own_names([alias.name for alias in node.names])
        rooms.update(name if name in ROOMS else "__init__" for name in names)
    return rooms


def own_names(modules: list[str]) -> list[str]:
    """Absolute names inside maxl_l2l without that prefix; the package itself becomes ``__init__``."""
    parts = [module.split(".") for module in modules]
    return [".".join(part[1:]) or "__init__" for part in parts if part[0] == "maxl_l2l"]


def not_to_the_left(room: str, imported: set[str]) -> set[str]:
    return {other for other in imported if ORDER.index(other) >= ORDER.index(room)}


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
    assert shipped == {f"{room.replace('.', '/')}.py" for room in ROOMS} | {"py.typed", "reporting/__init__.py"}
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


@pytest.mark.parametrize("room", ROOMS)
def test_module_imports_only_modules_before_it(room: str) -> None:
    assert room in ORDER, f"give maxl_l2l/{room}.py its place in ORDER"
    source = (PACKAGE / f"{room.replace('.', '/')}.py").read_text()
    assert not_to_the_left(room, imported_rooms(source, room)) == set()


@pytest.mark.parametrize(
    "source",
    [
        "from .maxl import MAXL",
        "from . import maxl",
        "from . import MAXL",
        "from maxl_l2l import MAXL",
        "from maxl_l2l.maxl import MAXL",
        "import maxl_l2l.learners.maxl",
        "def late():\n    from .maxl import MAXL",
        "from .losses import entropy_loss",
    ],
)
def test_import_to_the_right_of_any_spelling_is_seen(source: str) -> None:
    assert not_to_the_left("losses", imported_rooms(source)) != set()


@pytest.mark.parametrize("source", ["from .page import page", "from ..lightning import LightningMAXL"])
def test_import_to_the_right_from_a_folder_is_seen(source: str) -> None:
    assert not_to_the_left("reporting.maps", imported_rooms(source, "reporting.maps")) != set()
    assert imported_rooms("from ..losses import focal_loss", "reporting.maps") == {"losses"}


def test_folder_of_rooms_holds_nothing_itself() -> None:
    tree = ast.parse((PACKAGE / "reporting" / "__init__.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]


def test_imports_of_others_and_to_the_left_pass() -> None:
    source = "import torch\nfrom torch import nn\nfrom .hierarchy import Hierarchy\nfrom .errors import NonFiniteError"
    assert imported_rooms(source) == {"hierarchy", "errors"}
    assert not_to_the_left("losses", imported_rooms(source)) == set()


@pytest.mark.parametrize("name", maxl_l2l.__all__)
def test_public_name_exists_and_has_a_docstring_of_its_own(name: str) -> None:
    docstring = getattr(maxl_l2l, name).__doc__
    assert docstring
    assert not docstring.startswith(f"{name}("), "this is what a dataclass generates"


@pytest.mark.parametrize("room", ROOMS)
def test_docstring_examples_run(room: str) -> None:
    module = maxl_l2l if room == "__init__" else importlib.import_module(f"maxl_l2l.{room}")
    assert doctest.testmod(module, extraglobs=public_globals()).failed == 0


def test_make_alone_lists_the_targets() -> None:
    listed = dict(re.findall(r"^make (\w+) +(\S.*)$", run("make", "--no-print-directory"), flags=re.MULTILINE))
    assert set(listed) == set(TARGETS)
