"""Several processes, called ranks, that train together on parts of one batch.

They agree on what they do, sum gradients and statistics, and keep parameters and buffers the same everywhere. A process
alone is the case of one rank, in which nothing is exchanged.
"""

from .ranks import Ranks, checked_process_group
from .reduction import Grads, Reduction, added
from .replicas import joined_buffers, send_from_first
from .sync_norm import meets_in_passes, synchronised
