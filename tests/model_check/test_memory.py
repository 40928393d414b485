"""The bytes that autograd keeps, against counts by hand."""

import torch
from torch import nn

from maxl_l2l.model_check.memory import kept_for_backward

CPU = torch.device("cpu")


def test_inputs_and_results_count_once_and_parameters_do_not():
    model, x = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)), torch.randn(4, 10)
    # The first layer keeps x, tanh its result, which is what the last layer keeps too.
    assert kept_for_backward(lambda: model(x), model, CPU) == 4 * (4 * 10 + 4 * 20)


def test_what_is_freed_does_not_count_any_more():
    model, x = nn.Sequential(nn.Linear(10, 20), nn.Tanh()), torch.randn(4, 10)

    def three_steps():
        for _ in range(3):
            model(x).sum().backward()

    assert kept_for_backward(three_steps, model, CPU) == kept_for_backward(lambda: model(x), model, CPU)


def test_graphs_that_live_together_add_up():
    model, x = nn.Sequential(nn.Linear(10, 20), nn.Tanh()), torch.randn(4, 10)
    # x is one and the same, the results are not.
    assert kept_for_backward(lambda: [model(x) for _ in range(3)], model, CPU) == 4 * (4 * 10 + 3 * 4 * 20)


def test_second_derivatives_are_right_under_the_meter():
    x = torch.tensor(2.0, requires_grad=True)
    found = []

    def twice():
        (first,) = torch.autograd.grad(x.tanh().exp(), x, create_graph=True)
        found.extend(torch.autograd.grad(first, x))

    kept_for_backward(twice, nn.Identity(), CPU)
    (first,) = torch.autograd.grad(x.tanh().exp(), x, create_graph=True)
    assert torch.equal(found[0], *torch.autograd.grad(first, x))
