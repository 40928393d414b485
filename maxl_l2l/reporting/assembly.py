"""The report: one page on whether auxiliary labels helped, what they are, and whether they collapse."""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import replace_file, try_folder
from ..checks import check_count, check_kind
from ..extras import missing
from ..labels import Hierarchy
from ..learners import MAXL, AuxiliaryLabelGenerator
from ..training import History, check_loader
from .comparison import Group, grouped
from .evidence import Evidence, hierarchy_of_run
from .samples import Samples, gather

ONE_AT_A_TIME = threading.RLock()
"""Held while a report changes what all threads share: random states, matplotlib's settings and warning filters."""
Histories = History | Iterable[History] | Mapping[str, History | Iterable[History]]


def report(
    folder: str | Path,
    histories: Histories | None = None,
    maxl: AuxiliaryLabelGenerator | None = None,
    loader: Iterable[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    human_names: Sequence[str] | None = None,
    to_images: Callable[[Any], Any] | None = None,
    title: str = "Auxiliary labels: did they help, and what are they?",
    max_samples: int = 1000,
    seed: int = 0,
) -> Path:
    """Writes one HTML page that answers: did it help, what are the invented classes, is anything collapsing?

    The page contains its figures, so that it can be sent as one file; they are also saved beside it as PNG. A figure
    that can't be drawn is left out, and the page says why. It needs the extra ``report``: matplotlib, jinja2 and, for
    t-SNE, scikit-learn.

    Args:
        folder: Where to write ``index.html`` and ``figures/*.png``; made if missing.
        histories: What :func:`fit` returned: a history; several, which are grouped by label source and settings; or a
            mapping from titles to one or several. Whether labels helped needs runs with a test_loader, and by how much
            runs of SingleTask() too. Runs of EntropyLabels() show what the meta gradient adds, several seeds give
            standard errors, and ``metrics=True`` records what the labels are like.
        maxl: The trained learner whose labels and features are shown. It runs in evaluation mode, and it and all random
            states are left as they were.
        loader: Batches ``(x, y)`` for the learner, or ``(x, y, human label)`` with integer labels, negative if unknown.
        class_names: The names of the C primary classes.
        human_names: The names of the human classes, by number.
        to_images: Turns a batch's x into images ``[N, H, W]`` or ``[N, 1 or 3, H, W]``, in 0 .. 1. If None, x itself is
            shown if it has that shape, its values scaled to that range after 0.5 % at either end are clipped.
        title: The heading of the page.
        max_samples: The most samples to look at; drawn from all of the data if the loader's dataset has an index.
        seed: The seed of that draw, and of t-SNE.

    Returns:
        The path of ``index.html``.

    Raises:
        TypeError, ValueError: An argument does not fit, or there is nothing to report on.
        ImportError: matplotlib or jinja2 is missing.
        OSError: The folder can't be written to, which is tried before anything is computed.

    Example:
        >>> import tempfile
        >>> runs = [History({"source": "SingleTask"}, [{"epoch": 1, "test_accuracy": 0.7}])]
        >>> path = report(tempfile.mkdtemp(), runs)
        >>> "Did it help?" in path.read_text(encoding="utf-8")
        True
    """
    groups = grouped(histories)
    _check(maxl, loader, groups, histories is not None)
    check_count(max_samples, "max_samples", "It is how many samples to look at.")
    _check_rest(to_images, title, seed)
    of_runs = [hierarchy_of_run(run) for group in groups for run in group.runs]
    _check_names(class_names, "class_names", [maxl.hierarchy if isinstance(maxl, MAXL) else None, *of_runs])
    _check_names(human_names, "human_names", [])
    try:  # here, as `import maxl_l2l` must not load matplotlib
        from .html_page import FIGURES, page, sections
    except ModuleNotFoundError as error:
        raise missing(str(error.name).split(".")[0], "report()", extra="report") from error

    place = _writable(folder, FIGURES)
    with ONE_AT_A_TIME:
        samples: Samples | str = "no learner was given to look at. Pass maxl= and loader=."
        if isinstance(maxl, MAXL) and loader is not None:
            samples = gather(maxl, loader, max_samples, seed, to_images)
        elif maxl is not None:
            samples = f"targets of {type(maxl).__name__} are no classes of a hierarchy; those of MAXL are."
        if isinstance(samples, Samples) and human_names is not None:
            _check_human_names(human_names, samples)
        evidence = Evidence(groups, samples, class_names, human_names, seed)
        drawn = sections(evidence)
    text = page(title, evidence, drawn)
    for section in drawn:
        path = place / "figures" / f"{section.name}.png"
        if section.png is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            _write(path, section.png)
    _write(place / "index.html", text.encode())
    return place / "index.html"


def _write(path: Path, content: bytes) -> None:
    replace_file(path, lambda file: file.write(content))


def _check(maxl: Any, loader: Any, groups: list[Group], are_given: bool) -> None:
    if maxl is not None:
        check_kind(maxl, AuxiliaryLabelGenerator, "maxl", "Pass the trained learner.")
    check_loader(loader, "loader", required=False)
    if (maxl is None) != (loader is None):
        absent, given = ("maxl", "loader") if maxl is None else ("loader", "maxl")
        raise ValueError(
            f"`{absent}` must come with `{given}`, found None. "
            "Pass the trained learner and data for it, or neither for a report on histories alone."
        )
    if not groups and maxl is None:
        found = "histories without a finished epoch" if are_given else "neither"
        raise ValueError(
            f"`histories` must have a finished epoch, or `maxl` and `loader` be given, found {found}. "
            "Pass what fit() returned, or a trained learner and data for it."
        )


def _check_rest(to_images: Any, title: Any, seed: Any) -> None:
    if to_images is not None and not callable(to_images):
        raise TypeError(
            f"`to_images` must be called with a batch's x, found {type(to_images).__name__}. "
            "Write to_images=lambda x: x * std + mean, for instance."
        )
    check_kind(title, str, "title", "It is the heading of the page.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"`seed` must be an integer, found {seed!r} ({type(seed).__name__}). Use 0.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be in 0..2**32 - 1, found {seed}. Use 0.")


def _check_names(names: Any, argument: str, hierarchies: list[Hierarchy | None]) -> None:
    if names is None:
        return
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        found = f"{names!r}" if isinstance(names, str) else type(names).__name__
        raise TypeError(f"`{argument}` must be a list of texts, found {found}. Write ['cat', 'dog'].")
    wrong = [len(one) for one in hierarchies if one is not None and len(one) != len(names)]
    if wrong:
        raise ValueError(
            f"`{argument}` must have a name for each of the {wrong[0]} primary classes, found {len(names)}. "
            "Give as many as psi has entries, in that order."
        )


def _check_human_names(names: Sequence[str], samples: Samples) -> None:
    highest = -1 if samples.human is None else int(samples.human.max())
    if highest >= len(names):
        raise ValueError(
            f"`human_names` must have a name for each human label, found {len(names)} and a label {highest}. "
            "Give a name for each number from 0 on."
        )


def _writable(folder: str | Path, figures: Iterable[str]) -> Path:
    """The folder, made if missing; raises OSError, with its name, if nothing can be written there."""
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"`folder` must be a path, found {type(folder).__name__}. Write report('out/report', ...).")
    place = Path(folder)
    try:
        for one in (place, place / "figures"):
            try_folder(one)
    except OSError as error:
        raise OSError(error.errno, f"`folder` can't be written to: {error.strerror}", str(place)) from error
    for path in (place / "index.html", *(place / "figures" / f"{name}.png" for name in figures)):
        if path.is_dir():
            reason = os.strerror(errno.EISDIR)
            raise IsADirectoryError(errno.EISDIR, f"`folder` can't be written to: {reason}", str(path))
    return place
