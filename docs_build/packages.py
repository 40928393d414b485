"""The picture of the packages in docs/contributing.md, drawn from the import contract in pyproject.toml.

Run: python -m docs_build.packages
"""

from __future__ import annotations

import textwrap

from docs_build.api import ROOT, first, layers, reference

PAGE = ROOT / "docs" / "contributing.md"
BEGIN, END = "<!-- packages -->\n", "<!-- /packages -->\n"
WIDTH = 84
ARROW = "    ↓"


def picture(contract: str) -> str:
    """A block of text that describes each package: the layers from the highest to the lowest, with arrows between."""
    levels = layers(contract)
    column = 2 + max(len(name) for level in levels for name in level)
    drawn = ["\n".join(described(name, column) for name in level) for level in levels]
    return "```text\n" + f"\n{ARROW}\n".join(drawn) + "\n```\n"


def described(name: str, column: int) -> str:
    """A package, and from a column on what its docstring says of it first."""
    words = first(reference()[name]).replace("`", "")
    start, rest = name.ljust(column), " " * column
    return textwrap.fill(words, WIDTH, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False)


def with_picture(page: str, contract: str) -> str:
    """The page with the picture between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + picture(contract) + END + after


def main() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    PAGE.write_text(with_picture(PAGE.read_text(encoding="utf-8"), contract), encoding="utf-8")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
