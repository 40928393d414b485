"""The names of modules in version 0.1.0, which learners that it pickled, and its documentation, refer to."""

from . import hypergradient, inner_step, labels, learners, metrics, training
from .distributed import ranks

FORMER_NAMES = {
    "algorithm": learners.auxiliary_learning,
    "derivatives": hypergradient.results,
    "finite_difference": hypergradient.finite_difference,
    "hierarchy": labels.hierarchy,
    "history": training.history,
    "inner_pass": hypergradient.bilevel,
    "label_meter": metrics.label_statistics,
    "losses": labels.losses,
    "maxl": learners.maxl,
    "ranks": ranks,
    "rules": inner_step.rules,
    "watch": metrics.collapse,
}
"""Each module by its name in version 0.1.0; `maxl_l2l` adds them to ``sys.modules``."""
