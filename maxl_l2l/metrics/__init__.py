"""Metrics of training: losses, accuracy, and statistics of the auxiliary labels.

Sums are kept on the device and read at the end of an epoch. A warning is given when labels have collapsed into single
sub-classes, or stay uniform.
"""

from .class_agreement import agreement
from .collapse import Collapse, collapse_of, warn_of_collapse
from .label_statistics import LabelMeter
from .options import Metrics, hierarchy_of
from .running_means import Means, Measured, accuracy
