"""Calling a network at other parameters than its own.

A pass at other parameters is called virtual here: the network's own parameters and buffers stay as they are. This
package has such passes and what they need: copies of buffers, random numbers that can be drawn again, clones whose
parameters stay connected to the originals, norms over many tensors, and a lock against a second thread.
"""

from .buffers import buffer_copies, clones, copy_all, write_buffers
from .cloning import connected_clone, replace_parameters
from .magnitudes import magnitude, non_finite, norm
from .nested import copied, map_tensors, tensors_in, tensors_of
from .precision import at_least_float32, in_float16
from .random_numbers import RandomNumbers, RandomState, cuda_devices
from .threads import COMPUTING, only_run
from .virtual_pass import placed, take_over, virtual_pass, within

__all__ = [
    "COMPUTING",
    "RandomNumbers",
    "RandomState",
    "at_least_float32",
    "buffer_copies",
    "clones",
    "connected_clone",
    "copied",
    "copy_all",
    "cuda_devices",
    "in_float16",
    "magnitude",
    "map_tensors",
    "non_finite",
    "norm",
    "only_run",
    "placed",
    "replace_parameters",
    "take_over",
    "tensors_in",
    "tensors_of",
    "virtual_pass",
    "within",
    "write_buffers",
]
