"""What the derivatives are used for: one iteration of both networks, or of one of them.

All is computed before anything is changed. An optimizer that fails, or whose step would leave NaN or infinity, is
undone.
"""

from .cosine import gradient_cosine
from .iteration import add_hypergradient, fused_step, generator_step, network_step
from .updates import Updates
