"""Against the real higher: its inner loops around the network give the gradients that ours and the mathematics give."""

import copy
import warnings

import by_hand
import pytest
import torch
from torch import nn

from maxl_l2l import MAXL

with warnings.catch_warnings():
    # It imports packages that are deprecated by now: theirs to mend, not ours.
    warnings.simplefilter("ignore")
    import higher

PSI = [2, 3, 1]

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.4}),
    "weight decay": (torch.optim.SGD, {"lr": 0.4, "weight_decay": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.4, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (torch.optim.SGD, {"lr": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3}),
    "adam with decay": (torch.optim.Adam, {"lr": 0.05, "eps": 1e-3, "betas": (0.7, 0.9), "weight_decay": 0.1}),
}


def mlp():
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def batch(seed, size=6):
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(size, 8, generator=numbers).double(), (torch.arange(size) + seed) % 3


def learner(kind, warm=True, **options):
    """A learner with an optimizer that has a state to follow, if it is warm."""
    maxl = MAXL(mlp(), PSI, lr=0.4, **options).double()
    optimizer_class, options = OPTIMIZERS[kind]
    optimizer = optimizer_class(maxl.network.parameters(), **options)
    for seed in range(20, 23) if warm else ():
        maxl.network_step(*batch(seed), optimizer)
    optimizer.zero_grad()
    for state in optimizer.state.values():
        if "step" in state:
            # torch counts in float32; higher takes powers of it, and loses half of the digits of 1 - 0.999 ** 4.
            state["step"] = state["step"].double()
    return maxl, optimizer


def through_higher(maxl, optimizer, steps, query=9, **options):
    """Gradients of the meta loss after some inner steps: theta_1's, and theta_2's."""
    options = {"copy_initial_weights": False, **options}
    with higher.innerloop_ctx(maxl.network, optimizer, **options) as (network, inner):
        for seed in range(steps):
            inner.step(maxl.loss(*batch(seed), network=network))
        maxl.meta_loss(*batch(query), network=network).backward()
    return grads_of(maxl)


def with_torchs_eps(optimizer):
    """Options for one step as torch takes it: torch corrects the root's bias before it adds eps, higher after."""
    group = optimizer.param_groups[0]
    if "eps" not in group:
        return {}
    step = float(optimizer.state.get(group["params"][0], {}).get("step", 0)) + 1
    return {"override": {"eps": [group["eps"] * (1 - group["betas"][1] ** step) ** 0.5]}}


def grads_of(maxl):
    found = [[parameter.grad for parameter in part.parameters()] for part in (maxl.network, maxl.generator)]
    maxl.zero_grad()
    return found


def assert_same(found, expected, relative=1e-9):
    assert len(found) == len(expected) > 0
    for grad, known in zip(found, expected):
        assert known.norm() > 0
        assert (grad - known).norm() <= relative * known.norm()


class Rule:
    """An optimizer's update written out, with the state that a torch optimizer has at the start."""

    def __init__(self, optimizer):
        self.group = optimizer.param_groups[0]
        self.states = [dict(optimizer.state.get(parameter, {})) for parameter in self.group["params"]]

    def __call__(self, theta_1, grads):
        decay, update = self.group["weight_decay"], self.adam if "betas" in self.group else self.sgd
        decayed = [grad + decay * parameter for parameter, grad in zip(theta_1, grads)]
        return [parameter - update(grad, state) for parameter, grad, state in zip(theta_1, decayed, self.states)]

    def sgd(self, grad, state):
        momentum = self.group["momentum"]
        if momentum:
            old = state.get("momentum_buffer")
            buffer = grad if old is None else momentum * old + (1 - self.group["dampening"]) * grad
            state["momentum_buffer"] = buffer
            grad = grad + momentum * buffer if self.group["nesterov"] else buffer
        return self.group["lr"] * grad

    def adam(self, grad, state):
        beta_1, beta_2 = self.group["betas"]
        state["step"] = float(state.get("step", 0)) + 1
        state["exp_avg"] = beta_1 * state.get("exp_avg", 0) + (1 - beta_1) * grad
        state["exp_avg_sq"] = beta_2 * state.get("exp_avg_sq", 0) + (1 - beta_2) * grad**2
        # The form at the end of section 2 of Kingma and Ba (2015), which is higher's: eps is not corrected for bias.
        rate = self.group["lr"] * (1 - beta_2 ** state["step"]) ** 0.5 / (1 - beta_1 ** state["step"])
        return rate * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + self.group["eps"])


def by_hand_grads(maxl, rule, steps):
    theta_1, theta_2 = list(maxl.network.parameters()), list(maxl.generator.parameters())
    loss = by_hand.unrolled(theta_1, theta_2, rule, [batch(seed) for seed in range(steps)], batch(9), PSI)
    found = torch.autograd.grad(loss, [*theta_1, *theta_2])
    return found[: len(theta_1)], found[len(theta_1) :]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gradients_through_higher_are_those_of_the_update_written_out(kind, warm, steps):
    maxl, optimizer = learner(kind, warm)
    expected = by_hand_grads(maxl, Rule(optimizer), steps)
    for found, known in zip(through_higher(maxl, optimizer, steps), expected):
        assert_same(found, known)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_copied_initial_weights_get_no_gradient_and_the_generator_the_same(kind, steps):
    maxl, optimizer = learner(kind)
    _, expected = through_higher(maxl, optimizer, steps)
    theta_1, theta_2 = through_higher(maxl, optimizer, steps, copy_initial_weights=True)
    assert theta_1 == [None] * len(theta_1)
    assert_same(theta_2, expected)


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_hypergradient_is_that_of_one_step_through_higher(kind, warm):
    maxl, optimizer = learner(kind, warm)
    _, expected = through_higher(maxl, optimizer, steps=1, query=0, **with_torchs_eps(optimizer))
    maxl.hypergradient(*batch(0), optimizer=optimizer)
    theta_1, theta_2 = grads_of(maxl)
    assert theta_1 == [None] * len(theta_1)
    assert_same(theta_2, expected)


def test_first_step_of_a_fresh_adam_teaches_the_generator_next_to_nothing():
    # It is lr times the sign of the gradient, but for eps.
    norms = []
    for warm in (False, True):
        maxl, optimizer = learner("adam", warm, entropy_weight=0.0)
        optimizer.param_groups[0]["eps"] = 1e-8
        maxl.hypergradient(*batch(0), optimizer=optimizer)
        _, ours = grads_of(maxl)
        _, theirs = through_higher(maxl, optimizer, steps=1, query=0, **with_torchs_eps(optimizer))
        norms.append([sum(grad.norm() for grad in grads) for grads in (ours, theirs)])
    for fresh, warm in zip(*norms):
        assert 0 < fresh < 1e-2 * warm


def test_meta_batch_is_the_query_of_one_step_through_higher():
    # Without the entropy term: hypergradient takes it of the inner step's labels, meta_loss of its own batch's.
    maxl, optimizer = learner("momentum", entropy_weight=0.0)
    _, expected = through_higher(maxl, optimizer, steps=1)
    maxl.hypergradient(*batch(0), meta_batch=batch(9), optimizer=optimizer)
    assert_same(grads_of(maxl)[1], expected)


def test_parameter_groups_are_followed_by_both():
    maxl = MAXL(mlp(), PSI).double()
    groups = [
        {"params": maxl.network.module.parameters(), "lr": 0.5},
        {"params": maxl.network.auxiliary_head.parameters(), "lr": 0.05, "momentum": 0.9},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    maxl.network_step(*batch(20), optimizer)
    optimizer.zero_grad()
    _, expected = through_higher(maxl, optimizer, steps=1, query=0)
    maxl.hypergradient(*batch(0), optimizer=optimizer)
    assert_same(grads_of(maxl)[1], expected)


@pytest.mark.parametrize("steps", [1, 3])
def test_clone_and_adapt_give_the_gradients_of_sgd_through_higher(steps):
    maxl, optimizer = learner("sgd")
    expected = through_higher(maxl, optimizer, steps)
    adapted = maxl.clone()
    for seed in range(steps):
        adapted.adapt(adapted.loss(*batch(seed)))
    adapted.meta_loss(*batch(9)).backward()
    for found, known in zip(grads_of(maxl), expected):
        assert_same(found, known)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x.view(len(x), 2, 4))[0][:, -1])


MODELS = {
    "batch norm": lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
    ),
    "lstm": Recurrent,
}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_other_models_agree_too_and_the_networks_buffers_stay(kind, steps):
    maxl = MAXL(MODELS[kind](), PSI, lr=0.3).double()
    before = copy.deepcopy(maxl.network.state_dict())
    expected = through_higher(maxl, torch.optim.SGD(maxl.network.parameters(), lr=0.3), steps)
    adapted = maxl.clone()
    for seed in range(steps):
        adapted.adapt(adapted.loss(*batch(seed)))
    adapted.meta_loss(*batch(9)).backward()
    for found, known in zip(grads_of(maxl), expected):
        # A bias before BatchNorm has no effect: its gradient is rounding alone.
        pairs = [(grad, other) for grad, other in zip(found, known) if other.norm() > 1e-12]
        assert_same(*zip(*pairs))
    assert all(torch.equal(value, before[name]) for name, value in maxl.network.state_dict().items())


def meta_loss_after_a_real_step(maxl, optimizer, moved):
    """On deep copies with the generator moved: the optimizer's own step, then the meta loss, both by hand."""
    maxl, optimizer = copy.deepcopy((maxl, optimizer))
    theta_1 = list(maxl.network.parameters())
    theta_2 = [parameter.detach() + part for parameter, part in zip(maxl.generator.parameters(), moved)]
    optimizer.zero_grad()
    by_hand.inner_loss(theta_1, theta_2, *batch(0), PSI).backward()
    optimizer.step()
    with torch.no_grad():
        return by_hand.meta_loss(theta_1, theta_2, *batch(0), PSI).item()


def test_adamw_is_refused_by_higher_and_followed_by_hypergradient():
    maxl = MAXL(mlp(), PSI).double()
    optimizer = torch.optim.AdamW(maxl.network.parameters(), lr=0.05, weight_decay=0.1)
    for seed in range(20, 23):
        maxl.network_step(*batch(seed), optimizer)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="not supported"), higher.innerloop_ctx(maxl.network, optimizer):
        pass
    before = copy.deepcopy((maxl.state_dict(), optimizer.state_dict()["state"]))
    maxl.hypergradient(*batch(0), optimizer=optimizer)
    torch.testing.assert_close((maxl.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    parameters = list(maxl.generator.parameters())
    numbers = torch.Generator().manual_seed(0)
    along_the_gradient = [parameter.grad / parameter.grad.norm() for parameter in parameters]
    anywhere = [torch.randn(p.shape, generator=numbers, dtype=p.dtype) for p in parameters]
    for direction in (along_the_gradient, anywhere):
        values = [
            meta_loss_after_a_real_step(maxl, optimizer, [sign * 1e-5 * part for part in direction]) for sign in (1, -1)
        ]
        difference = (values[0] - values[1]) / 2e-5
        expected = sum((parameter.grad * part).sum() for parameter, part in zip(parameters, direction))
        # Truncation is of order 1e-10, rounding of 1e-16 / 1e-5.
        assert difference == pytest.approx(expected.item(), rel=1e-6)
