"""The tape gives each call its own result: layers that run twice, on different paths, in one pass."""

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL
from maxl_l2l.hypergradient import tape as tape_module
from maxl_l2l.hypergradient.tape import Tape

WIDTH = 130  # from 128 products on, a linear layer's results are kept


class Twice(nn.Module):
    """A layer that runs on the input, in one way or another, and on what an adapter makes of it."""

    def __init__(self, frozen=True):
        super().__init__()
        self.adapter, self.shared, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, 3)
        self.shared.requires_grad_(not frozen)

    def first(self, x):
        return self.shared(x)

    def forward(self, x):
        return self.head(torch.cat([self.first(x).tanh(), self.shared(self.adapter(x).tanh()).tanh()], 1))


class Constant(Twice):
    """The raw input is constant for a frozen layer, as in adapters on shared depth."""


class Detached(Twice):
    def first(self, x):
        return self.shared(self.adapter(x)).detach()


class StopGradient(Twice):
    def first(self, x):
        with torch.no_grad():
            return self.shared(self.adapter(x))


class Adversarial(Twice):
    """An input that is moved along its own gradient, inside the pass."""

    def first(self, x):
        with torch.enable_grad():
            moved = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.shared(moved).square().sum(), moved)
        return self.shared((x + 0.01 * slope.sign()).detach())


class Mapped(Twice):
    def first(self, x):
        return torch.func.vmap(self.shared)(x)


class Normalised(Twice):
    """Batch normalisation twice, first of a constant."""

    def __init__(self, frozen=True):
        super().__init__(frozen)
        self.norm = nn.BatchNorm1d(WIDTH).requires_grad_(False)

    def first(self, x):
        return self.norm(x)

    def forward(self, x):
        return self.head(torch.cat([self.first(x), self.norm(self.adapter(x))], 1))


KINDS = (Constant, Detached, StopGradient, Adversarial, Mapped, Normalised)


def gradient(maxl, x, y, method):
    maxl.generator.zero_grad()
    maxl.hypergradient(x, y, method=method)
    return torch.cat([p.grad.flatten() for p in maxl.generator.parameters() if p.grad is not None])


def learner(kind, frozen):
    torch.manual_seed(1)
    return MAXL(kind(frozen).double(), [3, 2, 4], entropy_weight=0.0)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_runs_twice_gets_its_own_results_at_every_call(kind, frozen):
    maxl, x, y = learner(kind, frozen), torch.randn(12, WIDTH, dtype=torch.float64), torch.arange(12) % 3
    expected = gradient(maxl, x, y, "unrolled")
    for _ in range(4):
        found = gradient(maxl, x, y, "forward")
        assert (found - expected).norm() <= 1e-11 * expected.norm()
    assert maxl.experience.repeats is True


class Alternating(Twice):
    """Other layers in each pass: nothing of one is of use for another."""

    def __init__(self, frozen=True):
        super().__init__(frozen)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        first, second = (self.shared, self.adapter) if self.passes % 4 < 2 else (self.adapter, self.shared)
        return self.head(torch.cat([first(x).tanh(), second(x).tanh()], 1))


def test_after_another_call_than_the_recorded_one_nothing_is_given():
    model, x = Twice().double(), torch.randn(4, WIDTH, dtype=torch.float64)
    with Tape() as tape:
        model(x)
    shape, names = [4, WIDTH], [call.name for call in tape.calls]
    assert names == ["linear"] * 4
    assert tape.take("linear", shape, model.shared.weight) is not None
    assert tape.take("linear", shape, model.shared.weight) is None  # the recorded one is of the adapter
    assert tape.take("linear", shape, model.adapter.weight) is None
    assert not tape.is_used_up


def test_a_network_that_makes_other_calls_in_each_pass_is_differentiated_without_a_tape(monkeypatch):
    maxl = learner(Alternating, False)
    x, y = torch.randn(12, WIDTH, dtype=torch.float64), torch.arange(12) % 3
    maxl.experience.repeats, maxl.experience.compared = True, 2  # as if the first passes had been the same
    maxl.network.module.passes = 0
    maxl.hypergradient(x, y)
    assert maxl.experience.repeats is False
    monkeypatch.setattr(
        tape_module.Tape, "take", lambda self, *call: pytest.fail("a tape is asked") if self.calls else None
    )
    maxl.hypergradient(x, y)
