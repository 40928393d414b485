"""Label sources: where the auxiliary labels of a run come from, and what the generator learns from, if anything.

All have one interface, so that comparisons are fair: the same training loop, network and optimizers serve every source.
"""

from .fixed import WHOLE, FixedLabels, HumanLabels, RandomLabels, items
from .generated import EntropyLabels, GeneratedLabels
from .label_source import LabelSource, SingleTask
