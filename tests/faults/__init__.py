"""Faults put in on purpose, and what the library makes of them; each module is a program."""
