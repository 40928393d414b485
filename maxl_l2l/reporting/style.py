"""Style: the common look of figures, and how they become PNG; settings of the user's own plots stay as they are."""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

INK, GRAY, LIGHT = "#222222", "#5f5f5f", "#d0d0d0"
# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow, too faint on white; and a line
# style or a marker each, for print.
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DPI = 140
LOOK: dict[Any, Any] = {
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$1 notes"
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
Drawn = tuple[Any, str, str]
"""A figure, its alternative text and its caption."""


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Sets the look of figures, which must be made and drawn inside; restores matplotlib's settings at the end."""
    with matplotlib.style.context("default"), warnings.catch_warnings():
        matplotlib.rcParams.update(LOOK)
        # Names may be in a script that matplotlib's font lacks: the page has them in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # From the margins of an axis whose values are near the largest number.
        warnings.filterwarnings("ignore", message="overflow encountered", category=RuntimeWarning)
        yield


def new_figure(width: float, height: float, title: str) -> Any:
    """Returns a figure of a size in inches, with a title that says what to see."""
    figure = Figure(figsize=(width, height), layout="constrained")
    wrapped = textwrap.fill(title, int(width * 10.5))
    figure.suptitle(wrapped, x=0.006, ha="left", fontsize=12.5, fontweight="bold")
    return figure


def png(figure: Any) -> bytes:
    """Returns a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def look_of(number: int) -> tuple[str, Any, str]:
    """Returns the colour, line style and marker of one of several things.

    No two of 70 share colour and marker, no two of 42 colour and style.
    """
    turn, color = divmod(number, len(COLORS))
    return COLORS[color], STYLES[(color + turn) % len(STYLES)], MARKERS[number % len(MARKERS)]
