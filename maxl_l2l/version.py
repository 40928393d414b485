"""The version of this package; setup.py reads it here."""

from __future__ import annotations

VERSION = "0.1.0"
