"""Files outside of docs that a page links to: published under source/, so that links work on GitHub and on the site.

Code becomes a page that shows it, a folder a list of its files; figures and results are copied.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = "maxl_l2l"  # its pages are made by api.py
ALWAYS = ("CHANGELOG.md", "benchmarks/README.md")
LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", "": "make"}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds a page, or a copy, of each file outside that is linked to, directly or from one of these."""
    waiting = [*ALWAYS]
    for file in files.documentation_pages():
        waiting += linked_outside(file.content_string, posixpath.join("docs", file.src_uri))
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        uri = uri_of(path)
        if uri.endswith(".md"):
            text = page_of(path)
            waiting += linked_outside(text, path)
            files.append(File.generated(config, uri, content=published(text, path)))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads a page's links to where the files outside are published."""
    return published(markdown, posixpath.join("docs", page.file.src_uri))


def page_of(path: str) -> str:
    """The text of the page for a file or a folder, with its links as they are in the repository."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(found.name for found in place.iterdir() if found.suffix in LANGUAGES and found.is_file())
        title, text = path, "\n".join(f"- [{name}]({posixpath.basename(path)}/{name})" for name in names)
    elif place.suffix == ".md":
        return place.read_text(encoding="utf-8")
    else:
        language, code = LANGUAGES[place.suffix], place.read_text(encoding="utf-8")
        title, text = path, f"`````{language}\n{code.rstrip()}\n`````"
    return f"---\nsearch:\n  exclude: true\n---\n\n# {title}\n\n{text}\n"


def uri_of(path: str) -> str:
    """Where a path of the repository is on the site: a page of docs, one of the API reference, or a file outside."""
    place = ROOT / path
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if is_code(path):
        module = posixpath.join("api", posixpath.relpath(path, PACKAGE))
        package = posixpath.join(module, "__init__.py") if place.is_dir() else module
        return posixpath.normpath(package).removesuffix(".py").replace("__init__", "index") + ".md"
    shown = place.is_dir() or place.suffix in LANGUAGES
    return f"source/{path}.md" if shown else f"source/{path}"


def published(text: str, path: str) -> str:
    """Returns the text of a page of the repository with its links as they must be on the site."""
    start = posixpath.dirname(uri_of(path))

    def moved(match: re.Match[str]) -> str:
        target = repository_path(match[1], path)
        return match[0] if target is None else posixpath.relpath(uri_of(target), start or ".") + match[2]

    return LINK.sub(moved, text)


def linked_outside(text: str, path: str) -> Iterator[str]:
    """Paths outside of docs that the text of a page of the repository links to."""
    for match in LINK.finditer(text):
        target = repository_path(match[1], path)
        if target is not None and not target.startswith("docs/") and not is_code(target):
            yield target


def is_code(path: str) -> bool:
    """Whether a path is the package, or a package or a module in it."""
    return path == PACKAGE or path.startswith(f"{PACKAGE}/")


def repository_path(link: str, path: str) -> str | None:
    """What a link of a page leads to in the repository; None if that is not there or is on the web."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    inside = not target.startswith(("..", "/")) and not link.startswith("/")
    return target if inside and (ROOT / target).exists() else None
