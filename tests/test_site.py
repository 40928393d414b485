"""The documentation as a site: every link leads somewhere, it builds strictly, and nothing is loaded from elsewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import maxl_l2l

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", "benchmarks/README.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))]
HOSTS = {
    "arxiv.org",
    "docs.pytorch.org",
    "github.com",
    "huggingface.co",
    "lightning.ai",
    "openreview.net",
    "pytorch.org",
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Places of a tag's attributes from which a browser loads something when it shows a page.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


def prose(text):
    """A page without its blocks of code and its code in lines, which may look like links and headings."""
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", without_blocks(text))


def without_blocks(text):
    return re.sub(r"^(```+|~~~+).*?^\1[ \t]*$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+[ \t]+(.+?)[ \t]*$", without_blocks(text), flags=re.MULTILINE)
    titles = [LINK.sub("", heading).replace("[", "").replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path):
    """Links of a page that lead to no file beside it or to no heading of one."""
    text = path.read_text(encoding="utf-8")
    found = []
    for link in LINK.findall(prose(text)):
        address, _, anchor = link.partition("#")
        if urlsplit(link).scheme:
            continue
        target = path if not address else (path.parent / address)
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    assert broken_links(ROOT / page) == []


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("other.md", False),
        ("other.md#what-it-costs-in-nats", False),
        ("#here", False),
        ("https://arxiv.org/abs/1901.08933", False),
        ("missing.md", True),
        ("other.md#what-it-costs", True),
        ("other.md#a-comment", True),
        ("#there", True),
        ("folder/other.md", True),
    ],
)
def test_a_link_that_leads_nowhere_is_found(tmp_path, link, is_broken):
    (tmp_path / "other.md").write_text("# Other\n\n## What it costs, in `nats`\n\n```sh\n# A comment\n```\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\nA [link]({link}), `code[0](gone.md)`.\n\n```python\nlayers[0](gone.md)\n```\n")
    assert broken_links(page) == [link] * is_broken


@pytest.mark.parametrize("page", PAGES)
def test_links_to_the_web_are_secure_and_to_known_hosts(page):
    links = [urlsplit(link) for link in LINK.findall(prose((ROOT / page).read_text(encoding="utf-8")))]
    web = [link for link in links if link.scheme or link.netloc]
    assert {link.scheme for link in web} <= {"https"}
    assert {link.netloc for link in web} <= HOSTS


class Loads(HTMLParser):
    """Collects what a page loads from other hosts, and what it shows of text."""

    def __init__(self, page):
        super().__init__()
        self.elsewhere, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(LOADED.get(tag, ""), "")
        if address.startswith(("http:", "https:", "//")):
            self.elsewhere.append(address)

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("page", ['<script src="https://cdn.example/a.js"></script>', '<img src="//a.example/a.png">'])
def test_what_is_loaded_from_elsewhere_is_seen(page):
    assert Loads(page).elsewhere


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = {path.name: Loads(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert {name: page.elsewhere for name, page in pages.items() if page.elsewhere} == {}
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not any(re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style) for style in styles)


def test_every_page_and_every_room_is_on_the_site(site):
    package = ROOT / "maxl_l2l"
    rooms = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.stem != "__init__"
    }
    assert {path.stem for path in (site / "api").glob("*.html")} == rooms | {"index"}
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
        assert f'href="{page.stem}.html"' in index or page.stem == "index", (
            f"give docs/{page.name} its place in mkdocs.yml"
        )
    assert all(f'href="api/{room}.html"' in index for room in rooms)


@pytest.mark.parametrize("name", maxl_l2l.__all__)
def test_a_public_name_is_described_in_its_room_and_linked_from_the_index(site, name):
    room = getattr(maxl_l2l, name).__module__
    page = (site / "api" / f"{room.removeprefix('maxl_l2l.')}.html").read_text(encoding="utf-8")
    assert f'id="{room}.{name}"' in page
    assert f'href="{room.removeprefix("maxl_l2l.")}.html#{room}.{name}"' in (site / "api" / "index.html").read_text()


def test_a_public_function_has_its_signature_parameters_and_example(site):
    page = (site / "api" / "losses.html").read_text(encoding="utf-8")
    part = page[
        page.index('id="maxl_l2l.labels.losses.focal_loss"') : page.index(
            'id="maxl_l2l.labels.losses.focal_loss_per_sample"'
        )
    ]
    text = " ".join(Loads(part).text.split())
    assert "focal_loss( logits: Tensor, target: Tensor, gamma: float = 2.0 ) -> Tensor" in text
    assert "Parameters:" in text
    assert "Focusing exponent, >= 0." in text
    assert "Examples:" in text
    assert "tensor(0.1733)" in text


def test_roles_of_docstrings_are_links_and_their_sessions_are_code(site):
    pages = {path.name: path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html")}
    assert not [
        name for name, page in pages.items() if re.search(r":(func|class|meth|attr|data):|<blockquote>|```pycon", page)
    ]
    page = (site / "api" / "training.html").read_text(encoding="utf-8")
    assert re.search(r'href="sources.html#maxl_l2l.sources.generated.GeneratedLabels"[^>]*><code>GeneratedLabels', page)


def test_formulas_are_shown_without_a_script(site):
    page = (site / "how_it_works.html").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    assert page.count("<math ") == source.count("```math\n") > 0
    assert not re.search(r"\\[a-z]", "".join(re.findall(r"<math .*?</math>", page, flags=re.DOTALL)))
