"""The paper's labels and losses, tensors in and tensors out.

The hierarchy psi says which auxiliary classes belong to each primary class; the masked softmax gives labels in the
block of a sample's class; the focal loss and the entropy term are the two losses of Liu et al. (2019).
"""

from .hierarchy import Hierarchy
from .losses import (
    PROBABILITIES,
    SECOND_SOFTMAX,
    are_probabilities,
    entropy_loss,
    focal_loss,
    focal_loss_per_sample,
    masked_softmax,
    mean_label,
    negative_entropy,
    softmax_in_block,
)
