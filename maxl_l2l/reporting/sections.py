"""Sections: the figures of a report, each drawn if there is evidence for it, or left out with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from .evidence import Evidence
from .run_figures import labels, learning, use
from .sample_figures import features, human_classes, pictures
from .style import look, png, texts


@dataclass(frozen=True)
class Section:
    """A figure of the report.

    Attributes:
        name: Of its file, without ``.png``.
        title: Its heading.
        caption: What to see, and how to read it.
        alt: What it shows, for those who can't see it.
        png: The image; None if it is left out.
        reason: Why it is left out.
        names: Names that are cut in it, in full, by what stands for them.
    """

    name: str
    title: str
    caption: str = ""
    alt: str = ""
    png: bytes | None = None
    reason: str = ""
    names: dict[str, str] = field(default_factory=dict)


FIGURES = {
    "learning-curves": ("Learning curves and gains", learning),
    "labels": ("Labels over the epochs", labels),
    "use": ("Use of sub-classes over the epochs", use),
    "gallery": ("Images of each invented class", pictures),
    "embedding": ("Shared features", features),
    "human-classes": ("Invented and human classes", human_classes),
}
"""Heading and drawing function of each figure, by its file's name, in order."""


def sections(evidence: Evidence) -> list[Section]:
    """Returns all figures in order, drawn or left out."""
    found = []
    with look():
        for name, (title, draw) in FIGURES.items():
            drawn = draw(evidence)
            if isinstance(drawn, str):
                found.append(Section(name, title, reason=drawn))
            else:
                figure, alt, caption = drawn
                image, written = png(figure), texts(figure)
                names = {cut: full for cut, full in evidence.cut_names().items() if cut in written}
                found.append(Section(name, title, caption, alt, image, names=names))
    return found
