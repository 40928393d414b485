"""Fall-backs: which method takes over where another has no derivative, once and with a warning."""

import pytest
import torch
from classifiers import PSI, hypergradient, relative
from torch import nn

from maxl_l2l import MAXL


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
