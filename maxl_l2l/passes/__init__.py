"""Calling a network at other parameters than its own.

Such a pass is called virtual here: the network's own parameters and buffers stay as they are. This package has virtual
passes and what they need: copies of buffers, random numbers that can be drawn again, clones whose parameters stay
connected to the originals, norms over many tensors, and a lock against a second thread.
"""

from .buffers import buffer_copies, clones, copy_all, write_buffers
from .cloning import connected_clone, replace_parameters
from .nested import copied, map_tensors, tensors_in, tensors_of
from .numerics import at_least_float32, in_float16, magnitude, non_finite, norm
from .random_numbers import RandomNumbers, RandomState, cuda_devices
from .threads import COMPUTING, only_run
from .virtual_pass import placed, take_over, virtual_pass, within
