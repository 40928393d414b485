"""The tutorial: its notebook is its page, and runs."""

import base64
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("notebook", ROOT / "docs_build" / "notebook.py")
building = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(building)


def test_notebook_has_the_cells_of_the_page_and_their_output():
    committed, expected = nbformat.read(building.NOTEBOOK, as_version=4), building.notebook()
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ]
    blocks = re.findall(r"^```python\n(.*?)^```$", building.PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [cell.source for cell in committed.cells if cell.cell_type == "code"] == [code.rstrip() for code in blocks]
    outputs = [output for cell in committed.cells for output in cell.get("outputs", [])]
    figures = re.findall(r"\(tutorial/(.*?)\)", building.PAGE.read_text())
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(figures) == 6
    assert not any(output.output_type == "error" for output in outputs)
    nbformat.validate(committed)


def test_figures_of_the_page_are_those_of_the_notebook():
    committed = nbformat.read(building.NOTEBOOK, as_version=4)
    shown = [
        output.data["image/png"]
        for cell in committed.cells
        for output in cell.get("outputs", [])
        if "data" in output and "image/png" in output.data
    ]
    names = re.findall(r"\(tutorial/(.*?)\)", building.PAGE.read_text())
    for name, image in zip(names, shown, strict=True):
        assert base64.b64decode(image) == (building.FIGURES / name).read_bytes(), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_notebook_runs(tmp_path):
    done = building.run(building.notebook(), tmp_path)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert (tmp_path / "out" / "report" / "index.html").stat().st_size < 3e6
    assert (tmp_path / "out" / "model.pt2").is_file()
