"""Meta AuXiliary Learning (MAXL) for any PyTorch classifier: a second network invents finer labels that help yours.

>>> import torch
>>> from maxl_l2l import MAXL
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
>>> maxl = MAXL(model, psi=[5, 5])
>>> optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
>>> generator_optimizer = torch.optim.Adam(maxl.generator.parameters(), lr=0.01)
>>> result = maxl.step(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]), optimizer, generator_optimizer)
"""

import sys

from .errors import NonFiniteError
from .former_names import FORMER_NAMES
from .hypergradient import StepResult
from .labels import Hierarchy, entropy_loss, focal_loss, masked_softmax
from .learners import MAXL, AuxiliaryLabelGenerator
from .metrics import Metrics
from .model_check import ModelCheck, check_model
from .networks import LabelGenerator, MultiTaskNetwork
from .reporting import report
from .sources import EntropyLabels, GeneratedLabels, HumanLabels, LabelSource, RandomLabels, SingleTask
from .training import History, evaluate, fit
from .version import VERSION

__version__ = VERSION
sys.modules.update({f"{__name__}.{name}": module for name, module in FORMER_NAMES.items()})

__all__ = [
    "MAXL",
    "AuxiliaryLabelGenerator",
    "LabelGenerator",
    "MultiTaskNetwork",
    "Hierarchy",
    "masked_softmax",
    "focal_loss",
    "entropy_loss",
    "fit",
    "evaluate",
    "report",
    "History",
    "Metrics",
    "StepResult",
    "NonFiniteError",
    "check_model",
    "ModelCheck",
    "LabelSource",
    "SingleTask",
    "RandomLabels",
    "HumanLabels",
    "GeneratedLabels",
    "EntropyLabels",
]
