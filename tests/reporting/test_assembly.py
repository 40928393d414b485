"""The report: one page that needs nothing else, figures that show the right things, and no harm to what is finished."""

import argparse
import base64
import importlib
import inspect
import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import maxl_l2l
from maxl_l2l import MAXL, AuxiliaryLabelGenerator, Hierarchy, History, SingleTask, fit, report
from maxl_l2l.reporting import embedding as embedding_module
from maxl_l2l.reporting.comparison import grouped
from maxl_l2l.reporting.curves import label_curves, learning_curves, recorded
from maxl_l2l.reporting.embedding import Coloring, embedded, embedding, obstacle
from maxl_l2l.reporting.evidence import Evidence
from maxl_l2l.reporting.gallery import COLUMNS, gallery, strongest
from maxl_l2l.reporting.maps import matrix, rows_of, shares, use_map
from maxl_l2l.reporting.run_figures import learning, use
from maxl_l2l.reporting.sample_figures import features, human_classes, pictures
from maxl_l2l.reporting.samples import Samples
from maxl_l2l.reporting.style import look, look_of, png

NAMES = ["learning-curves", "labels", "use", "gallery", "embedding", "human-classes"]
ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a reader's program finds in a page: its text, its images, and every address."""

    def __init__(self, path):
        super().__init__()
        self.text, self.images, self.addresses, self.tags = "", [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes)
        self.addresses += [attributes[key] for key in ("src", "href") if key in attributes]

    def handle_data(self, data):
        self.text += data


def blobs(size, channels=1, seed=0):
    """Images with a bright quarter: which of four it is is the human class, its half the primary one."""
    generator = torch.Generator().manual_seed(seed)
    human = torch.arange(size) % 4
    x = 0.1 * torch.rand(size, channels, 8, 8, generator=generator)
    for number, quarter in enumerate(human.tolist()):
        x[number, :, 4 * (quarter // 2) :, 4 * (quarter % 2) :][..., :4, :4] += 0.8
    return x, human // 2, human


def convnet(channels=1):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 2))


def trained(channels=1, source=None, seed=0, epochs=2, metrics=True):
    x, y, human = blobs(60, channels)
    torch.manual_seed(seed)
    maxl = MAXL(convnet(channels), [2, 3])
    loader = DataLoader(TensorDataset(x, y, human), batch_size=20)
    history = fit(
        maxl, loader, epochs, source=source, seed=seed, test_loader=loader, metrics=metrics, progress=False
    )  # fmt: skip
    return maxl, history, loader


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A report on everything there can be."""
    folder = tmp_path_factory.mktemp("full")
    maxl, history, loader = trained(channels=3)
    histories = [history, trained(3, seed=1)[1], *(trained(3, SingleTask(), seed)[1] for seed in (0, 1))]
    names = ["<b>above</b> & $x", "below"]
    path = report(folder, histories, maxl, loader, class_names=names, human_names=list("abcd"), title="All <there> is")
    return path, Page(path)


def test_page_is_one_file_that_needs_nothing_else(full):
    path, page = full
    text = path.read_text(encoding="utf-8")
    assert path.name == "index.html"
    assert text.startswith("<!DOCTYPE html>")
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)


def test_page_holds_all_figures_each_as_in_its_file_with_an_alternative_text(full):
    path, page = full
    files = {file.stem for file in (path.parent / "figures").iterdir()}
    assert files == set(NAMES)
    for name, image in zip(NAMES, page.images, strict=True):
        content = base64.b64decode(image["src"].split(",")[1])
        assert content == (path.parent / "figures" / f"{name}.png").read_bytes()
        assert Image.open(io.BytesIO(content)).width > 800
        assert len(image["alt"]) > 30
    assert page.tags.count("figcaption") == 6
    assert "Left out" not in page.text


def test_page_answers_the_three_questions_and_escapes_what_is_given(full):
    path, page = full
    for words in ("Did it help?", "What are the invented classes?", "Is anything collapsing?", "All <there> is"):
        assert words in page.text
    assert "<b>above</b> & $x" in page.text
    assert "<b>above" not in path.read_text(encoding="utf-8")


def test_page_has_settings_that_are_shared_and_that_differ_and_versions(full):
    _, page = full
    shared, differing = page.text.split("Settings of all runs")[1].split("Settings that differ")
    assert "schedule" in shared
    assert "[2, 3]" in shared
    assert "source" in differing
    assert "GeneratedLabels" in differing
    assert re.search(r"seed\s*0, 1\s*0, 1", differing)
    for words in ("Python", "numpy", "Platform", str(torch.__version__), np.__version__):
        assert words in differing


def test_signature_is_in_full_and_import_loads_no_drawing_library():
    parameters = inspect.signature(report).parameters
    assert list(parameters)[:4] == ["folder", "histories", "maxl", "loader"]
    assert inspect.isfunction(maxl_l2l.report)
    program = "import sys, maxl_l2l; print([n for n in ('matplotlib', 'sklearn', 'jinja2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "matplotlib" not in done.stdout
    assert "sklearn" not in done.stdout


def test_report_leaves_learner_random_states_and_plots_as_they_were(tmp_path):
    maxl, _, loader = trained(epochs=1, metrics=False)
    maxl.generator.eval()
    (next(maxl.parameters())).grad = torch.ones_like(next(maxl.parameters()))
    before = {name: tensor.clone() for name, tensor in maxl.state_dict().items()}
    modes = [module.training for module in maxl.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in maxl.parameters()]
    matplotlib.rcParams["font.size"] = 23
    settings, states = dict(matplotlib.rcParams), (torch.get_rng_state(), np.random.get_state())
    try:
        report(tmp_path, None, maxl, loader)
        assert dict(matplotlib.rcParams) == settings
    finally:
        matplotlib.rcdefaults()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(one, two) for one, two in zip(np.random.get_state(), states[1]))
    assert [module.training for module in maxl.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in maxl.state_dict().items())
    for p, grad in zip(maxl.parameters(), grads):
        assert (p.grad is None) == (grad is None)
        assert grad is None or torch.equal(p.grad, grad)


def test_report_does_not_touch_pyplot(tmp_path):
    program = (
        "import sys; from maxl_l2l import History, report; "
        f"report({str(tmp_path)!r}, History({{}}, [{{'accuracy': 0.5}}])); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def reasons(tmp_path, *args, **options):
    text = " ".join(Page(report(tmp_path, *args, **options)).text.split())
    return text.split("Left out", 1)[1].split("Settings of")[0].split("Where this report was made")[0]


def test_histories_alone_leave_pictures_out_and_say_why(tmp_path):
    history = History({"source": "GeneratedLabels", "psi": [2, 2]}, [{"accuracy": 0.5, "sub_classes": 3}])
    found = reasons(tmp_path, history)
    assert found.count("no learner was given to look at. Pass maxl= and loader=.") == 3
    assert "no history has recorded how often each sub-class is used. fit(..., metrics=True) does." in found
    assert {file.stem for file in (tmp_path / "figures").iterdir()} == {"learning-curves", "labels"}
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "accuracy in training says nothing about generalisation" in text
    assert "fit(..., metrics=True) records more" in text


def test_learner_alone_leaves_curves_out_and_says_why(tmp_path):
    maxl, _, loader = trained(epochs=1, metrics=False)
    found = reasons(tmp_path, None, maxl, [batch[:2] for batch in loader])
    assert "no histories with a finite accuracy or loss were given." in found
    assert "no history has recorded anything of its labels. fit(..., metrics=True) does." in found
    assert "the loader has no human labels: integers as a third element of its batches" in found
    assert {file.stem for file in (tmp_path / "figures").iterdir()} == {"gallery", "embedding"}


def test_figures_of_an_earlier_report_do_not_stay(tmp_path):
    maxl, _, loader = trained(epochs=1, metrics=False)
    report(tmp_path, None, maxl, loader)
    (tmp_path / "figures" / "mine.png").write_text("the user's own")
    report(tmp_path, History({}, [{"accuracy": 0.5}]))
    assert {file.stem for file in (tmp_path / "figures").iterdir()} == {"learning-curves", "mine"}


def test_targets_that_are_no_classes_are_left_out(tmp_path):
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x, y):
            return self.body(x)

    maxl = AuxiliaryLabelGenerator(nn.Linear(4, 2), Generator(), 3, auxiliary_loss=nn.functional.mse_loss)
    loader = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
    found = reasons(tmp_path, History({}, [{"test_loss": 0.5}]), maxl, loader)
    assert found.count("targets of AuxiliaryLabelGenerator are no classes of a hierarchy; those of MAXL are.") == 3


def test_data_that_are_no_images_have_no_gallery(tmp_path):
    torch.manual_seed(0)
    found = reasons(tmp_path, None, MAXL(nn.Linear(4, 2), [2, 2]), [(torch.randn(20, 4), torch.arange(20) % 2)])
    assert "x is no batch of images [N, 1 or 3, H, W] of one size. to_images= makes some of it." in found


def test_pixels_have_neither_gallery_nor_embedding_but_a_matrix(tmp_path):
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Conv2d(3, 2, 1)), [2, 2])
    y = torch.randint(0, 2, (4, 8, 8))
    found = reasons(tmp_path, None, maxl, [(torch.randn(4, 3, 8, 8), y, y)])
    assert "labels are those of pixels, and a gallery shows whole images." in found
    assert "labels are those of pixels, and t-SNE needs a row of features for each sample." in found
    assert (tmp_path / "figures" / "human-classes.png").exists()
    assert "256 pixels" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_without_scikit_learn_the_page_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_module, "HAS_SKLEARN", False)
    maxl, _, loader = trained(epochs=1, metrics=False)
    assert "t-SNE needs scikit-learn, which is not installed. Install it with: pip install 'maxl_l2l[report]'" in (
        reasons(tmp_path, None, maxl, loader)
    )


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_named_with_the_extra_before_anything_is_written(tmp_path, package):
    program = (
        f"import sys; sys.modules[{package!r}] = None; from maxl_l2l import History, report; "
        f"report({str(tmp_path / 'new')!r}, History({{}}, [{{'accuracy': 0.5}}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    line = done.stderr.strip().splitlines()[-1]
    command = "Install it with: pip install 'maxl_l2l[report]'"
    assert line == f"ImportError: report() needs {package}, which is not installed. {command}"
    assert not (tmp_path / "new").exists()


def test_the_extra_exists_and_the_demo_has_it():
    text = (ROOT / "setup.py").read_text()
    assert '"report": REPORT' in text
    assert re.search(r"^DEMO = \[.*\*REPORT", text, flags=re.MULTILINE)
    required = re.search(r"^REPORT = (.*)$", text, flags=re.MULTILINE)[1]
    assert all(package in required for package in ("matplotlib", "scikit-learn", "jinja2"))


@pytest.mark.parametrize("place", ["file", "file/report"])
def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_computed(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")

    def batches():
        raise AssertionError("the loader was read")
        yield

    with pytest.raises(OSError, match=r"`folder` can't be written to: .*file") as caught:
        report(tmp_path / place, None, MAXL(nn.Linear(4, 2), [2, 2]), batches())
    assert caught.value.filename == str(tmp_path / place)


@pytest.mark.parametrize("name", ["index.html", "figures/gallery.png"])
def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_computed(tmp_path, name):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=f"`folder` can't be written to: .*{name}"):
        report(tmp_path, History({}, [{"accuracy": 0.5}]))


def test_reports_in_several_threads_leave_settings_as_they_were(tmp_path):
    before = dict(matplotlib.rcParams)
    history = History({}, [{"accuracy": 0.5}])
    report(tmp_path, history)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: report(tmp_path / str(number), history), range(6)))
    assert dict(matplotlib.rcParams) == before


def test_a_loader_that_fails_leaves_the_earlier_report_whole(tmp_path):
    maxl, _, loader = trained(epochs=1, metrics=False)
    path = report(tmp_path, History({}, [{"accuracy": 0.5}]))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}

    def batches():
        yield from loader
        raise RuntimeError("the loader broke")

    with pytest.raises(RuntimeError, match="the loader broke"):
        report(tmp_path, None, maxl, batches())
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before
    assert path.exists()


HISTORY = History({"psi": [2, 2]}, [{"accuracy": 0.5}])
LEARNER = MAXL(nn.Linear(4, 2), [2, 2])
BATCHES = [(torch.zeros(4, 4), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 5, 0, 1]))]


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "`histories` must have a finished epoch, or `maxl` .* be given, found neither. Pass", {}),
        (ValueError, "found histories without a finished epoch. Pass what fit", {"histories": History()}),
        (TypeError, "`histories` must hold instances of History, found int. Pass", {"histories": 3}),
        (
            TypeError,
            "`maxl` must be an instance of AuxiliaryLabelGenerator, found Linear. Pass the",
            {"maxl": nn.Linear(1, 1)},
        ),
        (ValueError, "`loader` must come with `maxl`, found None. Pass the trained learner and", {"maxl": LEARNER}),
        (ValueError, "`maxl` must come with `loader`, found None. Pass the trained learner and", {"loader": BATCHES}),
        (TypeError, r"`loader` must yield batches \(x, y\), found int. Pass a", {"maxl": LEARNER, "loader": 3}),
        (ValueError, "`loader` must yield at least one batch, found none. Check", {"maxl": LEARNER, "loader": []}),
        (
            TypeError,
            r"`class_names` must be a list of texts, found 'ab'. Write \['cat'",
            {"histories": HISTORY, "class_names": "ab"},
        ),
        (
            TypeError,
            "`human_names` must be a list of texts, found list. Write",
            {"histories": HISTORY, "human_names": [1]},
        ),
        (
            ValueError,
            "`class_names` must have a name for each of the 2 primary classes, found 1. Give",
            {"histories": HISTORY, "class_names": ["a"]},
        ),
        (
            ValueError,
            "`human_names` must have a name for each human label, found 2 and a label 5. Give",
            {"maxl": LEARNER, "loader": BATCHES, "human_names": ["a", "b"]},
        ),
        (
            TypeError,
            "`to_images` must be called with a batch's x, found int. Write to_images=",
            {"histories": HISTORY, "to_images": 3},
        ),
        (TypeError, "`title` must be an instance of str, found int. It is", {"histories": HISTORY, "title": 3}),
        (
            TypeError,
            r"`max_samples` must be an integer, found 2.5 \(float\). It is",
            {"histories": HISTORY, "max_samples": 2.5},
        ),
        (ValueError, "`max_samples` must be at least 1, found 0. It is", {"histories": HISTORY, "max_samples": 0}),
        (TypeError, r"`seed` must be an integer, found None \(NoneType\). Use 0", {"histories": HISTORY, "seed": None}),
        (ValueError, r"`seed` must be in 0..2\*\*32 - 1, found -1. Use 0", {"histories": HISTORY, "seed": -1}),
        (TypeError, "`folder` must be a path, found int. Write", {"folder": 3, "histories": HISTORY}),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(tmp_path, error, message, arguments):
    with pytest.raises(error, match=message):
        report(**{"folder": tmp_path / "new", **arguments})
    assert not list(tmp_path.rglob("*.*"))


def test_names_without_human_labels_pass(tmp_path):
    report(tmp_path, None, LEARNER, [batch[:2] for batch in BATCHES], human_names=["a"])


def test_few_samples_and_flat_features_have_no_embedding():
    assert "there are 3 samples, too few to see anything: 10" in obstacle(np.zeros((3, 2)))
    assert obstacle(np.full((20, 2), np.nan)) == "the shared features are not all finite."
    assert obstacle(np.ones((20, 2))) == "all samples have the same shared features."
    assert obstacle(np.arange(40.0).reshape(20, 2)) == ""


@pytest.mark.parametrize(("size", "width"), [(12, 1), (20, 3), (60, 200)])
def test_embedding_keeps_groups_apart_and_is_the_same_again(size, width):
    rng = np.random.RandomState(0)
    found = rng.rand(size, width) + 100 * (np.arange(size) % 2)[:, None]
    before = np.random.get_state()[1].copy()
    threads = torch.get_num_threads()
    points = embedded(found, seed=1)
    assert torch.get_num_threads() == threads
    assert (np.random.get_state()[1] == before).all()
    assert points.shape == (size, 2)
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points, embedded(found, seed=1))


def test_no_two_categories_look_the_same():
    assert len({(color, marker) for color, _, marker in map(look_of, range(70))}) == 70
    assert len({(color, style) for color, style, _ in map(look_of, range(42))}) == 42


def test_gallery_shows_the_images_of_the_largest_probability():
    labels = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert strongest(labels, 0).tolist() == [1, 3, 0]
    assert strongest(labels, 0, most=2).tolist() == [1, 3]
    assert strongest(labels, 1).tolist() == [2]
    images = np.stack([np.full((4, 4), value) for value in (0.1, 0.2, 0.3, 0.4)])
    with look():
        figure = gallery(images, np.pad(labels, ((0, 0), (0, 1))), Hierarchy([3]), {0: [0, 1, 2]}, str, "Title")
        png(figure)
    mosaic = figure.axes[0].images[0].get_array()
    assert mosaic.shape == (9, 5 * COLUMNS - 1)
    assert [mosaic[0, 5 * column] for column in range(4)] == [0.2, 0.4, 0.1, 1.0]
    assert mosaic[5, 0] == 0.3
    assert figure.axes[0].get_xlabel() == "not in use: 2"
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["0", "1"]


def test_shares_are_of_each_primary_class():
    found = shares([[3, 1, 0, 0], [0, 0, 1, 4]], Hierarchy([2, 2]))
    np.testing.assert_allclose(found, [[0.75, 0.25, np.nan, np.nan], [np.nan, np.nan, 0.2, 0.8]])


def test_rows_are_the_most_used_ones():
    counts = [1, 5, 2, 9, 9, 3]
    assert rows_of(Hierarchy([3, 3]), [1, 0], counts) == {0: [0, 1, 2], 1: [3, 4, 5]}
    assert rows_of(Hierarchy([3, 3]), [0, 1], counts, most=2) == {0: [1, 2], 1: [3, 4]}


def test_use_map_and_matrix_hold_the_shares():
    with look():
        hierarchy, rows = Hierarchy([2, 2]), {0: [0, 1], 1: [2, 3]}
        figure = use_map([[1, 3, 2, 2], [4, 0, 0, 0]], hierarchy, rows, "class {}".format, "Title")
        found = figure.axes[0].images[0].get_array().filled(np.nan)
        np.testing.assert_allclose(found, [[0.25, 1], [0.75, 0], [0.5, np.nan], [0.5, np.nan]])
        counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2], [0, 0, 5]])
        figure = matrix(counts, [0, 2], hierarchy, rows, ["one", "three"], "class {}".format, "Title")
    found = figure.axes[0].images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(found, [[0.75, 0], [np.nan, np.nan], [0, 0.5], [0, 1]])
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["not in use", "75", "50", "100"]


def runs(source, *values, key="test_accuracy", **more):
    return [History({"source": source, "seed": seed, "psi": [2, 2]}, [{key: value, **more} for value in one])
            for seed, one in enumerate(values)]  # fmt: skip


def test_learning_curves_draw_means_bands_and_paired_gains():
    groups = grouped([*runs("SingleTask", [0.5, 0.6], [0.7, 0.8]), *runs("GeneratedLabels", [0.6, 0.7], [0.8, 0.96])])
    with look():
        figure = learning_curves(groups, Evidence(groups, "").measure, groups[:1], "Title")
        png(figure)
    curves, ends = figure.axes
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [60, 70])
    np.testing.assert_allclose(curves.lines[1].get_ydata(), [70, 83])
    band = curves.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((60, 96))  # 83 ± 13: two values are a mean ± SE
    assert "+13.00 ± 3.00 pp" in [text.get_text() for text in ends.texts]
    assert ends.get_yticklabels()[0].get_text() == "MAXL\n83.00 ± 13.00 %"


def test_a_single_run_has_no_band_and_the_title_says_so():
    groups = grouped(runs("GeneratedLabels", [0.5, 0.6]))
    with look():
        figure = learning_curves(groups, Evidence(groups, "").measure, [], "Title")
    assert not figure.axes[0].collections
    assert figure.axes[0].get_title(loc="left") == "One run each: no band"


def test_curves_leave_the_first_epochs_outside_where_they_squeeze_the_rest():
    groups = grouped(runs("GeneratedLabels", [0.1, *[0.9 + number / 1000 for number in range(9)]]))
    with look():
        curves = learning_curves(groups, Evidence(groups, "").measure, [], "Title").axes[0]
    assert curves.get_ylim()[0] > 80
    assert curves.get_xlabel() == "epoch (the first ones lie outside)"


def test_curves_without_a_late_value_keep_their_range():
    lost = History({"source": "GeneratedLabels"}, [{"test_loss": float("inf")}] * 9 + [{"test_accuracy": 0.5}])
    groups = grouped([*runs("GeneratedLabels", [0.5]), lost])
    lost.epochs[-1]["test_accuracy"] = float("nan")
    with look():
        curves = learning_curves(groups, Evidence(groups, "").measure, [], "Title").axes[0]
    assert curves.get_xlabel() == "epoch"


def test_label_curves_have_a_panel_a_quantity_and_lines_of_uniform_labels():
    more = {"label_entropy": 0.3, "sub_classes": 3, "hypergradient_norm": 0.01, "gradient_cosine": -0.5}
    groups = grouped([*runs("GeneratedLabels", [0.5, 0.6], **more), *runs("SingleTask", [0.5, 0.6])])
    panels = recorded(groups)
    assert [panel.key for panel in panels] == ["label_entropy", "sub_classes", "hypergradient_norm", "gradient_cosine"]
    with look():
        figure = label_curves(groups, panels, Hierarchy([2, 2]), "Title")
        png(figure)
        png(label_curves(groups, panels, None, "Title"))
    entropy, used, norm, cosine = figure.axes[:4]
    assert [text.get_text() for text in entropy.texts] == ["uniform: log ψ"]
    assert entropy.lines[1].get_ydata()[0] == pytest.approx(np.log(2))
    assert [text.get_text() for text in used.texts] == ["all 4"]
    assert norm.get_yscale() == "log"
    assert [text.get_text() for text in cosine.texts] == ["at right angles"]


def evidence_of(num_primary, psi, size=400, human=True):
    """Random labels of many classes, with twice as many human classes."""
    rng = np.random.RandomState(0)
    y = rng.randint(0, num_primary, size)
    labels = np.zeros((size, num_primary * psi))
    for sample, primary in enumerate(y):
        labels[sample, psi * primary : psi * (primary + 1)] = rng.dirichlet(np.ones(psi))
    found = Samples(
        Hierarchy([psi] * num_primary), y, labels, 2 * y + rng.randint(0, 2, size) if human else None,
        rng.rand(size, 5), rng.rand(size, 4, 4), is_dense=False, are_first=False,
    )  # fmt: skip
    return Evidence([], found, [f"a class with a long name, number {number}" for number in range(num_primary)])


def test_of_many_classes_some_are_shown_and_the_page_says_which():
    evidence = evidence_of(30, 5)
    sizes = np.bincount(evidence.samples.y)
    largest = [evidence.primary_name(primary) for primary in np.argsort(-sizes, kind="stable")[:3]]
    with look():
        figure, _, caption = pictures(evidence)
        assert len([axes for axes in figure.axes if axes.images]) == 6
        assert f"Shown: {', '.join(largest)} (largest); " in caption
        assert "(surest labels)." in caption
        figure, _, caption = human_classes(evidence)
        shown = figure.axes[0].images[0].get_array().shape
        assert shown[0] <= 32
        assert shown[1] <= 32
        assert "Sub-classes in use, at most 20 a class." in caption


def test_many_sub_classes_and_human_classes_of_a_class_are_cut():
    evidence = evidence_of(1, 60)
    human = np.arange(len(evidence.samples.y)) % 50
    samples = Samples(**{**vars(evidence.samples), "human": human})
    with look():
        figure, _, caption = human_classes(Evidence([], samples))
        assert figure.axes[0].images[0].get_array().shape == (20, 32)
        assert "Of the human classes the 32 most frequent ones." in caption
        assert "Of each class the ten most used sub-classes." in pictures(Evidence([], samples))[2]


@pytest.mark.parametrize(("num_primary", "psi", "part"), [(3, 4, ""), (20, 5, ", of some classes")])
def test_embedding_highlights_no_more_than_can_be_told_apart(num_primary, psi, part):
    with look():
        figure, alt, _ = features(evidence_of(num_primary, psi, size=120))
        png(figure)
    assert len(figure.axes) == 3
    assert figure.axes[1].get_title(loc="left") == f"Invented class{part}"
    for axes in figure.axes:
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert 1 < len(names) <= 13
        assert ("others" in names) == (num_primary == 20)
    assert "primary class" in alt


def test_embedding_without_human_labels_has_two_panels():
    with look():
        assert len(features(evidence_of(3, 2, size=40, human=False))[0].axes) == 2


def test_features_of_different_sizes_have_no_embedding():
    samples = Samples(**{**vars(evidence_of(3, 2).samples), "features": None})
    assert features(Evidence([], samples)) == (
        "batches have features of different sizes, and t-SNE needs a row of features for each sample."
    )


def test_legends_of_the_embedding_lie_inside_the_figure():
    rng = np.random.RandomState(0)
    names = dict.fromkeys(range(12), "a rather long name of a class")
    coloring = Coloring("Human class", rng.randint(0, 13, 50), names)
    with look():
        figure = embedding(rng.rand(50, 2), [coloring, coloring], "Title")
        png(figure)
        for axes in figure.axes:
            box = axes.get_legend().get_window_extent()
            assert box.y0 > 0
            assert box.x1 < figure.bbox.width


def test_more_than_a_hundred_sub_classes_show_chosen_classes_over_the_epochs():
    counts = np.random.RandomState(0).randint(0, 9, 300).tolist()
    history = History({"source": "GeneratedLabels", "psi": [30] * 10, "seed": 3}, [{"accuracy": 0.5, "use": counts}])
    with look():
        figure, alt, caption = use(Evidence(grouped(history), ""))
    assert figure.axes[0].images[0].get_array().shape == (6 * 20, 1)
    assert "most one-sided" in caption
    assert "At most 20 a class." in caption
    assert "MAXL, seed 3" in alt


def test_groups_without_the_measure_or_a_pair_are_told(tmp_path):
    histories = {
        "Single task": runs("SingleTask", [0.5]),
        "Mine": History({"source": "MyLabels", "seed": 7}, [{"test_accuracy": 0.5}]),
        "Old": runs("RandomLabels", [0.5], key="accuracy"),
    }
    text = " ".join(Page(report(tmp_path, histories)).text.split())
    assert "Not drawn, as they have recorded no finite test accuracy: Old." in text
    assert "No run of Mine can be paired with one of Single task" in text


def test_many_different_settings_are_cut_short(tmp_path):
    text = Page(report(tmp_path, runs("GeneratedLabels", *[[0.5]] * 10))).text
    assert "0, 1, 2, 3, 4, 5, 6, 7, … (10 in all)" in text


def test_names_in_another_script_raise_no_warning(tmp_path):
    maxl, _, loader = trained(epochs=1, metrics=False)
    report(tmp_path, None, maxl, loader, class_names=["数字", "اثنان"])


def test_the_digits_example_writes_a_report_from_its_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    digits = importlib.import_module("digits")
    threads = torch.get_num_threads()
    chosen = argparse.Namespace(epochs=1, lr=0.01, gamma=2.0, out=tmp_path, resume=False)
    runs = [digits.train((name, 0, chosen)) for name in ("single", "maxl")]
    torch.set_num_threads(threads)
    histories, learners = ([run.pop(key, None) for run in runs] for key in ("history", "learner"))
    assert all(
        set(run) <= {"source", "seed", "seconds", "test_accuracy", "test_labels", "sub_classes", "nmi"} for run in runs
    )
    page = Page(digits.write_report(tmp_path, 0, histories, learners[1]))
    assert len(page.images) == 6
    assert "Left out" not in page.text
    assert "five or more" in page.text


def test_captions_say_how_runs_are_paired_and_what_is_missing():
    groups = grouped([run for source in ("SingleTask", "GeneratedLabels") for run in
                      (History({"source": source}, [{"test_accuracy": 0.5, "use": [1, 2]}]),)])  # fmt: skip
    with look():
        assert "less that of single-task runs, paired in the order given." in learning(Evidence(groups, ""))[2]
    assert use(Evidence(groups, "")) == "the settings of MAXL have no psi that fits the recorded use of sub-classes."


def test_images_that_are_long_and_thin_have_no_gallery():
    samples = Samples(**{**vars(evidence_of(3, 2).samples), "images": np.zeros((400, 128, 1))})
    assert "images of 128 by 1 pixels are too long and thin to show." in pictures(Evidence([], samples))


def cut(figure):
    """What is written in a figure and does not lie in it."""
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    ticks = [one for axes in figure.axes for one in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    shown = [text for text in shown if text not in ticks or text.get_text()[0] not in "0123456789-"]
    boxes = {text.get_text(): text.get_window_extent() for text in shown}
    return [text for text, box in boxes.items() if not (box.x0 > -1 < box.y0 and box.x1 < width and box.y1 < height)]


def test_nothing_that_is_written_is_cut():
    single = runs("SingleTask", [1e270], [2e270], key="test_loss")
    maxl = runs("GeneratedLabels", [1e10], [2e10], key="test_loss")
    groups = grouped({"a long title of runs without an auxiliary task": single, "another long title of runs": maxl})
    rng = np.random.RandomState(0)
    y = np.arange(20) % 2
    found = Samples(Hierarchy([1, 1]), y, np.eye(2)[y], y, rng.rand(20, 3), rng.rand(20, 8, 4), False, False)
    evidence = Evidence(groups, found, ["W" * 60, "V" * 60], ["W" * 60, "V" * 60])
    with look():
        assert not cut(learning(evidence)[0])
        assert not cut(pictures(evidence)[0])
        assert not cut(human_classes(evidence)[0])


def test_names_that_are_cut_stay_distinct_and_are_given_in_full(tmp_path):
    maxl, history, loader = trained(epochs=1)
    names = ["a very long name of a primary class, above", "a very long name of a primary class, below"]
    page = Page(report(tmp_path, history, maxl, loader, class_names=names, human_names=list("abcd")))
    table = page.text.split("In the figure")[1]
    assert "0: a very long name o…" in table
    assert "1: a very long name o…" in table
    assert all(name in table for name in names)
    assert page.text.count("In the figure") == 4  # use, gallery, embedding, matrix


def test_shares_are_written_in_the_ink_that_is_seen():
    counts = np.array([[3, 7], [5, 5], *[[0, 1]] * 18])
    with look():
        figure = matrix(counts, [0, 1], Hierarchy([20]), {0: list(range(20))}, ["a", "b"], str, "Title")
    # On a scale of square roots 0.3 is 0.55, a light blue; 0.5 is 0.71, a dark one.
    assert [text.get_color() for text in figure.axes[0].texts[:4]] == ["#222222", "white", "white", "white"]


def test_headings_are_in_order_and_numbers_are_plain(full, tmp_path):
    headings = [tag for tag in full[1].tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1"
    assert set(headings[1:]) == {"h2"}
    histories = runs("GeneratedLabels", [1250.0], [1270.0], key="steps_per_second", test_accuracy=0.5)
    path = report(tmp_path, histories)
    assert re.search(r"Steps a second\s*1260 ± 10\b", Page(path).text)
    text = path.read_text(encoding="utf-8")
    assert text.count('<div class="scroll" tabindex="0">') == text.count("<table>")


def test_map_of_use_says_that_uniform_labels_have_one_dark_row_too():
    groups = grouped(runs("GeneratedLabels", [0.5], use=[5, 5, 9, 1]))
    with look():
        assert (
            "One dark row in a block means collapse, unless labels are nearly uniform." in use(Evidence(groups, ""))[2]
        )
