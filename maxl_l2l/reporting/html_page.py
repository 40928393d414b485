"""The page: the sections of a report, each a figure or the reason why it is left out, and one HTML file of them all."""

import base64
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from matplotlib.text import Text

from ..training import History
from ..version import VERSION
from .comparison import Estimate, Group, text_of
from .evidence import Evidence
from .run_figures import labels, learning, use
from .sample_figures import features, human_classes, pictures
from .style import look, png
from .summary import answers

NUMBERS = {
    "test_loss": "Test loss",
    "accuracy": "Accuracy in training",
    "primary_loss": "Primary loss",
    "auxiliary_loss": "Auxiliary loss",
    "sub_classes": "Sub-classes in use",
    "label_entropy": "Entropy of labels (nats)",
    "relative_label_entropy": "Entropy of labels (share of uniform)",
    "nmi_within": "NMI with human classes, inside classes",
    "purity": "Matched with human classes",
    "gradient_cosine": "Cosine of both gradients",
    "seconds": "Seconds an epoch, with evaluation",
    "steps_per_second": "Steps a second",
}
"""Rows of the table of final numbers, below the measure that runs are compared by: names by key in the records."""
FIGURES = {
    "learning-curves": ("Learning curves and gains", learning),
    "labels": ("Labels over the epochs", labels),
    "use": ("Use of sub-classes over the epochs", use),
    "gallery": ("Images of each invented class", pictures),
    "embedding": ("Shared features", features),
    "human-classes": ("Invented and human classes", human_classes),
}
"""Heading and drawing function of each figure, by its file's name, in order."""
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #1c1e21; --soft: #5a6068; --line: #dfe3e8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1, h2, .verdict { overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; }
.answer h2 { font-size: .95rem; font-weight: 600; color: var(--soft); margin: 0; }
p, ul { margin: .4rem 0; max-width: 46rem; }
.answers { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.answer { border: 1px solid var(--line); border-top: 4px solid #5f5f5f; border-radius: 6px;
  padding: .9rem 1.1rem 1rem; }
.good { border-top-color: #009e73; } .bad { border-top-color: #d55e00; }
.verdict { font-size: 1.2rem; line-height: 1.3; font-weight: 650; margin: .15rem 0 .6rem; }
.answer ul { padding-left: 1.1rem; font-size: .93rem; max-width: none; }
figure { margin: 1rem 0 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .93rem; max-width: 50rem; margin-top: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--ink); }
th { font-weight: 600; } td { overflow-wrap: break-word; } .number { white-space: nowrap; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding-right: .5rem; } .number { white-space: normal; }
  figure, .answer, tr { break-inside: avoid; } h2 { break-after: avoid; } }
</style>
</head>
<body>
<header><h1>{{ title }}</h1></header>
<main>
<section class="answers" aria-label="Summary">
{% for answer in answers %}<div class="answer {{ answer.kind }}">
<h2>{{ answer.question }}</h2>
<p class="verdict">{{ answer.verdict }}</p>
<ul>{% for sentence in answer.sentences %}<li>{{ sentence }}</li>{% endfor %}</ul>
</div>
{% endfor %}</section>
{% if numbers %}<section>
<h2>Final numbers</h2>
<p>Means over runs after their last epoch, ± standard error where there are several runs.</p>
{{ table(*numbers, kind="number") }}
</section>
{% endif %}{% for section in sections if section.png %}<section>
<h2>{{ section.title }}</h2>
<figure>
<img src="data:image/png;base64,{{ base64(section.png) }}" alt="{{ section.alt }}">
<figcaption>{{ section.caption }}</figcaption>
</figure>
{% if section.names %}{{ table(["In the figure", "In full"], section.names.items()) }}
{% endif %}</section>
{% endfor %}{% if left_out %}<section>
<h2>Left out</h2>
<ul>{% for section in sections if not section.png %}<li><strong>{{ section.title }}</strong>: {{ section.reason }}</li>
{% endfor %}</ul>
</section>
{% endif %}{% for name, one in tables.items() %}<section>
<h2>{{ name }}</h2>
{{ table(*one) }}
</section>
{% endfor %}</main>
</body>
</html>
"""
TABLE = """{% macro table(head, rows, kind="") %}<div class="scroll" tabindex="0"><table>
<thead><tr>{% for cell in head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr><th scope="row">{{ row[0] }}</th>\
{% for cell in row[1:] %}<td{% if kind %} class="{{ kind }}"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>{% endmacro %}"""


@dataclass(frozen=True)
class Section:
    """A figure of the report.

    Attributes:
        name: Of its file, without ``.png``.
        title: Its heading.
        caption: What to see, and how to read it.
        alt: The alternative text, for readers who can't see it.
        png: The image; None if it is left out.
        reason: Why it is left out.
        names: The full names that are cut in it, by their short form.
    """

    name: str
    title: str
    caption: str = ""
    alt: str = ""
    png: bytes | None = None
    reason: str = ""
    names: dict[str, str] = field(default_factory=dict)


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
                image = png(figure)
                written = "\n".join(text.get_text() for text in figure.findobj(Text))
                names = {cut: full for cut, full in evidence.cut_names().items() if cut in written}
                found.append(Section(name, title, caption, alt, image, names=names))
    return found


def page(title: str, evidence: Evidence, sections: Sequence[Section]) -> str:
    """Returns a report as HTML, with a heading and all sections."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(TABLE + TEMPLATE).render(
        title=title,
        answers=answers(evidence),
        numbers=_numbers(evidence),
        sections=sections,
        left_out=any(one.png is None for one in sections),
        base64=lambda content: base64.b64encode(content).decode(),
        tables=_tables(evidence.groups),
    )


def _numbers(evidence: Evidence) -> tuple[Any, ...]:
    """Head and rows of a table of what groups of runs reach, gain and have recorded; empty if there is no measure."""
    measure, groups = evidence.measure, evidence.groups
    if measure is None:
        return ()
    reached = [group.estimate(measure.key) for group in groups]
    rows = [
        ["Runs", *(str(len(group.runs)) for group in groups)],
        [measure.name.capitalize(), *("" if one is None else measure.text(one) for one in reached)],
    ]
    if evidence.singles:
        others = [None if group.source == "SingleTask" else evidence.single(group) for group in groups]
        gains = [group.gain(other, measure.key) for group, other in zip(groups, others)]
        found = ["" if gain is None else measure.text(gain, signed=True) for gain in gains]
        rows.append(["Gain over single-task runs, paired", *found])
    for key, name in NUMBERS.items():
        last = [group.estimate(key) for group in groups]
        if key != measure.key and any(last):
            rows.append([name, *map(_text, last)])
    return ["Last epoch", *(group.title for group in groups)], rows


def _text(estimate: Estimate | None) -> str:
    """A mean to three digits, or to the first digit of its error, and that error."""
    if estimate is None:
        return ""
    if max(abs(estimate.mean), estimate.error or 0.0) >= 1e5:
        mean, error = ".3g", ".1g"
    else:
        telling = estimate.error or abs(estimate.mean) / 100 or 1.0
        mean = error = f".{min(6, max(0, -math.floor(math.log10(telling))))}f"
    return f"{estimate.mean:{mean}}" + ("" if estimate.error is None else f" ± {estimate.error:{error}}")


def _tables(groups: Sequence[Group]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Head and rows of tables, by their headings: settings that all runs share, those that differ, and versions."""
    runs = [run for group in groups for run in group.runs]
    shared, differing = [], []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [text_of(run.settings[name]) for run in runs if name in run.settings]
        if len(set(values)) == 1 and len(values) == len(runs):
            shared.append([name, values[0]])
        else:
            differing.append([name, *(_some(group.runs, name) for group in groups)])
    versions = [
        ["maxl_l2l", VERSION],
        ["torch", str(torch.__version__)],
        ["numpy", np.__version__],
        ["Python", platform.python_version()],
        ["Platform", platform.platform()],
    ]
    tables = {
        "Settings of all runs": (["Setting", "Value"], shared),
        "Settings that differ": (["Setting", *(group.title for group in groups)], differing),
        "Where this report was made": (["What", "Version"], versions),
    }
    return {heading: (head, rows) for heading, (head, rows) in tables.items() if rows}


def _some(runs: Iterable[History], name: str) -> str:
    """The values of a setting in several runs, each once, in order; the first ones of many."""
    different = list(dict.fromkeys(text_of(run.settings[name]) for run in runs if name in run.settings))
    return ", ".join(different[:8]) + (f", … ({len(different)} in all)" if len(different) > 8 else "")
