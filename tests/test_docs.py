"""Every Python snippet of every page in docs runs: in order, in one namespace a page."""

import re
import socket
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
FENCE = re.compile(r"^(```+)[ \t]*(.*?)[ \t]*\n(.*?)^\1[ \t]*$", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """The language, the code and the line number of each block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(match[2], match[3], text.count("\n", 0, match.start(3))) for match in FENCE.finditer(text)]


@pytest.fixture
def _only_process(monkeypatch):
    """What torchrun tells the only process that it starts, for pages about several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("_only_process")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_snippets_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, code, line in blocks(page):
        if language == "python":
            # The empty lines make a traceback name the line of the page.
            exec(compile("\n" * line + code, str(DOCS / page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES)
def test_no_block_of_python_is_passed_over(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*(```|~~~)", text, flags=re.MULTILINE)) == 2 * len(blocks(page))
    others = {language for language, _, _ in blocks(page)} - {"python"}
    assert others <= {"sh", "text", "json", "bibtex"}
