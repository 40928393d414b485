"""Makes the tutorial's notebook from its page, runs it, and keeps the page's figures.

Run: python docs_build/notebook.py
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, NOTEBOOK, FIGURES = DOCS / "tutorial.md", DOCS / "tutorial.ipynb", DOCS / "tutorial"


def notebook() -> Any:
    """The page as a notebook that has not run: a cell for each block of Python; figures are its cells' output."""
    page = PAGE.read_text(encoding="utf-8")
    text = re.sub(r"^!\[.*\]\(.*\)\n\n?", "", page, flags=re.MULTILINE)
    text = re.sub(r"\sThe\ssame\sas\sa\snotebook,\swith\sits\soutput:\s\[.*\]\(.*\)\.", "", text)
    found = jupytext.reads(text, fmt="md")
    for number, cell in enumerate(found.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.NotebookNode()
    found.metadata = nbformat.NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python"},
    )
    return found


def run(unrun: Any, folder: Path) -> Any:
    """Runs a notebook in a folder; raises CellExecutionError if a cell does."""
    client = NotebookClient(unrun, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    done = client.execute()
    for cell in done.cells:
        cell.metadata.pop("execution", None)  # when it ran
    return done


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = run(notebook(), Path(folder))
        nbformat.write(done, NOTEBOOK)
        FIGURES.mkdir(exist_ok=True)
        for name in re.findall(r"^!\[.*\]\(tutorial/(.*)\)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
            shutil.copyfile(Path(folder) / "out" / "report" / "figures" / name, FIGURES / name)
    print(f"Written: {NOTEBOOK} and the figures of {PAGE}")


if __name__ == "__main__":
    main()
