"""The API reference: the public names first, then a page for each package, and one for each module below its package's.

The packages come in the order of the import contract in pyproject.toml, so that each imports only what comes after it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
NAME = "maxl_l2l"
TITLE = "API reference"
LAYERS = re.compile(r"^layers = (\[.*?^\])", flags=re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":\w+:`~?([\w.]+)`")


def on_config(config: MkDocsConfig) -> None:
    """Puts the packages into the navigation, each with its modules folded below it."""
    reference.cache_clear()  # `mkdocs serve` builds anew when a file has changed
    packages = [{name: entry(name)} for name in in_order()]
    for place in config.nav or []:
        if isinstance(place, dict) and TITLE in place:
            place[TITLE] = [place[TITLE], *packages]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the page of the public names, and one for each package and each module."""
    files.append(File.generated(config, "api/index.md", content=index()))
    for name in in_order():
        package = reference()[name]
        modules = below(package)
        content = package_page(package) if modules else f"::: {package.path}\n"
        files.append(File.generated(config, uri(package), content=content))
        for module in modules:
            files.append(File.generated(config, uri(module), content=f"::: {module.path}\n"))


def layers(contract: str) -> list[list[str]]:
    """The packages in each layer of the import contract, from the highest layer to the lowest.

    Args:
        contract: The text of pyproject.toml. Its list of strings is one of Python too; ``tomllib`` needs Python 3.11.

    Raises:
        ValueError: There is no list of layers, or more than one.
    """
    found = LAYERS.findall(contract)
    if len(found) != 1:
        raise ValueError(f"pyproject.toml must have one contract with layers, found {len(found)}.")
    return [[name.strip() for name in re.split(r"[|:]", layer)] for layer in ast.literal_eval(found[0])]


def in_order() -> list[str]:
    """All packages, and the modules that are in none, in the order of the contract."""
    return [name for layer in layers((ROOT / "pyproject.toml").read_text(encoding="utf-8")) for name in layer]


def entry(name: str) -> Any:
    """A package's place in the navigation: its own page and those of its modules."""
    package = reference()[name]
    modules = [{module.name: uri(module)} for module in below(package)]
    return [uri(package), *modules] if modules else uri(package)


def index() -> str:
    """The page of the public names, with the packages folded below them."""
    lines = [f"# {TITLE}", "", f"::: {NAME}", "    options:", "      members: false"]
    lines += ["      show_root_heading: false", "      show_root_toc_entry: false", "      show_source: false"]
    lines += ["", "## Public names", "", f"What `{NAME}` itself exports. The rest may change.", ""]
    lines += [*names_table(reference()), "", "## Packages", ""]
    lines += ["A package imports only from packages that stand after it here. Open one to see its modules.", ""]
    packages = [reference()[name] for name in in_order()]
    for package in packages:
        if below(package):
            summary = f'<summary markdown="span">**{package.name}**: {first(package)}</summary>'
            lines += [
                '<details class="package" markdown="1">',
                summary,
                "",
                f"[The package `{package.name}`][{package.path}]",
                "",
            ]
            lines += [*modules_table(below(package)), "", "</details>", ""]
    lines += ["## Modules that are in no package", ""]
    lines += modules_table([module for module in packages if not below(module)])
    return "\n".join(lines) + "\n"


def package_page(package: griffe.Module) -> str:
    """What a package is for, what it hands on, and its modules."""
    lines = [f"::: {package.path}", "    options:", "      members: false", "      show_source: false"]
    lines += ["", "## Names", "", f"What other packages import from `{package.path}`.", ""]
    lines += [*names_table(package), "", "## Modules", "", *modules_table(below(package))]
    return "\n".join(lines) + "\n"


def names_table(package: griffe.Module) -> Iterator[str]:
    """A row for each name that a package exports: what it is, and the module that defines it."""
    yield from ("| Name | Is | Module |", "|---|---|---|")
    for found in exported(package):
        name = found.name
        shown = f"[`{name}`][{found.path}]" if found.has_docstring else f"`{name}`"
        module = found.module
        label = module.path.removeprefix(f"{NAME}.")
        yield f"| {shown} | {first(found)} | [{label}][{module.path}] |"


def exported(package: griffe.Module) -> list[griffe.Object]:
    """What a package lists in ``__all__``, or else what it imports from its own modules."""
    own = [name for name, path in package.imports.items() if path.startswith(f"{package.path}.")]
    names = own if package.exports is None else map(str, package.exports)
    found = [package[name] for name in names]
    return [one.final_target if one.is_alias else one for one in found]


def modules_table(modules: Iterable[griffe.Module]) -> Iterator[str]:
    """A row for each module: its name, and what it is."""
    yield from ("| Module | Is |", "|---|---|")
    yield from (f"| [{module.name}][{module.path}] | {first(module)} |" for module in modules)


@functools.cache
def reference() -> griffe.Module:
    """The package as griffe reads it, without importing it."""
    found = griffe.load(NAME, search_paths=[ROOT], resolve_aliases=True)
    assert isinstance(found, griffe.Module)
    return found


def below(package: griffe.Module) -> list[griffe.Module]:
    """A package's modules, by name; none for a module."""
    modules = [found for found in package.members.values() if isinstance(found, griffe.Module)]
    return sorted(modules, key=lambda module: module.name)


def uri(module: griffe.Module) -> str:
    """Where the page of a package or module is on the site."""
    path = module.path.removeprefix(f"{NAME}.").replace(".", "/")
    return f"api/{path}/index.md" if below(module) else f"api/{path}.md"


def first(found: griffe.Object) -> str:
    """The first paragraph of a docstring in one line, for a cell of a table."""
    text = found.docstring.value if found.docstring else ""
    return ROLE.sub(r"`\1`", " ".join(text.split("\n\n")[0].split())).replace("``", "`").replace("|", "\\|")
