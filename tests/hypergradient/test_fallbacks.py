"""Fall-backs: which method takes over where another has no derivative, once and with a warning."""

import copy

import pytest
import torch
from classifiers import PSI, hypergradient, relative
from torch import nn

from maxl_l2l import MAXL, LabelGenerator


class OnceDifferentiable(torch.autograd.Function):
    """The identity, with neither a forward-mode rule nor a second derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


class Opaque(nn.Module):
    def forward(self, x):
        return OnceDifferentiable.apply(x)


def count_warnings(caught):
    return [str(one.message) for one in caught if "does not work for this network" in str(one.message)]


def test_operator_without_a_forward_mode_rule_falls_back_once_on_the_double_backward_pass():
    class Written(nn.Module):
        def forward(self, x):
            return torch.mul(x, 2.0, out=torch.empty(0, dtype=x.dtype)) if not x.requires_grad else 2 * x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Written(), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2)).double()
    maxl = MAXL(model, PSI)
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    expected = hypergradient(maxl, x, y, method="unrolled")
    with pytest.warns(RuntimeWarning) as caught:
        found = [hypergradient(maxl, x, y) for _ in range(3)]
    assert len(count_warnings(caught)) == 1
    assert "mul_out" in count_warnings(caught)[0]
    assert "double backward pass" in count_warnings(caught)[0]
    assert all(torch.equal(one, expected) for one in found)


def test_operator_without_any_second_order_rule_falls_back_once_on_finite_differences():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2)]
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    exact = MAXL(nn.Sequential(*layers).double(), PSI, entropy_weight=0.0)
    expected = hypergradient(exact, x, y)
    opaque = nn.Sequential(layers[0], Opaque(), *layers[1:])
    maxl = MAXL(opaque, PSI, generator=exact.generator, entropy_weight=0.0)
    maxl.network.auxiliary_head.load_state_dict(exact.network.auxiliary_head.state_dict())
    with pytest.warns(RuntimeWarning) as caught:
        found = [hypergradient(maxl, x, y) for _ in range(2)]
    messages = count_warnings(caught)
    assert ["'forward' does not" in messages[0], "'unrolled' does not" in messages[1]] == [True, True]
    assert len(messages) == 2
    for one in found:
        assert relative(one, expected) < 1e-2
    with pytest.raises(RuntimeError, match="once_differentiable"):
        hypergradient(maxl, x, y, method="unrolled")  # what was asked for by name is not replaced


def test_error_of_another_kind_does_not_fall_back():
    maxl = MAXL(nn.Sequential(nn.Linear(8, 2)), PSI)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        maxl.hypergradient(torch.randn(6, 7), torch.randint(0, 2, (6,)))


def test_function_that_keeps_a_name_of_its_own_is_differentiated_twice():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.name = "scale"
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

        @staticmethod
        def jvp(ctx, tangent):
            return 2 * tangent

    class Layer(nn.Module):
        def forward(self, x):
            return Scale.apply(x)

    maxl = MAXL(nn.Sequential(nn.Linear(8, 4), Layer(), nn.Linear(4, 2)), [3, 3]).double()
    x, y = torch.randn(4, 8).double(), torch.tensor([0, 1, 1, 0])
    unrolled = hypergradient(maxl, x, y, method="unrolled")
    assert relative(hypergradient(maxl, x, y), unrolled) < 1e-10


class Watched(nn.Module):
    """A recurrent network that records in which of its passes fused kernels are allowed."""

    def __init__(self, dropout):
        super().__init__()
        self.body = nn.LSTM(4, 8, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, 2)
        self.fused, self.shift = [], 0.0

    def forward(self, x):
        self.fused.append(torch.backends.mkldnn.enabled)
        return self.head(self.body(x)[0][:, -1] + self.shift * (not self.fused[-1]))


def watched_learner(dropout):
    torch.manual_seed(1)
    generator = LabelGenerator(nn.Sequential(nn.Flatten(), nn.Linear(20, 7)), PSI)
    return MAXL(Watched(dropout), PSI, generator=generator), torch.randn(6, 5, 4), torch.arange(6) % 2


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, [True, True, False]), (0.5, [False, False, False])])
def test_fused_recurrent_kernels_are_left_in_as_few_passes_as_dropout_masks_allow(dropout, expected):
    maxl, x, y = watched_learner(dropout)
    exact = MAXL(copy.deepcopy(maxl.module).double(), PSI, generator=copy.deepcopy(maxl.generator).double())
    exact.network.load_state_dict(maxl.network.state_dict())
    for _ in range(3):
        maxl.module.fused.clear()
        found = hypergradient(maxl, x, y)
        if dropout == 0:  # masks of another dtype are others
            assert relative(found.double(), hypergradient(exact, x.double(), y, method="unrolled")) < 1e-4
    assert maxl.module.fused == expected


def test_what_is_found_for_one_method_does_not_slow_another_down():
    maxl, x, y = watched_learner(0.0)
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
    maxl.step(x, y, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.1))
    maxl.module.fused.clear()
    maxl.hypergradient(x, y, method="finite-difference", epsilon=0.01)
    maxl.network_step(x, y, optimizer)
    assert len(maxl.module.fused) > 3
    assert all(maxl.module.fused)


def test_outputs_of_plain_kernels_that_differ_from_fused_ones_make_all_passes_plain():
    maxl, x, y = watched_learner(0.0)
    maxl.module.shift = 1.0
    maxl.hypergradient(x, y)
    assert maxl.experience.plain_kernels is True
    assert maxl.experience.repeats is True
