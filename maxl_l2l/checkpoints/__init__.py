"""Files of a run: written whole or not at all, and read without trusting them.

A checkpoint holds the states of networks, optimizers, schedulers and random numbers as tensors and plain data. What is
damaged, foreign or of another run is refused before anything is loaded.
"""

from .atomic_files import replace_file, sole_writer, try_folder
from .checkpoint import Buffers, Checkpoint, unwritten
from .file_format import former
from .plain_data import plain
