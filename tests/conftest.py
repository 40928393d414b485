"""What every test starts from, fixed seeds and one thread; and processes for those that need several."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pool import Pool

# The networks here are too small to share out, and on busy cores torch's threads wait for one another.
# The variable is for processes that tests start, and for Lightning, which takes all cores without it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two processes that form a group."""
    with Pool() as processes:
        yield processes
