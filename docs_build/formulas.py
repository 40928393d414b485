"""Formulas: blocks of TeX become MathML when the site is built, so that no browser loads a script for them.

A block is fenced as ``math``, which GitHub shows as a formula too.
"""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> None:
    """Has superfences pass blocks of TeX to :func:`formula`."""
    fences = {"custom_fences": [{"name": "math", "class": "formula", "format": formula}]}
    config.mdx_configs.setdefault("pymdownx.superfences", {}).update(fences)


def formula(source: str, *args: Any, **kwargs: Any) -> str:
    """Returns a block of TeX, one formula, as HTML."""
    return f'<div class="formula">{convert(source, display="block")}</div>'
