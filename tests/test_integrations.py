"""Against the real learn2learn and higher: programs written for them run with MAXL, and the answers agree."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maxl_l2l import MAXL

with warnings.catch_warnings():
    # Both import packages that are deprecated by now (gym, pkg_resources, torch.jit): theirs to mend, not ours.
    warnings.simplefilter("ignore")
    import higher
    import learn2learn as l2l


def program(learner_class, model, **options):
    """A training step as learn2learn's users write it; returns the gradients of the model."""
    maml = learner_class(model, lr=0.5, **options)
    numbers = torch.Generator().manual_seed(0)
    for _ in range(2):
        x, y = torch.randn(6, 4, 8, generator=numbers).double(), torch.randint(0, 3, (6,), generator=numbers)
        learner = maml.clone()
        for _ in range(3):
            learner.adapt(F.cross_entropy(learner(x), y))
        F.cross_entropy(learner(x), y).backward()
    return [parameter.grad for parameter in maml.module.parameters()]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Shared(nn.Module):
    """One layer under two names, as in learn2learn's own tests."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.body = nn.Sequential(nn.Flatten(), self.layer, nn.Tanh(), self.layer, nn.Tanh())
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        return self.out(self.body(x))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 3)),
    "batch norm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)
    ),
    "lstm": Recurrent,
    "shared": Shared,
}


def maxl_for_three_classes(model, **options):
    return MAXL(model, [2, 3, 1], **options)


@pytest.mark.filterwarnings("ignore:first_order=True:UserWarning")
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_maml_program_gives_the_same_gradients(kind, first_order):
    model = MODELS[kind]().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # learn2learn reads .grad of the weights of a cloned LSTM
        expected = program(l2l.algorithms.MAML, copy.deepcopy(model), first_order=first_order)
    found = program(maxl_for_three_classes, model, first_order=first_order)
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_frozen_and_unused_parameters_as_in_maml():
    model = MODELS["mlp"]().double()
    model[1].weight.requires_grad_(False)
    expected = program(l2l.algorithms.MAML, copy.deepcopy(model), allow_nograd=True)
    found = program(maxl_for_three_classes, model, allow_nograd=True)
    assert found[0] is None
    assert expected[0] is None
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-9, atol=1e-12)


def test_constructor_and_flags_are_those_of_maml():
    model = MODELS["mlp"]()
    maml, maxl = l2l.algorithms.MAML(model, 0.3), MAXL(model, [2, 2, 2], 0.3)
    for name in ("lr", "first_order", "allow_unused", "allow_nograd"):
        assert getattr(maxl, name) == getattr(maml, name)
    assert maxl.module is maml.module
    for ours, theirs in zip(maxl.parameters(), maml.parameters()):
        assert ours is theirs


def test_of_three_layers_with_as_many_outputs_the_last_is_the_head():
    # The model of learn2learn's own tests: three linear layers with as many outputs as classes.
    model = nn.Sequential(
        nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.Sigmoid(), nn.Linear(20, 20), nn.Softmax(dim=1)
    )
    model.register_buffer("dummy_buf", torch.zeros(1, 2, 3, 4))
    maxl = MAXL(model, psi=[5] * 20, lr=0.01, allow_unused=True)
    assert maxl.network.head == "4"
    x = torch.randn(7, 10)
    learner = maxl.clone()
    torch.testing.assert_close(learner(x), model(x), rtol=0, atol=0)
    learner.adapt(sum(p.norm() for number, p in enumerate(learner.parameters()) if number % 2 == 0))
    sum(p.norm() for p in learner.parameters()).backward()
    assert all(p.grad is not None for p in model.parameters())


def higher_gradient(maxl, optimizer, x, y, steps):
    with higher.innerloop_ctx(maxl.network, optimizer, copy_initial_weights=False) as (network, inner):
        for _ in range(steps):
            inner.step(maxl.loss(x, y, network=network))
        maxl.meta_loss(x, y, network=network).backward()
    grads = [parameter.grad for parameter in maxl.generator.parameters()]
    maxl.zero_grad()
    return grads


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        # higher has the Adam of older torch, which adds eps before it corrects the bias: a tiny eps hides that.
        lambda parameters: torch.optim.Adam(parameters, lr=0.1, eps=1e-18),
    ],
    ids=["sgd", "adam"],
)
def test_higher_gives_the_same_hypergradient(make):
    maxl = MAXL(MODELS["mlp"]().double(), [2, 3, 1], entropy_weight=0.0)
    optimizer = make(maxl.network.parameters())
    x, y = torch.randn(6, 32).double(), torch.randint(0, 3, (6,))
    for _ in range(3):  # so that there is state to follow
        maxl.network_step(torch.randn(6, 32).double(), y, optimizer)
    expected = higher_gradient(maxl, optimizer, x, y, steps=1)
    maxl.hypergradient(x, y, optimizer=optimizer)
    for parameter, grad in zip(maxl.generator.parameters(), expected):
        assert grad.norm() > 0
        # higher computes Adam's bias correction 1 - 0.999 ** 4 in float32, which leaves it 1.5e-5.
        assert (parameter.grad - grad).norm() <= 1e-4 * grad.norm()


def test_higher_gives_the_same_gradient_of_several_steps():
    maxl = MAXL(MODELS["mlp"]().double(), [2, 3, 1], lr=0.5)
    x, y = torch.randn(6, 32).double(), torch.randint(0, 3, (6,))
    expected = higher_gradient(maxl, torch.optim.SGD(maxl.network.parameters(), lr=0.5), x, y, steps=3)
    learner = maxl.clone()
    for _ in range(3):
        learner.adapt(learner.loss(x, y))
    learner.meta_loss(x, y).backward()
    found = [parameter.grad for parameter in maxl.generator.parameters()]
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
