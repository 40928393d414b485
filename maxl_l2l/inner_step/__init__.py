"""The inner step ``theta_1+ = U(theta_1, gradient)``: where the optimizer's next step would lead, differentiable.

U is what the live optimizer does, with its state and its groups, gradient clipping included. The rules of the
optimizers of torch.optim are in :mod:`~maxl_l2l.inner_step.rules`; one that has no rule takes its own differentiable
step on a copy.
"""

from .look_ahead import InnerStep, clip_by_norm
from .rules import RULES
