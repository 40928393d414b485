"""The hypergradient: two methods with the same value, central differences of a real update, and the invariants."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from classifiers import OPTIMIZERS, PSI, batch, cnn, hypergradient, relative, trained
from recurrent import Recurrent
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from maxl_l2l import MAXL, AuxiliaryLabelGenerator, LabelGenerator, NonFiniteError


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.2])
def test_forward_equals_unrolled(kind, dtype, tolerance, entropy_weight):
    maxl, optimizer = trained(OPTIMIZERS[kind], dtype, entropy_weight=entropy_weight)
    x, y = batch(dtype=dtype)
    meta = batch(size=7, seed=3, dtype=dtype)
    forward = hypergradient(maxl, x, y, optimizer=optimizer, meta_batch=meta)
    unrolled = hypergradient(maxl, x, y, optimizer=optimizer, meta_batch=meta, method="unrolled")
    assert unrolled.norm() > 0
    assert relative(forward, unrolled) <= tolerance


def meta_loss_after_a_real_step(maxl, optimizer, x, y, meta):
    """The meta loss by plain PyTorch: copies of the networks, backward() and optimizer.step()."""
    maxl, optimizer = copy.deepcopy((maxl, optimizer))
    optimizer = optimizer or torch.optim.SGD(maxl.network.parameters(), lr=maxl.lr)
    torch.manual_seed(7)
    targets = maxl.generator(x, y).detach()
    optimizer.zero_grad()
    maxl.loss(x, y, targets=targets).backward()
    optimizer.step()
    q = targets.mean(dim=0)
    return maxl.primary_loss(*meta).item() + 0.2 * torch.special.xlogy(q, q).sum().item()


def assert_equals_central_differences(found, maxl, optimizer, x, y, meta, length=1e-4):
    parameters = list(maxl.generator.parameters())
    directions = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=directions, dtype=p.dtype) for p in parameters]
        values = []
        for sign in (1, -2):  # there, then back past the start
            with torch.no_grad():
                for parameter, step in zip(parameters, direction):
                    parameter.add_(step, alpha=sign * length)
            values.append(meta_loss_after_a_real_step(maxl, optimizer, x, y, meta))
        with torch.no_grad():
            for parameter, step in zip(parameters, direction):
                parameter.add_(step, alpha=length)
        difference = (values[0] - values[1]) / (2 * length)
        expected = torch.cat([step.flatten() for step in direction]) @ found
        assert difference == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("method", ["forward", "unrolled"])
def test_equals_central_differences_of_a_real_step(kind, method):
    maxl, optimizer = trained(OPTIMIZERS[kind])
    (x, y), meta = batch(), batch(size=7, seed=3)
    found = hypergradient(maxl, x, y, optimizer=optimizer, meta_batch=meta, method=method)
    assert_equals_central_differences(found, maxl, optimizer, x, y, meta)


def test_hand_computed_value():
    # One weight w shared by both logits of each task is zero, x = 1, y = 0: every quantity can be followed by hand.
    # Squared errors: L1 = (w - 1)^2 + (a - t)^2 with a = u * w the auxiliary output of the feature w; lr = 0.1.
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))

        def forward(self, x, y):
            return self.value.expand(len(x), 1)

    body, head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    model = nn.Sequential(body, head).double()
    learner = AuxiliaryLabelGenerator(
        model, Constant(), 1, lr=0.1, head="1", primary_loss=nn.MSELoss(), auxiliary_loss=nn.MSELoss()
    ).double()
    with torch.no_grad():
        body.weight.fill_(0.5)  # w
        head.weight.fill_(2.0)  # h: primary output h w
        learner.network.auxiliary_head.weight = nn.Parameter(torch.tensor([[3.0]], dtype=torch.float64))  # u
    learner.hypergradient(torch.ones(1, 1).double(), torch.zeros(1, 1).double())
    # dL1/dw = 2 h (h w) + 2 u (u w - t) = 4 - 3 = 1, dL1/dh = 2 w (h w) = 1; w+ = 0.4, h+ = 1.9.
    # meta = (h+ w+)^2; d meta / d w+ = 2 h+^2 w+; dw+/dt = 0.1 * 2 u = 0.6; h+ does not depend on t.
    expected = 2 * 1.9**2 * 0.4 * 0.6
    assert learner.generator.value.grad.item() == pytest.approx(expected, rel=1e-12)


def test_adds_to_an_existing_gradient():
    maxl, _ = trained(None)
    x, y = batch()
    once = hypergradient(maxl, x, y)
    torch.manual_seed(7)
    maxl.hypergradient(x, y)
    twice = torch.cat([p.grad.flatten() for p in maxl.generator.parameters()])
    torch.testing.assert_close(twice, 2 * once)


def test_regularizer_method_is_the_entropy_gradient_alone():
    maxl, _ = trained(None)
    x, y = batch()
    found = hypergradient(maxl, x, y, method="regularizer")
    torch.manual_seed(7)
    q = maxl.generator(x, y).mean(dim=0)
    expected = torch.autograd.grad(0.2 * (q * q.log()).sum(), list(maxl.generator.parameters()))
    torch.testing.assert_close(found, torch.cat([grad.flatten() for grad in expected]))


class Snapshot:
    """Everything that a hypergradient must leave as it was."""

    def __init__(self, maxl, optimizer):
        self.values = copy.deepcopy(
            {
                "parameters and buffers": maxl.state_dict(),
                "gradients": [p.grad for p in maxl.network.parameters()],
                "optimizer": optimizer.state_dict(),
                "random state": torch.get_rng_state(),
                "modes": [module.training for module in maxl.modules()],
            }
        )

    def assert_unchanged(self, maxl, optimizer):
        torch.testing.assert_close(Snapshot(maxl, optimizer).values, self.values, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["nesterov", "adam"])
@pytest.mark.parametrize("method", ["forward", "unrolled", "finite-difference", "regularizer"])
def test_leaves_everything_but_the_generator_gradient(kind, method):
    maxl, optimizer = trained(OPTIMIZERS[kind])
    before = Snapshot(maxl, optimizer)
    maxl.hypergradient(*batch(), optimizer=optimizer, meta_batch=batch(seed=3), method=method)
    before.assert_unchanged(maxl, optimizer)


ROADS = {
    "hypergradient": lambda maxl, optimizer, _: maxl.hypergradient(*batch(), optimizer=optimizer),
    "step": lambda maxl, optimizer, other: maxl.step(*batch(), optimizer, other),
    "generator_step": lambda maxl, optimizer, other: maxl.generator_step(*batch(), optimizer, other),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("call", range(4), ids=["generator", "inner pass", "meta pass", "forward-mode pass"])
def test_leaves_everything_when_a_pass_raises(call, road):
    maxl, optimizer = trained(OPTIMIZERS["adam"])
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) == call + 1:
            raise RuntimeError("injected")

    hooks = [module.register_forward_pre_hook(fail) for module in (maxl.generator, maxl.network)]
    before = Snapshot(maxl, optimizer)
    gradients = [p.grad for p in maxl.generator.parameters()]
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="injected"):
        ROADS[road](maxl, optimizer, generator_optimizer)
    before.assert_unchanged(maxl, optimizer)
    assert [p.grad for p in maxl.generator.parameters()] == gradients
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
    calls.clear()
    with pytest.raises(RuntimeError, match="injected"):
        maxl.step(*batch(), optimizer, generator_optimizer)
    torch.set_rng_state(before.values["random state"])  # a step that raises may have drawn random numbers
    before.assert_unchanged(maxl, optimizer)
    for hook in hooks:
        hook.remove()


def test_step_is_a_plain_step_of_the_network_and_the_hypergradient_of_the_generator():
    maxl, optimizer = trained(OPTIMIZERS["nesterov"])
    (x, y), meta = batch(), batch(size=7, seed=3)
    plain, plain_optimizer = copy.deepcopy((maxl, optimizer))
    expected = hypergradient(copy.deepcopy(maxl), x, y, meta_batch=meta)  # wrong rule: only to see that it matters
    torch.manual_seed(7)
    maxl.hypergradient(x, y, optimizer=optimizer, meta_batch=meta)
    exact = torch.cat([p.grad.flatten() for p in maxl.generator.parameters()])
    assert relative(expected, exact) > 1e-3

    torch.manual_seed(7)
    targets = plain.generator(x, y).detach()
    plain_optimizer.zero_grad()
    plain.loss(x, y, targets=targets).backward()
    plain_optimizer.step()

    start = torch.cat([p.detach().flatten().clone() for p in maxl.generator.parameters()])
    torch.manual_seed(7)
    result = maxl.step(x, y, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=1.0), meta_batch=meta)
    torch.testing.assert_close(maxl.network.state_dict(), plain.network.state_dict())
    torch.testing.assert_close(optimizer.state_dict(), plain_optimizer.state_dict())
    end = torch.cat([p.detach().flatten() for p in maxl.generator.parameters()])
    torch.testing.assert_close(start - end, exact)
    torch.testing.assert_close(result.targets, targets)


def test_step_moves_batch_norm_statistics_once():
    maxl, optimizer = trained(OPTIMIZERS["sgd"])
    norms = [module for module in maxl.modules() if isinstance(module, nn.BatchNorm2d)]
    counts = [int(norm.num_batches_tracked) for norm in norms]
    maxl.step(*batch(), optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.1))
    assert [int(norm.num_batches_tracked) for norm in norms] == [count + 1 for count in counts]
    assert len(norms) == 2  # one in each network


def test_follows_the_learning_rate_of_the_moment():
    maxl, _ = trained(None, entropy_weight=0.0)
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=1e-5)
    small = hypergradient(maxl, *batch(), optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 2e-5
    # So short a step leaves the meta loss linear in the rate.
    assert relative(hypergradient(maxl, *batch(), optimizer=optimizer), 2 * small) < 1e-3


def test_follows_parameter_groups():
    maxl, _ = trained(None, entropy_weight=0.0)
    frozen = {"params": list(maxl.module.parameters()), "lr": 0.0}
    head = {"params": list(maxl.network.auxiliary_head.parameters()), "lr": 0.5}
    # The auxiliary head alone moves, and the meta loss does not see it.
    assert hypergradient(maxl, *batch(), optimizer=torch.optim.SGD([frozen, head])).norm() == 0


def test_frozen_parameters_take_no_part():
    torch.manual_seed(0)
    model = cnn().double()
    model[0].requires_grad_(False)
    maxl = MAXL(model, PSI, entropy_weight=0.0)
    forward = hypergradient(maxl, *batch())
    assert relative(forward, hypergradient(maxl, *batch(), method="unrolled")) < 1e-10
    assert forward.norm() > 0


@pytest.mark.parametrize(
    ("psi", "labels"),
    [([3, 4], [0] * 6), ([1, 4], [0, 1] * 3), ([1, 1], [0, 1] * 3), ([2, 2], [1])],
    ids=["absent class", "psi of one", "all ones", "batch of one"],
)
def test_edge_cases_stay_finite(psi, labels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, len(psi))).double()
    maxl = MAXL(model, psi)
    x, y = torch.randn(len(labels), 8).double(), torch.tensor(labels)
    optimizer = torch.optim.Adam(maxl.network.parameters(), lr=0.1)
    with torch.no_grad():
        model[0].bias[:4] = -100.0  # dead units: gradients that are exactly zero
        model[2].weight.mul_(1e4)  # saturated logits
    forward = hypergradient(maxl, x, y, optimizer=optimizer)
    assert forward.isfinite().all()
    torch.testing.assert_close(forward, hypergradient(maxl, x, y, optimizer=optimizer, method="unrolled"))


def test_weighted_labels_have_the_same_hypergradient_both_ways():
    maxl, optimizer = trained(OPTIMIZERS["adam"], weighted=True)
    forward = hypergradient(maxl, *batch(), optimizer=optimizer)
    assert relative(forward, hypergradient(maxl, *batch(), optimizer=optimizer, method="unrolled")) < 1e-10


def test_weights_are_learned_for_each_sample():
    # The weight's own bias and the other parameters of the generator's last layer get different gradients from
    # different samples; a weight that is broadcast into one scalar would move all samples alike.
    class Free(nn.Module):
        """One free logit a sub-class and sample, and one for each sample's weight."""

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(10, 8, dtype=torch.float64))

        def forward(self, x):
            return self.logits

    model = cnn().double()
    generator = LabelGenerator(Free(), PSI, weighted=True)
    maxl = MAXL(model, PSI, generator=generator, weighted=True, entropy_weight=0.2)
    x, y = batch()
    hypergradient(maxl, x, y)
    found = generator.body.logits.grad[:, 7].clone()
    # By hand: sample i's weight scales its auxiliary loss alone, so d meta / d w_i is -lr <v, grad of its loss> / N.
    torch.manual_seed(7)
    outputs, auxiliary = maxl.network(x)
    losses = maxl.objective.auxiliary.loss(auxiliary, generator(x, y).detach())
    parameters = list(maxl.network.parameters())
    grads = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    learner = copy.deepcopy(maxl)
    inner = torch.autograd.grad(maxl.objective.primary(outputs, y) + losses.mean(), parameters)
    with torch.no_grad():
        for parameter, grad in zip(learner.network.parameters(), inner):
            parameter -= maxl.lr * grad
    v = torch.autograd.grad(learner.primary_loss(x, y), list(learner.network.parameters()), allow_unused=True)
    pairs = [sum((a * b).sum() for a, b in zip(v, grad) if a is not None and b is not None) for grad in grads]
    expected = -maxl.lr * torch.stack(pairs) / 10 * math.log(4)  # d 4 ** tanh(z) / dz at 0
    torch.testing.assert_close(found, expected)
    assert found.std() > 0.1 * found.abs().mean()


class Warming(nn.Module):
    """Moves a buffer before it uses it, as spectral norm's power iteration does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x):
        if self.training:
            self.scale += 0.5
        return x * self.scale


def test_forward_mode_pass_starts_from_the_buffers_of_the_inner_pass():
    model = nn.Sequential(nn.Linear(8, 16), Warming(), nn.Tanh(), nn.Linear(16, 2)).double()
    maxl = MAXL(model, PSI, entropy_weight=0.0)
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    forward = hypergradient(maxl, x, y)
    assert relative(forward, hypergradient(maxl, x, y, method="unrolled")) < 1e-10


class Scaled(nn.Module):
    """Divides by what is constant for backward; PyTorch's forward mode ignores no_grad."""

    def forward(self, x):
        with torch.no_grad():
            size = x.square().mean(dim=0).sqrt()
            size = size * F.linear(x, torch.eye(16, dtype=x.dtype)).abs().mean() + 1.0
        return x / size - x.detach() / 3


@pytest.mark.parametrize(
    "layer", [Scaled, lambda: spectral_norm(nn.Linear(16, 16)), lambda: weight_norm(nn.Linear(16, 16))]
)
def test_what_backward_holds_constant_stands_still(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), layer(), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 2)).double()
    maxl = MAXL(model, PSI, entropy_weight=0.0)
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    expected = hypergradient(maxl, x, y, method="unrolled")
    assert expected.norm() > 0
    assert relative(hypergradient(maxl, x, y), expected) < 1e-10


def test_clipping_is_differentiated():
    maxl, optimizer = trained(OPTIMIZERS["nesterov"])
    x, y = batch()
    options = {"optimizer": optimizer, "max_grad_norm": 0.1}
    forward = hypergradient(maxl, x, y, **options)
    assert relative(forward, hypergradient(maxl, x, y, method="unrolled", **options)) < 1e-10
    assert relative(forward, hypergradient(maxl, x, y, optimizer=optimizer)) > 0.1


@pytest.mark.parametrize("kind", [torch.optim.Adamax, torch.optim.ASGD])
def test_optimizers_of_the_general_route_are_followed(kind):
    maxl, optimizer = trained(lambda parameters: kind(parameters, lr=0.05))
    x, y = batch()
    forward = hypergradient(maxl, x, y, optimizer=optimizer)
    assert relative(forward, hypergradient(maxl, x, y, optimizer=optimizer, method="unrolled")) < 1e-10
    before = Snapshot(maxl, optimizer)
    maxl.hypergradient(x, y, optimizer=optimizer)
    before.assert_unchanged(maxl, optimizer)


def test_sparse_embeddings_are_differentiated():
    def model(sparse):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(11, 6, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(24, 2)).double()

    x, y = torch.randint(0, 11, (8, 4)), torch.randint(0, 2, (8,))
    dense, sparse = MAXL(model(False), PSI), MAXL(model(True), PSI)
    sparse.load_state_dict(dense.state_dict())
    torch.testing.assert_close(hypergradient(sparse, x, y), hypergradient(dense, x, y))


def test_dense_labels_have_the_same_hypergradient_both_ways():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).double()
    maxl = MAXL(model, PSI)
    x, y = torch.randn(3, 1, 6, 6).double(), torch.randint(0, 2, (3, 6, 6))
    forward = hypergradient(maxl, x, y)
    assert relative(forward, hypergradient(maxl, x, y, method="unrolled")) < 1e-10


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_input_names_the_term_and_updates_nothing(value):
    maxl, optimizer = trained(OPTIMIZERS["adam"])
    x, y = batch()
    x[0, 0, 0, 0] = value
    before = Snapshot(maxl, optimizer)
    generator_optimizer = torch.optim.Adam(maxl.generator.parameters())
    with pytest.raises(
        NonFiniteError,
        match=r"the primary loss is nan, as the input x is .* in 1 of 10 samples, .*; no parameter was updated",
    ) as caught:
        maxl.step(x, y, optimizer, generator_optimizer)
    assert caught.value.term == "input"
    before.assert_unchanged(maxl, optimizer)


def test_non_finite_meta_loss_is_named():
    maxl, optimizer = trained(OPTIMIZERS["sgd"])
    meta_x, meta_y = batch(seed=3)
    with pytest.raises(NonFiniteError, match="the meta loss is nan"):
        maxl.hypergradient(*batch(), optimizer=optimizer, meta_batch=(meta_x * math.nan, meta_y))
    assert all(p.grad is None for p in maxl.generator.parameters())


class Noisy(nn.Module):
    """Draws from numpy, which no restored state of torch repeats."""

    def __init__(self):
        super().__init__()
        self.numbers = np.random.default_rng(0)

    def forward(self, x):
        return x * torch.from_numpy(self.numbers.normal(1.0, 0.5, x.shape))


def test_randomness_outside_of_torch_is_warned_of_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Noisy(), nn.Tanh(), nn.Linear(16, 2)).double()
    maxl = MAXL(model, PSI, generator=LabelGenerator(nn.Linear(8, 7).double(), PSI))
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    with pytest.warns(RuntimeWarning, match=r"`model` gave other outputs in a second pass .* check_model"):
        maxl.hypergradient(x, y)
    maxl.hypergradient(x, y)  # a second warning would be an error here


def test_float32_lstm_has_the_same_dropout_mask_in_all_passes():
    # Its fused kernel has no forward-mode rule, and draws its masks otherwise than the plain one.
    torch.manual_seed(0)
    maxl = MAXL(Recurrent(), PSI, entropy_weight=0.0)
    x, y = torch.randn(6, 5, 4), torch.randint(0, 2, (6,))
    forward = hypergradient(maxl, x, y)
    assert torch.backends.mkldnn.enabled
    assert relative(forward, hypergradient(maxl, x, y, method="unrolled")) < 1e-4


HABITS = {
    "channels last": lambda model, x: (
        model.to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    ),
    "SyncBatchNorm": lambda model, x: (nn.SyncBatchNorm.convert_sync_batchnorm(model), x),
    "evaluation mode": lambda model, x: (model.eval(), x),
    "float32 by default": lambda model, x: (model.float(), x.float()),
}


@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("weights_decay", [0.0, 0.1])
def test_training_habits_keep_it_exact(habit, weights_decay):
    torch.manual_seed(0)
    x, y = batch()
    model, x = HABITS[habit](cnn().double(), x)
    maxl = MAXL(model, PSI, entropy_weight=0.0).train(model.training)
    optimizer = torch.optim.AdamW(maxl.network.parameters(), lr=0.01, weight_decay=weights_decay)
    generator_optimizer = torch.optim.AdamW(maxl.generator.parameters(), lr=0.01)
    for _ in range(2):
        maxl.step(x, y, optimizer, generator_optimizer)
    forward = hypergradient(maxl, x, y, optimizer=optimizer)
    unrolled = hypergradient(maxl, x, y, optimizer=optimizer, method="unrolled")
    assert unrolled.norm() > 0
    assert relative(forward, unrolled) < (1e-4 if x.dtype == torch.float32 else 1e-10)


class Own(torch.autograd.Function):
    """A linear function whose own rule calls F.linear."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx, dx, dw):
        return F.linear(dx, ctx.saved_tensors[0])


class Strange(nn.Module):
    """Ways to call a layer that the tape and the rules of the forward-mode pass must not mistake for others."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.fixed = torch.randn(8, 8, dtype=torch.float64)
        self.way = way

    def forward(self, x):
        return self.head(torch.tanh(getattr(self, self.way)(x)))

    def transform(self, x):
        return torch.func.grad(lambda v: torch.tanh(self.a(v)).square().sum())(x)

    def vmap(self, x):
        return torch.vmap(F.linear, in_dims=(0, None))(self.b(x), self.a.weight)

    def own_rule(self, x):
        return self.b(torch.tanh(Own.apply(torch.tanh(self.a(x)), self.fixed)))

    def own_gradient(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(torch.tanh(self.b(self.a(x))).sum(), x, create_graph=True)[0]

    def computed_weight(self, x):
        return F.linear(F.linear(x, self.a.weight * 2), self.b.weight.tanh() + self.a.weight)

    def shared(self, x):
        return self.a(torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.b(x)))))))

    def vector(self, x):
        return self.b(x) * F.linear(x, self.a.weight[0]).unsqueeze(1)


@pytest.mark.parametrize(
    "way", ["transform", "vmap", "own_rule", "own_gradient", "computed_weight", "shared", "vector"]
)
def test_strange_calls_are_differentiated_rightly_time_after_time(way, monkeypatch):
    monkeypatch.setattr("maxl_l2l.hypergradient.tape.MIN_PRODUCTS_OF_LINEAR", 1)
    torch.manual_seed(0)
    maxl = MAXL(Strange(way).double(), PSI, head="head", entropy_weight=0.0, lr=0.5)
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    expected = hypergradient(maxl, x, y, method="unrolled")
    assert expected.norm() > 0
    for _ in range(3):
        assert relative(hypergradient(maxl, x, y), expected) < 1e-10


def test_layers_dropped_by_other_random_numbers_are_warned_of_and_not_mixed_up(monkeypatch):
    class Dropped(Strange):
        def dropped(self, x):
            return self.a(x) if next(self.turns) else self.b(x)

    monkeypatch.setattr("maxl_l2l.hypergradient.tape.MIN_PRODUCTS_OF_LINEAR", 1)
    model = Dropped("dropped").double()
    model.turns = itertools.cycle([True, True, False])
    maxl = MAXL(model, PSI, head="head", generator=LabelGenerator(nn.Linear(8, 7).double(), PSI))
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    with pytest.warns(RuntimeWarning, match="gave other outputs"):
        maxl.hypergradient(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            maxl.hypergradient(x, y)


class Cached(nn.Module):
    """Registers a buffer in its first pass, or lets it grow."""

    def __init__(self, grows):
        super().__init__()
        self.body, self.head = nn.Linear(8, 6), nn.Linear(6, 2)
        self.register_buffer("cache", torch.ones(1, 6) if grows else None)

    def forward(self, x):
        if self.cache is None or len(self.cache) < len(x):
            self.cache = torch.ones(len(x), 6, dtype=x.dtype)
        return self.head(torch.tanh(self.body(x)) * self.cache[: len(x)])


@pytest.mark.parametrize("grows", [True, False])
def test_buffers_that_come_or_grow_in_a_pass_are_taken_over(grows):
    torch.manual_seed(0)
    maxl = MAXL(Cached(grows).double(), PSI, head="head")
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
    for size in (3, 6):
        x, y = torch.randn(size, 8).double(), torch.randint(0, 2, (size,))
        maxl.step(x, y, optimizer, generator_optimizer)
        maxl.network_step(x, y, optimizer)
    assert maxl.module.cache.shape == (6, 6)


def test_steps_need_no_gradients_enabled_around_them():
    maxl, optimizer = trained(OPTIMIZERS["sgd"])
    before = [parameter.detach().clone() for parameter in maxl.parameters()]
    with torch.no_grad():
        maxl.step(*batch(), optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.1))
        maxl.network_step(*batch(), optimizer)
    moved = [not torch.equal(one, other) for one, other in zip(before, maxl.parameters())]
    assert sum(moved) > len(moved) / 2  # but for biases before BatchNorm


def sequence_head(dense, norm=True, **options):
    """A learner whose two heads are sequences on the same features, and a batch for it."""
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
    if dense:
        layers = [nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.3), nn.Conv2d(6, 2, 1)]
    else:
        layers = [nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 2)]
    if not norm:
        layers = [layer for layer in layers if not isinstance(layer, (nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d))]
    maxl = MAXL(nn.Sequential(*features, nn.Sequential(*layers)).double(), PSI, head="3", **options)
    x, y = batch()
    return maxl, x, y[:, None, None].expand(-1, 4, 4) if dense else y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dense", [False, True])
def test_three_roads_agree_where_both_heads_are_sequences(dense, weighted):
    maxl, x, y = sequence_head(dense, weighted=weighted)
    unrolled = hypergradient(maxl, x, y, method="unrolled")
    assert unrolled.norm() > 0
    assert relative(hypergradient(maxl, x, y), unrolled) <= 1e-9
    assert relative(hypergradient(maxl, x, y, method="finite-difference"), unrolled) <= 1e-6
    if not (dense or weighted):
        optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1)
        found = hypergradient(maxl, x, y, optimizer=optimizer, meta_batch=(x[:7], y[:7]))
        assert_equals_central_differences(found, maxl, optimizer, x, y, (x[:7], y[:7]), length=1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_clone_and_micro_batches_agree_where_both_heads_are_sequences(dense):
    maxl, x, y = sequence_head(dense, norm=False, lr=0.1)
    expected = hypergradient(maxl, x, y)
    assert relative(hypergradient(maxl, x, y, micro_batches=2), expected) <= 1e-9
    maxl.zero_grad()
    learner = maxl.clone()
    learner.adapt(learner.loss(x, y))
    learner.meta_loss(x, y).backward()
    assert relative(torch.cat([p.grad.flatten() for p in maxl.generator.parameters()]), expected) <= 1e-9
