"""The version of this package; setup.py reads it here."""

VERSION = "0.1.0"
