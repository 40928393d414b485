"""Faults that are provoked, and how the library responds to them; each module is a program."""
