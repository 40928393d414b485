"""Training steps: one iteration of both networks, or of one of them.

Everything is computed before anything is changed. The step of an optimizer that raises, or that gives NaN or infinity,
is undone.
"""

from .cosine import gradient_cosine
from .iteration import add_hypergradient, fused_step, generator_step, network_step
from .updates import Updates
