"""Every Python snippet of every page in docs runs: in order, in one namespace for each page."""

import json
import re
import socket
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
FENCE = re.compile(r"^(```+)[ \t]*(.*?)[ \t]*\n(.*?)^\1[ \t]*$", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """The language, the code and the line number of each block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(match[2], match[3], text.count("\n", 0, match.start(3))) for match in FENCE.finditer(text)]


@pytest.fixture
def _only_process(monkeypatch):
    """The environment that torchrun gives to a single process, for pages about several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


# The tutorial runs as a notebook, in test_tutorial.py.
@pytest.mark.parametrize("page", [page for page in PAGES if page != "tutorial.md"])
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
    assert others <= {"sh", "text", "json", "bibtex", "diff", "math"}


def result(name):
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def row(name, **wanted):
    """The row of a file of results that has these entries."""
    rows = result(name).get("summary") or result(name)["rows"]
    return next(one for one in rows if wanted.items() <= one.items())


def points(gain, error, digits=2):
    return f"{100 * gain:+.{digits}f} ± {100 * error:.{digits}f} pp"


def test_the_first_page_quotes_the_results():
    text = " ".join((DOCS / "index.md").read_text(encoding="utf-8").split())
    maxl, control = (row("digits.json", source=source) for source in ("maxl", "entropy"))
    assert f"Over 24 seeds MAXL gains {points(maxl['difference'], maxl['difference_se'])} on this task" in text
    assert f"without the meta gradient {points(control['difference'], control['difference_se'])};" in text
    assert len(result("digits.json")["settings"]["seeds"]) == 24


def test_questions_are_answered_with_the_results():
    text = " ".join((DOCS / "questions.md").read_text(encoding="utf-8").split())
    for name in ("digits.json", "digits-lr-0.02.json", "digits-gamma-0.json"):
        maxl = row(name, source="maxl")
        gain, over_control = points(maxl["difference"], maxl["difference_se"]), result(name)["maxl_over_entropy"]
        assert f"| {gain} | {points(*over_control)} | 24 | [{name}]({name})" in text
    cifar = row("cifar100-small.json", label="maxl")
    assert f"| {points(*cifar['gain'])} | {points(*cifar['gain_over_control'])} | {len(cifar['seeds'])} |" in text
    scenes = row("segmentation.json", source="Invented labels")
    assert f"| {points(*scenes['gain'])} | {points(*scenes['gain_over_entropy'])} | 16 |" in text
    few, slow = (row(name, algorithm="MAML", labels="generated") for name in ("few_shot.json", "few_shot-lr-0.1.json"))
    assert f"| {points(few['gain'], few['gain_se'], 1)} | | 8 |" in text
    assert f"gained {points(slow['gain'], slow['gain_se'], 1)} at a rate that was too small" in text
    human, kmeans, random, maxl = (row("digits.json", source=one) for one in ("human", "kmeans", "random", "maxl"))
    assert f"is {maxl['nmi']:.2f} (normalised), where random sub-classes have {random['nmi']:.2f}" in text
    assert f"k-means clusters {kmeans['nmi']:.2f}" in text
    assert f"people gave ({human['nmi']:.2f}) gained less there" in text
    assert human["difference"] < maxl["difference"]


def test_the_page_on_metrics_quotes_what_they_cost():
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    measured = json.loads((DOCS.parent / "benchmarks" / "results" / "cpu-metrics.json").read_text(encoding="utf-8"))
    wide, small = ({row["entrant"]: row["ratio"]["median"] for row in part["rows"]} for part in measured["metrics"])
    for entrant in ("metrics", "cosine-10", "cosine"):
        assert f"| {wide[entrant]:.3f} | {small[entrant]:.3f} |" in text
