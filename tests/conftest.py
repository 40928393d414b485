"""What every test starts from: a fixed seed and one thread."""

from __future__ import annotations

import pytest
import torch

# The networks here are too small to share out, and on busy cores torch's threads wait for one another.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
