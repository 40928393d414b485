"""The model check: whether a model is differentiated correctly, and what a step costs, before it is trained.

It looks for what would make the hypergradient wrong (hidden parameters, outputs that change from pass to pass),
compares it with central differences of a real step, and measures time and memory.
"""

from .check import ModelCheck, check_model
