"""Tests that were added for mutants which no other test noticed."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import RAdam
from torch.utils.data import DataLoader, TensorDataset

from maxl_l2l import MAXL, Hierarchy, LabelGenerator, SingleTask, evaluate, fit
from maxl_l2l.hypergradient.forward_mode import output_tangent
from maxl_l2l.hypergradient.micro_batches import split
from maxl_l2l.hypergradient.tape import Tape
from maxl_l2l.inner_step.look_ahead import InnerStep
from maxl_l2l.metrics.label_statistics import LabelMeter
from maxl_l2l.metrics.running_means import Usage
from maxl_l2l.passes.buffers import buffer_copies
from maxl_l2l.passes.numerics import non_finite
from maxl_l2l.passes.random_numbers import RandomState

PSI = [3, 4]


def mlp(*layers):
    return nn.Sequential(nn.Linear(8, 16), *layers, nn.Tanh(), nn.Linear(16, 2)).double()


def batch(size=10, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 8, generator=numbers, dtype=torch.float64)
    return x, torch.randint(0, 2, (size,), generator=numbers)


@pytest.mark.parametrize("beta2", [0.9, 0.999])
def test_radam_is_followed_where_it_rectifies(beta2):
    parameter = torch.randn(5, dtype=torch.float64, requires_grad=True)
    optimizer = RAdam([parameter], lr=0.1, betas=(0.9, beta2))
    for _ in range(8):  # it rectifies from its sixth step on
        parameter.grad = torch.randn(5, dtype=torch.float64)
        optimizer.step()
    grad = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (found,) = InnerStep(optimizer).look_ahead([parameter], [grad])
    (slope,) = torch.autograd.grad(found.sum(), grad)
    torch.testing.assert_close(InnerStep(optimizer).pull_back([parameter], [grad], [torch.ones(5).double()])[0], slope)
    parameter.grad = grad.detach()
    optimizer.step()
    torch.testing.assert_close(found, parameter, rtol=1e-12, atol=1e-14)


def test_finite_differences_at_a_known_distance_are_near_too():
    moved = {}
    for method in ("forward", "finite-difference"):
        torch.manual_seed(0)
        maxl = MAXL(mlp(), PSI, entropy_weight=0.0)
        optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
        generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=1.0)
        maxl.step(*batch(), optimizer, generator_optimizer)
        maxl.step(*batch(), optimizer, generator_optimizer, method=method)  # finds the distance
        before = [parameter.detach().clone() for parameter in maxl.generator.parameters()]
        maxl.step(*batch(seed=1), optimizer, generator_optimizer, method=method)  # goes by it, to one side
        moved[method] = torch.cat([(p - q).flatten() for p, q in zip(maxl.generator.parameters(), before)]).detach()
    error = (moved["finite-difference"] - moved["forward"]).norm() / moved["forward"].norm()
    assert 0 < error < 1e-3


def test_labels_of_micro_batches_are_made_twice_with_one_dropout_mask():
    torch.manual_seed(0)
    generator = LabelGenerator(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 7)).double(), PSI)
    maxl = MAXL(mlp(), PSI, generator=generator)
    x, y = batch()
    torch.manual_seed(7)
    maxl.hypergradient(x, y, method="regularizer", micro_batches=2)
    torch.manual_seed(7)
    q = torch.cat([generator(*part) for part in split((x, y), 2)]).mean(dim=0)
    expected = torch.autograd.grad(0.2 * (q * q.log()).sum(), list(generator.parameters()))
    for parameter, grad in zip(generator.parameters(), expected):
        torch.testing.assert_close(parameter.grad, grad)


class Named(nn.Module):
    """Takes the entries of a mapping as keyword arguments."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, left, right, scale):
        return self.head(torch.tanh(self.body(left - scale * right)))


def test_micro_batches_of_a_mapping_keep_each_sample_with_its_label():
    torch.manual_seed(0)
    maxl = MAXL(Named().double(), PSI, head="head")
    (left, y), (right, _) = batch(), batch(seed=1)
    x = {"left": left, "right": right, "scale": 0.5}
    found = []
    for micro_batches in (1, 3):
        maxl.zero_grad()
        found.append(maxl.hypergradient(x, y, micro_batches=micro_batches))
        found.append([parameter.grad.clone() for parameter in maxl.generator.parameters()])
    torch.testing.assert_close(found[3], found[1])
    torch.testing.assert_close(found[2][:4], found[0][:4])


class WrittenOver(nn.Module):
    """Writes over the result of a product, and not with what could be written over it twice."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(256, 4), nn.Linear(4, 3)

    def forward(self, x):
        return None, self.head(self.body(x).mul_(0.5).tanh())


def test_result_that_was_written_over_is_not_taken_from_the_tape():
    torch.manual_seed(0)
    network, x = WrittenOver().double(), torch.randn(6, 256, dtype=torch.float64)
    direction = {name: torch.randn_like(parameter) for name, parameter in network.named_parameters()}
    with Tape() as tape:
        network(x)
    assert any(call.kept for call in tape.calls)
    rng, buffers = RandomState([]), buffer_copies(network)
    outputs, tangent = output_tangent(network, x, direction, buffers, rng)
    found, its_tangent = output_tangent(network, x, direction, buffers, rng, tape)
    torch.testing.assert_close(found, outputs)
    torch.testing.assert_close(its_tangent, tangent)


def test_nan_and_both_infinities_are_not_finite():
    terms = {"one": torch.ones(()), "none": None, "up": torch.tensor(torch.inf), "down": torch.tensor(-torch.inf)}
    assert non_finite(terms) == {"up": torch.inf, "down": -torch.inf}
    assert list(non_finite({"nan": torch.tensor(torch.nan), "zero": torch.zeros(())})) == ["nan"]


def test_sub_class_of_a_single_sample_is_in_use():
    meter = LabelMeter(Hierarchy(PSI), torch.device("cpu"))
    meter.add(torch.tensor([0, 0, 4]), torch.tensor([0, 0, 1]))
    found = meter.values()
    assert (found["sub_classes"], found["sub_classes_per_class"]) == (2, [1, 1])


def test_meta_loss_does_not_move_the_generators_statistics():
    maxl = MAXL(mlp(nn.BatchNorm1d(16)), PSI)
    before = copy.deepcopy(dict(maxl.generator.named_buffers()))
    maxl.meta_loss(*batch())
    torch.testing.assert_close(dict(maxl.generator.named_buffers()), before, rtol=0, atol=0)


def test_sub_classes_are_those_that_were_the_most_probable_label_of_a_sample():
    usage = Usage()
    assert usage.values() == {}
    usage.add(torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.6, 0.1, 0.0, 0.3], [0.6, 0.0, 0.1, 0.3]]))
    assert usage.values() == {"sub_classes": 1}
    usage.add(torch.tensor([[0.0, 0.1, 0.2, 0.7]]))
    assert usage.values() == {"sub_classes": 2}
    usage.add(torch.tensor([3, 2]))
    assert usage.values() == {"sub_classes": 3}


def test_history_is_of_samples_not_of_batches():
    x, y = batch()
    maxl = MAXL(mlp(), PSI, lr=0.0)
    loader = DataLoader(TensorDataset(x, y), batch_size=8)  # eight samples, then two
    history = fit(maxl, loader, 1, source=SingleTask(), test_loader=loader, progress=False)
    expected = maxl.primary_loss(x, y).item()
    assert history["primary_loss"][0] == pytest.approx(expected)
    assert history["test_loss"][0] == pytest.approx(expected)
    assert evaluate(maxl, loader)["loss"] == pytest.approx(expected)


def test_default_optimizer_of_the_generator_decays_weights_as_the_paper_does(monkeypatch):
    found = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda own, *args: found.append(own) or step(own, *args))
    maxl = MAXL(mlp(), PSI, lr=0.05)
    fit(maxl, [batch()], 1, progress=False)
    own = {id(parameter) for parameter in maxl.generator.parameters()}
    (group,) = next(one.param_groups for one in found if id(one.param_groups[0]["params"][0]) in own)
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (1e-3, 5e-4, 0)
