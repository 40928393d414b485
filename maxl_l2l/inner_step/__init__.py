"""The inner step ``theta_1+ = U(theta_1, gradient)``: where the optimizer's next step would lead, differentiable.

U is the live optimizer's own step, with its state and groups, gradient clipping included. The rules of the optimizers
of torch.optim are in :mod:`~maxl_l2l.inner_step.rules`; of an optimizer without a rule, a copy takes its own
differentiable step.
"""

from .look_ahead import InnerStep, clip_by_norm
from .rules import RULES
