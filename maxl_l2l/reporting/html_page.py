"""The page: a report as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from ..extras import missing
from .comparison import Estimate, Group
from .evidence import Evidence
from .sections import Section
from .summary import answers

try:
    from jinja2 import Environment, StrictUndefined
except ImportError as error:
    raise missing("jinja2", "report()", extra="report") from error


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
"""What the table of final numbers has beside what runs are compared by."""
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
{% if numbers.rows %}<section>
<h2>Final numbers</h2>
<p>Means over runs after their last epoch, ± standard error where there are several runs.</p>
{{ table(numbers) }}
</section>
{% endif %}{% for section in drawn %}<section>
<h2>{{ section.title }}</h2>
<figure>
<img src="data:image/png;base64,{{ section.image }}" alt="{{ section.alt }}">
<figcaption>{{ section.caption }}</figcaption>
</figure>
{% if section.names.rows %}{{ table(section.names) }}
{% endif %}</section>
{% endfor %}{% if left_out %}<section>
<h2>Left out</h2>
<ul>{% for section in left_out %}<li><strong>{{ section.title }}</strong>: {{ section.reason }}</li>
{% endfor %}</ul>
</section>
{% endif %}{% for name, one in tables.items() %}<section>
<h2>{{ name }}</h2>
{{ table(one) }}
</section>
{% endfor %}</main>
</body>
</html>
"""
TABLE = """{% macro table(one) %}<div class="scroll" tabindex="0"><table>
<thead><tr>{% for cell in one.head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in one.rows %}<tr><th scope="row">{{ row[0] }}</th>\
{% for cell in row[1:] %}<td{% if one.numbers %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>{% endmacro %}"""


def page(title: str, evidence: Evidence, sections: Sequence[Section]) -> str:
    """Returns a report as HTML.

    Args:
        title: Its heading.
        evidence: What it rests on.
        sections: Its figures.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    drawn = [
        {
            "title": one.title,
            "alt": one.alt,
            "caption": one.caption,
            "image": base64.b64encode(one.png).decode(),
            "names": {"head": ["In the figure", "In full"], "rows": list(one.names.items()), "numbers": False},
        }
        for one in sections
        if one.png is not None
    ]
    return environment.from_string(TABLE + TEMPLATE).render(
        title=title,
        answers=answers(evidence),
        numbers=_numbers(evidence),
        drawn=drawn,
        left_out=[one for one in sections if one.png is None],
        tables=_tables(evidence.groups),
    )


def _numbers(evidence: Evidence) -> dict[str, Any]:
    """What each group of runs reaches and gains, and what else was recorded: a column a group."""
    measure, groups = evidence.measure, evidence.groups
    if measure is None:
        return {"head": [], "rows": [], "numbers": True}
    reached = [group.estimate(measure.key) for group in groups]
    rows = [
        ["Runs", *(str(len(group.runs)) for group in groups)],
        [measure.name.capitalize(), *("" if one is None else measure.text(one) for one in reached)],
    ]
    if evidence.singles:
        others = [None if group.source == "SingleTask" else evidence.single(group) for group in groups]
        gains = [None if other is None else group.gain(other, measure.key) for group, other in zip(groups, others)]
        texts = ["" if gain is None else measure.text(gain, signed=True) for gain in gains]
        rows.append(["Gain over single-task runs, paired", *texts])
    for key, name in NUMBERS.items():
        found = [group.estimate(key) for group in groups]
        if key != measure.key and any(found):
            rows.append([name, *map(_text, found)])
    return {"head": ["Last epoch", *(group.title for group in groups)], "rows": rows, "numbers": True}


def _text(estimate: Estimate | None) -> str:
    """A mean to three digits, or to the first one of its error, and that error."""
    if estimate is None:
        return ""
    size = max(abs(estimate.mean), estimate.error or 0.0)
    if size >= 1e5:
        error = "" if estimate.error is None else f" ± {estimate.error:.1g}"
        return f"{estimate.mean:.3g}{error}"
    telling = estimate.error or abs(estimate.mean) / 100 or 1.0
    digits = min(6, max(0, -math.floor(math.log10(telling))))
    return f"{estimate.mean:.{digits}f}" + ("" if estimate.error is None else f" ± {estimate.error:.{digits}f}")


def _tables(groups: Sequence[Group]) -> dict[str, Any]:
    """Settings that all runs share, those that differ, and versions."""
    found: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        for run in group.runs:
            for name, value in run.settings.items():
                found.setdefault(name, {}).setdefault(group.title, []).append(_plain(value))
    total = sum(len(group.runs) for group in groups)
    shared, differing = [], []
    for name, by_group in found.items():
        values = [value for several in by_group.values() for value in several]
        if len(set(values)) == 1 and len(values) == total:
            shared.append([name, values[0]])
        else:
            differing.append([name, *(_some(by_group.get(group.title, [])) for group in groups)])
    tables = {}
    if shared:
        tables["Settings of all runs"] = {"head": ["Setting", "Value"], "rows": shared, "numbers": False}
    if differing:
        head = ["Setting", *(group.title for group in groups)]
        tables["Settings that differ"] = {"head": head, "rows": differing, "numbers": False}
    versions = {"head": ["What", "Version"], "rows": _versions(), "numbers": False}
    return {**tables, "Where this report was made": versions}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _some(values: list[str]) -> str:
    """Different values in order, the first ones of many."""
    different = list(dict.fromkeys(values))
    return ", ".join(different[:8]) + (f", … ({len(different)} in all)" if len(different) > 8 else "")


def _versions() -> list[list[str]]:
    try:
        own = version("maxl_l2l")
    except PackageNotFoundError:
        own = "not installed"
    return [
        ["maxl_l2l", own],
        ["torch", str(torch.__version__)],
        ["numpy", np.__version__],
        ["Python", platform.python_version()],
        ["Platform", platform.platform()],
    ]
