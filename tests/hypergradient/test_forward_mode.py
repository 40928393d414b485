"""The forward-mode pass: against a plain one of PyTorch, and what it reuses of the inner pass."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import maxl_l2l.hypergradient.tape
from maxl_l2l.hypergradient.forward_mode import output_tangent
from maxl_l2l.hypergradient.tape import Tape
from maxl_l2l.passes.buffers import buffer_copies
from maxl_l2l.passes.random_numbers import RandomState
from maxl_l2l.passes.virtual_pass import virtual_pass


@pytest.fixture(autouse=True)
def _math_attention():
    with sdpa_kernel(SDPBackend.MATH):  # the one with a forward-mode rule; the engine asks for it
        yield


@pytest.fixture(autouse=True)
def _keep_small_ones(monkeypatch):
    for name in ("MIN_PRODUCTS", "MIN_PRODUCTS_OF_LINEAR"):
        monkeypatch.setattr(maxl_l2l.hypergradient.tape, name, 1)


class TwoOutputs(nn.Module):
    """Gives the auxiliary outputs second, as a multi-task network does."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return None, self.body(x)


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x + y).flatten(1)


def conv(inplace=True, **options):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, **options),
        nn.BatchNorm2d(6, affine=not options),
        nn.ReLU(inplace),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(inplace),  # overwrites what the convolution gave
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(4, 5, 2),
        nn.Flatten(),
        nn.Linear(320, 7, bias=False),
    )


NETWORKS = {
    "conv": (conv, (4, 3, 16, 16)),
    "conv without bias and affine": (lambda: conv(bias=False), (4, 3, 16, 16)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten()), (4, 3, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), nn.Flatten()), (4, 2, 4, 4, 4)),
    "attention": (lambda: Attention(True), (4, 5, 12)),
    "attention, batch second": (lambda: Attention(False), (5, 4, 12)),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(12, 12),
            nn.LayerNorm(12),
            nn.LayerNorm((5, 12), bias=False),
            nn.LayerNorm(12, elementwise_affine=False),
            nn.BatchNorm1d(5, track_running_stats=False),
            nn.GroupNorm(5, 5),
        ),
        (4, 5, 12),
    ),
}


def case(name):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network, x = TwoOutputs(make()).double(), torch.randn(shape).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parameters = dict(network.named_parameters())
    return network, x, {key: torch.randn_like(value) for key, value in parameters.items()}


def expected_tangent(network, x, direction):
    primals = {key: value.detach() for key, value in network.named_parameters()}
    buffers = buffer_copies(network)
    still = {key: value for key, value in primals.items() if key not in direction}
    return jvp(
        lambda moving: functional_call(network, (still, moving, {k: v.clone() for k, v in buffers.items()}), (x,))[1],
        ({key: primals[key] for key in direction},),
        (direction,),
    )[1]


def taped(network, x):
    tape = Tape()
    with tape:
        virtual_pass(network, {}, buffer_copies(network), x)
    return tape


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_tape", [True, False])
def test_own_rules_agree_with_those_of_pytorch(name, training, with_tape):
    network, x, direction = case(name)
    network.train(training)
    tape = taped(network, x) if with_tape else None
    _, found = output_tangent(network, x, direction, buffer_copies(network), RandomState([]), tape)
    torch.testing.assert_close(found, expected_tangent(network, x, direction), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_without_a_tangent_stand_still(name):
    network, x, direction = case(name)
    for key in list(direction):
        rest = {other: part for other, part in direction.items() if other != key}
        if not rest:
            continue
        _, found = output_tangent(network, x, rest, buffer_copies(network), RandomState([]), taped(network, x))
        torch.testing.assert_close(found, expected_tangent(network, x, rest), rtol=1e-10, atol=1e-12)


def kept(tape):
    """Names of what a tape has, in order, and whether it has since been written over."""
    return [(call.name, call.kept[0]._version == call.version) for call in tape.calls if call.kept]


def test_products_are_taken_from_the_tape_and_what_was_overwritten_is_computed_again():
    network, x, direction = case("conv")
    tape = taped(network, x)
    assert [name for name, _ in kept(tape)] == ["conv2d", "batch_norm", "conv2d", "conv_transpose2d", "linear"]
    assert [ok for _, ok in kept(tape)] == [True, True, False, True, True]
    expected = expected_tangent(network, x, direction)
    tape.calls[0].kept[0].data.mul_(1.5)  # without a change of the version counter
    _, wrong = output_tangent(network, x, direction, buffer_copies(network), RandomState([]), tape)
    assert tape.is_used_up
    assert (wrong - expected).norm() > 1e-3 * expected.norm()  # so it does come from the tape


def test_results_that_are_large_for_their_work_are_not_kept(monkeypatch):
    monkeypatch.setattr(maxl_l2l.hypergradient.tape, "MIN_PRODUCTS", 50)
    network, x, direction = case("conv")  # 27, 54, 20 and 320 products an entry
    tape = taped(network, x)
    assert [name for name, _ in kept(tape)] == ["batch_norm", "conv2d", "linear"]
    _, found = output_tangent(network, x, direction, buffer_copies(network), RandomState([]), tape)
    torch.testing.assert_close(found, expected_tangent(network, x, direction), rtol=1e-10, atol=1e-12)


def test_nothing_of_the_network_changes():
    network, x, direction = case("conv")
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    output_tangent(network, x, direction, buffer_copies(network), RandomState([]), taped(network, x))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_outputs_that_do_not_depend_on_the_direction_have_no_tangent():
    network, x, _ = case("norms")
    network.unused = nn.Linear(2, 2).double()
    outputs, tangent = output_tangent(
        network, x, {"unused.weight": torch.ones(2, 2).double()}, buffer_copies(network), RandomState([])
    )
    assert tangent is None or not tangent.any()
    torch.testing.assert_close(outputs, network(x)[1])
