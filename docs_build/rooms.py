"""Rooms: the API reference, a page for each module of the package, made when the site is built."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "maxl_l2l"
TITLE = "API reference"
# A group ends with the room named here and begins with what that needs and no group above has; the last has the rest.
GROUPS = {
    "The paper's losses": "losses",
    "The two networks": "networks",
    "The hypergradient": "hypergradient",
    "The learner": "maxl",
    "The model check": "model_check",
    "The training loop": "training",
    "The report": "reports",
}
REST = "Around it"
ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def on_config(config: MkDocsConfig) -> None:
    """Puts the rooms into the navigation, in groups."""
    groups = [{title: [{room: f"api/{room}.md"} for room in rooms]} for title, rooms in grouped().items()]
    for entry in config.nav or []:
        if isinstance(entry, dict) and TITLE in entry:
            entry[TITLE] = [entry[TITLE], *groups]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds a page for each room, and one of the public names."""
    files.append(File.generated(config, "api/index.md", content=index()))
    for room in (room for rooms in grouped().values() for room in rooms):
        files.append(File.generated(config, f"api/{room}.md", content=f"::: maxl_l2l.{room}\n"))


def index() -> str:
    """The page of the public names, and of the rooms in the order in which data flow."""
    rows = [
        f"| [`{name}`][maxl_l2l.{room}.{name}] | {sentence} | [{room}]({room}.md) |"
        for name, room, sentence in public_names()
    ]
    lines = [f"# {TITLE}", "", "::: maxl_l2l", "    options:", "      members: false"]
    lines += ["      show_root_heading: false", "      show_source: false"]
    lines += ["", "## Public names", "", "What `maxl_l2l` itself exports. The rest may change.", ""]
    lines += ["| Name | Is | Module |", "|---|---|---|", *rows, "", "## Modules", ""]
    lines += ["Each uses only what stands above it: data flow downwards.", ""]
    for title, rooms in grouped().items():
        lines += [f"### {title}", "", "| Module | Is |", "|---|---|"]
        lines += [f"| [{room}]({room}.md) | {first_sentence(tree_of(room))} |" for room in rooms] + [""]
    return "\n".join(lines)


def grouped() -> dict[str, list[str]]:
    """The rooms of each group, each room after those that it imports."""
    taken: list[str] = []
    groups: dict[str, list[str]] = {}
    for title, last in GROUPS.items():
        groups[title] = [room for room in with_imports(last, []) if room not in taken]
        taken += groups[title]
    rest: list[str] = []
    for room in sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__"):
        with_imports(room, rest)
    groups[REST] = [room for room in rest if room not in taken]
    return groups


def with_imports(room: str, found: list[str]) -> list[str]:
    """Adds a room and all that it needs to a list, what is imported first."""
    if room not in found:
        for other, _ in imports(tree_of(room), room):
            with_imports(other, found)
        found.append(room)
    return found


def public_names() -> Iterator[tuple[str, str, str]]:
    """Each public name in the package's own order, its room, and the first sentence of its docstring."""
    root = tree_of("__init__")
    room_of = {name: room for room, names in imports(root) for name in names}
    listed = next(node.value for node in root.body if isinstance(node, ast.Assign) and _is_all(node.targets[0]))
    for name in ast.literal_eval(listed):
        tree = tree_of(room_of[name])
        kinds = (ast.FunctionDef, ast.ClassDef)
        node = next(node for node in tree.body if isinstance(node, kinds) and node.name == name)
        yield name, room_of[name], first_sentence(node)


def imports(tree: ast.Module, room: str = "") -> list[tuple[str, list[str]]]:
    """The rooms that a room imports, and which names of each."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    folders = [room.split(".")[: -node.level] for node in nodes]
    return [
        (".".join([*folder, node.module]), [alias.name for alias in node.names])
        for folder, node in zip(folders, nodes)
        if node.module
    ]


def tree_of(room: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8"))


def first_sentence(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """The first sentence of a docstring, which may go over several lines, for a cell of a table."""
    first = (ast.get_docstring(node) or "").split("\n\n")[0]
    return ROLE.sub(r"`\1`", " ".join(first.split())).replace("``", "`").replace("|", "\\|")


def _is_all(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "__all__"
