"""The documentation as a site: every link leads somewhere, it builds strictly, and nothing is loaded from elsewhere."""

import ast
import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import maxl_l2l
from docs_build import api, outside, packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which import-linter brings

ROOT = Path(__file__).parents[2]
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


def modules():
    """Every module of the package with its parts below ``maxl_l2l``, those of packages without ``__init__``."""
    package = ROOT / "maxl_l2l"
    paths = [path.relative_to(package) for path in package.rglob("*.py")]
    parts = [path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts for path in paths]
    return sorted(found for found in parts if found)


def api_page(module):
    """Where the page of a module or a package is, below the site."""
    path = "/".join(module.removeprefix("maxl_l2l").strip(".").split("."))
    return f"api/{path}/index.html" if (ROOT / "maxl_l2l" / path).is_dir() else f"api/{path}.html"


def test_every_page_and_every_module_is_on_the_site(site):
    pages = {path.relative_to(site).as_posix() for path in (site / "api").rglob("*.html")}
    expected = {api_page(".".join(module)) for module in modules()}
    assert pages == expected | {"api/index.html"}
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
        assert f'href="{page.stem}.html"' in index or page.stem == "index", (
            f"give docs/{page.name} its place in mkdocs.yml"
        )
    assert all(f'href="{page}"' in index for page in expected)


class Navigation(HTMLParser):
    """Collects the titles that the navigation of the API reference shows at once, and those that it folds."""

    def __init__(self, page):
        super().__init__()
        self.open, self.shown, self.folded = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "nav" and "data-md-level" in attrs:
            self.open.append(attrs.get("aria-expanded") != "false")
        elif tag == "nav":
            self.open.append(True)
        elif tag == "a" and "md-nav__link" in attrs.get("class", "") and len(self.open) > 1:
            (self.shown if all(self.open) else self.folded).append(attrs["href"])

    def handle_endtag(self, tag):
        if tag == "nav":
            self.open.pop()


def test_the_navigation_shows_packages_and_folds_their_modules(site):
    found = Navigation((site / "api" / "index.html").read_text(encoding="utf-8"))
    top = [page for page in found.shown if not page.startswith("../")]
    order = [name for layer in api.layers((ROOT / "pyproject.toml").read_text(encoding="utf-8")) for name in layer]
    assert [page for page in top if not page.startswith("#") and page != "index.html"] == [
        api_page(name).removeprefix("api/") for name in order
    ]
    below = {api_page(".".join(module)).removeprefix("api/") for module in modules() if len(module) > 1}
    assert below <= set(found.folded)
    inside = Navigation((site / "api" / "inner_step" / "rules.html").read_text(encoding="utf-8"))
    assert {"index.html", "look_ahead.html"} <= set(inside.shown)
    assert "../labels/losses.html" in inside.folded


def test_the_api_reference_begins_with_the_public_names_and_folds_the_packages(site):
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert page.index('id="public-names"') < page.index('id="packages"')
    packages = re.findall(r'<details class="package">\s*<summary><strong>(\w+)</strong>: (.*?)</summary>', page)
    folders = [name for name in api.in_order() if (ROOT / "maxl_l2l" / name).is_dir()]
    assert [name for name, _ in packages] == folders
    words = dict(packages)
    for name in folders:
        code = (ROOT / "maxl_l2l" / name / "__init__.py").read_text(encoding="utf-8")
        opening = re.split(r"`|:\w+:|\n\n", ast.get_docstring(ast.parse(code)))[0]
        assert html.unescape(words[name]).startswith(" ".join(opening.split()))
    assert 'href="inner_step/rules.html#maxl_l2l.inner_step.rules"' in page


def test_layers_of_the_contract_are_read_as_toml_reads_them():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (contract,) = [one for one in tomllib.loads(text)["tool"]["importlinter"]["contracts"] if "layers" in one]
    assert [" | ".join(layer) for layer in api.layers(text)] == contract["layers"]
    assert sorted(api.in_order()) == sorted({module[0] for module in modules()})


@pytest.mark.parametrize("text", ["", 'layers = [\n"a",\n]\nlayers = [\n"b",\n]\n'])
def test_a_contract_that_is_missing_or_there_twice_is_named(text):
    with pytest.raises(ValueError, match="one contract with layers, found"):
        api.layers(text)


def test_contributing_has_the_picture_of_the_contract():
    page = packages.PAGE.read_text(encoding="utf-8")
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert packages.with_picture(page, contract) == page, "run python -m docs_build.packages"
    assert page.count(packages.BEGIN) == page.count(packages.END) == 1


def test_the_picture_shows_each_layer_and_what_its_packages_are():
    drawn = packages.picture('layers = [\n    "labels | distributed",\n    "errors",\n]\n').split("\n")
    assert (drawn[0], drawn[-2:]) == ("```text", ["```", ""])
    names = [line.split()[0] for line in drawn[1:-2] if line[:1].strip()]
    assert names == ["labels", "distributed", "errors"]
    assert drawn.index(packages.ARROW) > next(row for row, line in enumerate(drawn) if line.startswith("distributed"))
    assert drawn.count(packages.ARROW) == 1
    assert max(map(len, drawn)) <= packages.WIDTH
    losses = "The paper's labels and losses, tensors in and tensors out."
    assert losses in " ".join(" ".join(drawn).split())


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("docs/models.md", "models.md"),
        ("maxl_l2l", "api/index.md"),
        ("maxl_l2l/__init__.py", "api/index.md"),
        ("maxl_l2l/inner_step", "api/inner_step/index.md"),
        ("maxl_l2l/inner_step/__init__.py", "api/inner_step/index.md"),
        ("maxl_l2l/inner_step/rules.py", "api/inner_step/rules.md"),
        ("maxl_l2l/errors.py", "api/errors.md"),
        ("setup.py", "source/setup.py.md"),
        ("examples", "source/examples.md"),
        ("README.md", "source/README.md"),
    ],
)
def test_paths_of_the_repository_have_their_place_on_the_site(path, uri):
    assert outside.uri_of(path) == uri


@pytest.mark.parametrize("name", maxl_l2l.__all__)
def test_a_public_name_is_described_on_the_page_of_its_module_and_linked_from_the_index(site, name):
    module = getattr(maxl_l2l, name).__module__
    path = api_page(module)
    assert f'id="{module}.{name}"' in (site / path).read_text(encoding="utf-8")
    index = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert f'href="{path.removeprefix("api/")}#{module}.{name}"' in index


def test_a_package_has_a_page_with_what_it_exports(site):
    page = (site / "api" / "inner_step" / "index.html").read_text(encoding="utf-8")
    assert 'href="look_ahead.html#maxl_l2l.inner_step.look_ahead.InnerStep"' in page
    assert 'href="rules.html#maxl_l2l.inner_step.rules"' in page
    assert "one step of the live optimizer, as a differentiable function" in page


def test_a_public_function_has_its_signature_parameters_and_example(site):
    page = (site / "api" / "labels" / "losses.html").read_text(encoding="utf-8")
    names = ("focal_loss", "focal_loss_per_sample")
    start, end = (page.index(f'id="maxl_l2l.labels.losses.{name}"') for name in names)
    text = " ".join(Loads(page[start:end]).text.split())
    assert "focal_loss( logits: Tensor, target: Tensor, gamma: float = 2.0 ) -> Tensor" in text
    assert "Parameters:" in text
    assert "Focusing exponent, >= 0." in text
    assert "Examples:" in text
    assert "tensor(0.1733)" in text


def test_roles_of_docstrings_are_links_and_their_sessions_are_code(site):
    pages = {path.relative_to(site): path.read_text(encoding="utf-8") for path in (site / "api").rglob("*.html")}
    role = r":(func|class|meth|attr|data|mod):|<blockquote>|```pycon"
    assert [name for name, page in pages.items() if re.search(role, page)] == []
    page = (site / "api" / "training" / "fitting.html").read_text(encoding="utf-8")
    target = "../sources/generated.html#maxl_l2l.sources.generated.GeneratedLabels"
    assert re.search(rf'href="{target}"[^>]*><code>GeneratedLabels', page)
    package = (site / "api" / "inner_step" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'href="rules.html#maxl_l2l.inner_step.rules"[^>]*><code>rules', package)


def test_formulas_are_shown_without_a_script(site):
    page = (site / "how_it_works.html").read_text(encoding="utf-8")
    source = (ROOT / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    assert page.count("<math ") == source.count("```math\n") > 0
    assert not re.search(r"\\[a-z]", "".join(re.findall(r"<math .*?</math>", page, flags=re.DOTALL)))
