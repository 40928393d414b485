"""The learners: :class:`MAXL`, and :class:`AuxiliaryLabelGenerator`, its general form for any targets and losses.

A learner joins the model, the generator and the losses of both levels. It has the interface of learn2learn's MAML, and
:meth:`~AuxiliaryLabelGenerator.step` for one fused iteration.
"""

from .auxiliary_learning import AuxiliaryLabelGenerator
from .maxl import MAXL
