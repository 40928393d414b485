"""Files of a run: each is written completely or not at all, and loading one runs no code from it.

A checkpoint holds the states of networks, optimizers, schedulers and random numbers as tensors and plain data. A file
that is damaged, or of another program or run, is refused before anything is loaded.
"""

from .atomic_files import replace_file, sole_writer, try_folder
from .checkpoint import Buffers, Checkpoint, unwritten
from .file_format import previous
from .plain_data import plain
