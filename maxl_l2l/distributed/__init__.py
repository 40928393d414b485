"""Distributed training: several processes, called ranks, that train together on parts of one batch.

The ranks check that they make the same calls, sum gradients and statistics, and keep parameters and buffers equal. A
single process is one rank, which exchanges nothing.
"""

from .ranks import Ranks, checked_process_group
from .reduction import Grads, Reduction, added
from .replicas import joined_buffers, send_from_first
from .sync_norm import meets_in_passes, synchronised
