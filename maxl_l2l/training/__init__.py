"""The training loop: :func:`fit`, and :func:`evaluate`.

Epochs and schedules, checkpoints that are gone on from inside an epoch, signals and time limits, the progress bar and
loggers. Nothing below this package knows data loaders.
"""

from .batches import check_loader, given_labels, length, moved
from .evaluation import device_of, evaluate, evaluation_mode
from .fitting import fit
from .history import History
from .loggers import scalars
from .progress import SHOWN
