"""The training loop: :func:`fit`, and :func:`evaluate`.

It has epochs and schedules, checkpoints from which a run can be resumed even inside an epoch, signals and time limits,
the progress bar and loggers. Packages below this one know nothing of data loaders.
"""

from .batches import check_loader, given_labels, length, moved
from .evaluation import device_of, evaluate, evaluation_mode
from .fitting import fit
from .history import History
from .loggers import scalars
from .progress import SHOWN
