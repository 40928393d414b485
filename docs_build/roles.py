"""Roles: what docstrings write in Sphinx's way, such as ``:func:`fit```, as cross references of this site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`(~?)([\w.]+)`")
EXAMPLE = re.compile(r"^(\s*)Example:$", flags=re.MULTILINE)
LITERAL = re.compile(r"::$", flags=re.MULTILINE)
SESSION = re.compile(r"(?:\A|(?<=\n\n))>>> .*(?:\n.+)*")


class Roles(griffe.Extension):
    """Rewrites each docstring before it is parsed.

    A role becomes a link to what it names, or code if that has no place on the site. ``Example:`` becomes the section
    that holds code, a session outside of one a block of code, and two colons before an indented block become one.
    """

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        rewrite(obj)
        if obj.parent is obj.package:  # griffe announces every object but the package itself
            rewrite(obj.package)

    def on_module(self, *, mod: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """In the source code that is shown, a role is plain code."""
        if isinstance(mod.filepath, Path):
            loader.lines_collection[mod.filepath] = [ROLE.sub(r"``\2``", line) for line in mod.lines]


def rewrite(obj: griffe.Object) -> None:
    """Rewrites an object's docstring; to do it twice changes nothing more."""
    if obj.docstring is not None:
        text = ROLE.sub(lambda role: link(role[1] == "~", role[2], obj), obj.docstring.value)
        text = SESSION.sub(r"```pycon\n\g<0>\n```", EXAMPLE.sub(r"\1Examples:", text))
        obj.docstring.value = LITERAL.sub(":", text)


def link(short: bool, name: str, scope: griffe.Object) -> str:
    """Returns the Markdown for a name as it is written in the docstring of an object."""
    shown = name.rsplit(".", maxsplit=1)[-1] if short else name
    found = named(name, scope)
    return f"`{shown}`" if found is None else f"[`{shown}`][{found.canonical_path}]"


def named(name: str, scope: griffe.Object) -> griffe.Object | None:
    """Finds what a name stands for where an object is documented; None if it is private or not of this package."""
    package, path = scope.package, name.split(".")
    places = [scope, *parents(scope), package, *modules(package)]
    for place in places:
        found: Any = place if path[0] != package.name else package
        try:
            for part in path[path[0] == package.name :]:
                found = found.all_members[part] if found.is_class else found.members[part]
            found = found.final_target if found.is_alias else found
        except (KeyError, griffe.AliasResolutionError):
            continue
        hidden = any(part.startswith("_") for part in found.canonical_path.split("."))
        return None if hidden or not found.has_docstring else found
    return None


def parents(obj: griffe.Object) -> list[griffe.Object]:
    """The class and the module that an object is in."""
    return [] if obj.parent is None else [obj.parent, *parents(obj.parent)]


def modules(package: griffe.Object) -> list[griffe.Object]:
    """The modules below a package, at any depth."""
    own = [module for module in package.modules.values() if not module.is_alias]
    return [found for module in own for found in [module, *modules(module)]]
