"""The gradient cosine: against two backward passes, and over ranks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from measured_runs import PSI, data, learner
from torch import nn

from maxl_l2l import MAXL


class TestGradientCosine:
    @pytest.mark.parametrize("micro_batches", [1, 3])
    def test_is_that_of_two_backward_passes(self, micro_batches):
        maxl = learner().double()
        x, y = torch.randn(6, 8, dtype=torch.float64), torch.arange(6) % 3
        found = maxl.gradient_cosine(x, y, micro_batches=micro_batches)
        labels = maxl.generator(x, y).detach()
        primary, auxiliary = maxl.network(x)
        shared = list(maxl.module[0].parameters())
        sides = [
            torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, shared, retain_graph=True)])
            for loss in (maxl.objective.primary(primary, y), maxl.objective.auxiliary(auxiliary, labels))
        ]
        assert found == pytest.approx(float(F.cosine_similarity(*sides, dim=0)), rel=1e-5)

    def test_the_task_itself_as_auxiliary_task_pulls_the_same_way(self):
        maxl = MAXL(nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)), [1, 1, 1])
        with torch.no_grad():
            for own, other in zip(maxl.module[2].parameters(), maxl.network.auxiliary_head.parameters()):
                other.copy_(own)
        assert maxl.gradient_cosine(torch.randn(6, 8), torch.arange(6) % 3) == pytest.approx(1.0)

    def test_changes_nothing(self):
        maxl = learner(nn.BatchNorm1d(16), nn.Dropout(0.5))
        before, random = copy.deepcopy(maxl.state_dict()), torch.get_rng_state()
        maxl.gradient_cosine(torch.randn(6, 8, generator=torch.Generator()), torch.arange(6) % 3)
        assert all(torch.equal(value, before[name]) for name, value in maxl.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert all(parameter.grad is None for parameter in maxl.parameters())

    def test_none_without_a_shared_parameter_or_with_a_zero_gradient(self):
        x, y = torch.randn(6, 8), torch.arange(6) % 3
        assert MAXL(nn.Linear(8, 3), PSI).gradient_cosine(x, y) is None
        maxl = learner()
        nn.init.zeros_(maxl.network.auxiliary_head.weight)
        assert maxl.gradient_cosine(x, y) is None

    def test_takes_given_targets_and_checks_them(self):
        maxl, x, y = learner(), torch.randn(6, 8), torch.arange(6) % 3
        starts = torch.tensor([0, 2, 5])
        one_hot = F.one_hot(starts[y], 6).float()
        found = maxl.gradient_cosine(x, y, targets=starts[y])
        assert found == pytest.approx(float(maxl.gradient_cosine(x, y, targets=one_hot)))
        with pytest.raises(ValueError, match="`targets` must lie in the block of their primary class, found label 5"):
            maxl.gradient_cosine(x, y, targets=torch.full((6,), 5))


class Branching(nn.Module):
    """A model whose second layer runs on more than three samples alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.first(x).tanh()
        return self.head(hidden + self.second(hidden) if len(x) > 3 else hidden)


def cosine_by(rank):
    """The cosine of a rank with two or four samples; only with four it uses all of the model."""
    torch.manual_seed(0)
    maxl = MAXL(Branching(), PSI)
    maxl.distribute()
    x, y = data(6).tensors
    where = (slice(0, 2), slice(2, 6))[rank]
    return float(maxl.gradient_cosine(x[where], y[where]))


def test_ranks_that_use_other_parameters_agree_on_the_cosine(pool):
    first, second = pool.run(cosine_by)
    assert first == second
    assert -1 <= first <= 1
