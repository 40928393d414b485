"""The wrapper: learn2learn's interface, the general algorithm, and what bad input gets."""

import contextlib
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrapped_classifier import PSI, batch, mlp, optimizers

from maxl_l2l import MAXL, AuxiliaryLabelGenerator, LabelGenerator

# ---- the contract


def test_the_model_is_held_and_not_altered():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    x, _ = batch()
    expected = model.eval()(x)
    maxl = MAXL(model, PSI)
    assert maxl.module is model
    assert maxl.network.module is model
    assert type(model) is nn.Sequential
    assert model.state_dict().keys() == before.keys()
    torch.testing.assert_close(maxl(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(maxl.network(x)[0], expected, rtol=0, atol=0)


def test_training_trains_the_users_own_model():
    maxl = MAXL(mlp(), PSI)
    before = copy.deepcopy(maxl.module.state_dict())
    maxl.step(*batch(), *optimizers(maxl))
    assert not torch.equal(maxl.module.state_dict()["0.weight"], before["0.weight"])
    plain = mlp()
    plain.load_state_dict(maxl.module.state_dict())  # deployed without MAXL
    x, _ = batch()
    torch.testing.assert_close(plain.eval()(x), maxl.eval()(x))


def test_loss_is_the_focal_loss_of_both_tasks():
    maxl = MAXL(mlp(), PSI).eval()
    x, y = batch()
    (primary, auxiliary), targets = maxl.network(x), maxl.generator(x, y)
    p, q = primary.softmax(1), auxiliary.softmax(1)
    own = -((1 - p) ** 2 * p.log())[torch.arange(6), y]
    invented = -(targets * (1 - q) ** 2 * q.log()).sum(1)
    torch.testing.assert_close(maxl.loss(x, y), own.mean() + invented.mean())
    torch.testing.assert_close(maxl.primary_loss(x, y), own.mean())
    mean = targets.mean(0)
    torch.testing.assert_close(maxl.meta_loss(x, y), own.mean() + 0.2 * (mean * mean.log()).sum())


def test_network_argument_stands_in_for_the_multi_task_network():
    maxl = MAXL(mlp(), PSI)
    other = copy.deepcopy(maxl.network).eval()
    x, y = batch()
    expected = maxl.eval().loss(x, y)
    torch.nn.init.zeros_(maxl.module[3].weight)
    assert not torch.allclose(maxl.loss(x, y), expected)
    torch.testing.assert_close(maxl.loss(x, y, network=other), expected)
    torch.testing.assert_close(maxl.primary_loss(x, y, other), maxl.objective.primary(other(x)[0], y))


def test_given_targets_replace_the_generators():
    maxl = MAXL(mlp(), PSI).eval()
    x, _ = batch()
    y = torch.zeros(6, dtype=torch.long)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    soft = F.one_hot(labels, 5).float()
    torch.testing.assert_close(maxl.loss(x, y, targets=labels), maxl.loss(x, y, targets=soft))


def test_network_step_leaves_the_generator():
    maxl = MAXL(mlp(), PSI)
    before = copy.deepcopy(maxl.generator.state_dict())
    result = maxl.network_step(*batch(), optimizers(maxl)[0])
    torch.testing.assert_close(maxl.generator.state_dict(), before, rtol=0, atol=0)
    assert result.meta_loss is None
    assert result.targets.shape == (6, 5)


def test_network_step_without_auxiliary_task_is_single_task_training():
    maxl = MAXL(mlp(), PSI, gamma=0)
    plain = copy.deepcopy(maxl.module)
    x, y = batch()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    F.cross_entropy(plain(x), y).backward()
    optimizer.step()
    head = copy.deepcopy(maxl.network.auxiliary_head.state_dict())
    result = maxl.network_step(x, y, optimizers(maxl)[0], auxiliary=False)
    torch.testing.assert_close(maxl.module.state_dict(), plain.state_dict())
    torch.testing.assert_close(maxl.network.auxiliary_head.state_dict(), head, rtol=0, atol=0)
    assert result.auxiliary_loss is None


def test_stale_gradients_are_not_used():
    maxl = MAXL(mlp(), PSI)
    head = maxl.network.auxiliary_head
    before = head.weight.detach().clone()
    head.weight.grad = torch.ones_like(head.weight)
    maxl.network_step(*batch(), optimizers(maxl)[0], auxiliary=False)
    torch.testing.assert_close(head.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("take", ["step", "network_step"])
def test_steps_inside_one_region_of_autocast_learn(take):
    maxl = MAXL(mlp(), PSI)
    optimizer, generator_optimizer = optimizers(maxl)
    x, y = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps = {
            "step": lambda: maxl.step(x, y, optimizer, generator_optimizer),
            "network_step": lambda: maxl.network_step(x, y, optimizer),
        }
        losses = [steps[take]().primary_loss.item() for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]


def test_results_carry_no_graph():
    maxl = MAXL(mlp(), PSI)
    optimizer, generator_optimizer = optimizers(maxl)
    results = [
        maxl.step(*batch(), optimizer, generator_optimizer),
        maxl.network_step(*batch(), optimizer),
        maxl.generator_step(*batch(), optimizer, generator_optimizer),
        maxl.hypergradient(*batch()),
    ]
    assert not any(value.requires_grad for result in results for value in result if isinstance(value, torch.Tensor))


def test_generator_step_leaves_the_network_and_moves_the_generators_statistics_once():
    maxl = MAXL(mlp(), PSI)
    optimizer, generator_optimizer = optimizers(maxl)
    x, y = batch()
    before = copy.deepcopy(maxl.network.state_dict())
    expected = copy.deepcopy(maxl.generator)
    expected(x, y)
    maxl.generator_step(x, y, optimizer, generator_optimizer)
    torch.testing.assert_close(maxl.network.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(dict(maxl.generator.named_buffers()), dict(expected.named_buffers()))
    assert maxl.generator.body[0].weight.grad.norm() > 0
    maxl.generator_step(x, y, None, generator_optimizer)  # plain gradient descent with maxl.lr


def test_headless_backbone_gets_a_primary_head():
    backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
    maxl = MAXL(backbone, PSI, num_features=16)
    x, y = batch()
    assert maxl.module is backbone
    assert maxl(x).shape == (6, 2)
    assert [output.shape[1] for output in maxl.network(x)] == [2, 5]
    learner = maxl.clone()
    learner.adapt(learner.loss(x, y))
    maxl.step(x, y, *optimizers(maxl))


# ---- the general algorithm


class TargetRegressor(nn.Module):
    """Invents a real-valued target from the sample and its label."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(9, 3)

    def forward(self, x, y):
        return self.body(torch.cat([x, y], dim=1))


def test_general_wrapper_learns_regression_targets():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    learner = AuxiliaryLabelGenerator(
        model,
        TargetRegressor(),
        3,
        lr=0.1,
        primary_loss=F.mse_loss,
        auxiliary_loss=lambda outputs, targets: (outputs - targets).square().mean(dim=1),  # a value a sample
        regularizer=lambda targets: 0.01 * targets.square().mean(),
    ).double()
    x, y = torch.randn(6, 8).double(), torch.randn(6, 1).double()
    grads = {}
    for method in ("forward", "unrolled"):
        learner.zero_grad()
        learner.hypergradient(x, y, method=method)
        grads[method] = [p.grad for p in learner.generator.parameters()]
    torch.testing.assert_close(grads["forward"], grads["unrolled"], rtol=1e-10, atol=1e-14)
    inner = learner.clone()
    inner.adapt(inner.loss(x, y))
    learner.zero_grad()
    inner.meta_loss(x, y).backward()
    torch.testing.assert_close([p.grad for p in learner.generator.parameters()], grads["forward"])
    result = learner.step(x, y, *optimizers(learner))
    assert result.targets.shape == (6, 3)


def test_general_wrapper_defaults_to_cross_entropy():
    class Soft(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 4)

        def forward(self, x, y):
            return self.body(x).softmax(dim=1)

    learner = AuxiliaryLabelGenerator(mlp(), Soft(), 4).eval()
    x, y = batch()
    primary, auxiliary = learner.network(x)
    expected = F.cross_entropy(primary, y) + F.cross_entropy(auxiliary, learner.generator(x, y))
    torch.testing.assert_close(learner.loss(x, y), expected)
    torch.testing.assert_close(learner.meta_loss(x, y), F.cross_entropy(primary, y))


# ---- what bad input gets


def tied_generator(model):
    return LabelGenerator(nn.Sequential(model[0], nn.Linear(16, 5)), PSI)


CONSTRUCTIONS = [
    (lambda: MAXL(mlp(), []), ValueError, r"`psi` must have an entry for each primary class, found an empty list"),
    (lambda: MAXL(mlp(), [2, 0]), ValueError, r"`psi` must hold integers >= 1, found 0 at position 1"),
    (lambda: MAXL(mlp(), [2, 2.5]), TypeError, r"`psi` must hold integers, found 2.5 \(float\) at position 1"),
    (lambda: MAXL(mlp(), [2, 2, 2]), ValueError, r"`psi` must have an entry per model output.*'3' \(2 outputs\)"),
    (lambda: MAXL(mlp, PSI), TypeError, r"`model` must be a torch.nn.Module, found function"),
    (lambda: MAXL(mlp(), PSI, gamma=-1), ValueError, r"`gamma` must be a finite number >= 0, found -1"),
    (lambda: MAXL(mlp(), PSI, entropy_weight=-1), ValueError, r"`entropy_weight` must be a finite number >= 0"),
    (lambda: MAXL(mlp(), PSI, lr=float("nan")), ValueError, r"`lr` must be a finite number >= 0, found nan"),
    (lambda: MAXL(mlp(), PSI, lr="fast"), TypeError, r"`lr` must be a number, found 'fast'"),
    (lambda: MAXL(mlp(), PSI, num_features=16.0), ValueError, r"`num_features` must be the width"),
    (
        lambda: AuxiliaryLabelGenerator(mlp(), nn.Identity(), 3.5),
        TypeError,
        r"`num_outputs` must be an integer, found 3.5",
    ),
    (lambda: MAXL(mlp(), PSI, head="9"), ValueError, r"`head` must name a linear layer.*found no such layer at '9'"),
    (lambda: MAXL(mlp(), PSI, head="3", num_features=4), ValueError, r"`num_features` must be the width"),
    (lambda: MAXL(mlp(), PSI, generator=abs), TypeError, r"`generator` must be a torch.nn.Module"),
    (
        lambda: MAXL(model := mlp(), PSI, generator=tied_generator(model)),
        ValueError,
        r"`generator` must not share parameters with `model`, found 2 shared: 0.weight, 0.bias.*copy.deepcopy",
    ),
    (
        lambda: AuxiliaryLabelGenerator(mlp(), nn.Identity(), 0),
        ValueError,
        r"`num_outputs` must be at least 1, found 0",
    ),
]


@pytest.mark.parametrize(("construct", "kind", "message"), CONSTRUCTIONS)
def test_bad_construction_is_refused(construct, kind, message):
    with pytest.raises(kind, match=message):
        construct()


X, Y = torch.zeros(4, 8), torch.tensor([0, 1, 0, 1])


BATCHES = [
    (X, Y.float(), TypeError, r"`y` must be an int64 tensor of primary class indices, found torch.float32.*\.long\(\)"),
    (X, Y.int(), TypeError, r"`y` must be an int64 tensor"),
    (X, [0, 1, 0, 1], TypeError, r"`y` must be a tensor, found list"),
    (X, Y + 1, ValueError, r"`y` must hold primary class indices in 0..1, found 2"),
    (X, Y - 1, ValueError, r"`y` must hold primary class indices in 0..1, found -1"),
    (X, Y[:3], ValueError, r"`x` and `y` must have the same number of samples.*\[4, 8\] and \[3\]"),
    (X[:0], Y[:0], ValueError, r"at least one"),
    (X, Y[:, None], ValueError, r"`y` must have shape \[N\], one class per sample, found \[4, 1\]"),
    (X, Y.to("meta"), ValueError, r"`x` and `y` must be on the same device, found cpu and meta"),
]


CALLS = {
    "loss": lambda maxl, x, y: maxl.loss(x, y),
    "primary_loss": lambda maxl, x, y: maxl.primary_loss(x, y),
    "meta_loss": lambda maxl, x, y: maxl.meta_loss(x, y),
    "hypergradient": lambda maxl, x, y: maxl.hypergradient(x, y),
    "step": lambda maxl, x, y: maxl.step(x, y, *optimizers(maxl)),
    "network_step": lambda maxl, x, y: maxl.network_step(x, y, optimizers(maxl)[0]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("x", "y", "kind", "message"), BATCHES)
def test_bad_batch_is_refused_before_any_computation(call, x, y, kind, message):
    maxl = MAXL(mlp(), PSI)
    passes = []
    for module in (maxl.module, maxl.generator):
        module.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(kind, match=message):
        CALLS[call](maxl, x, y)
    assert not passes


class Returns(nn.Module):
    """A generator that returns given targets."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        if value is not None and value.is_floating_point():
            self.value = nn.Parameter(value)

    def forward(self, x, y):
        return self.value


GENERATORS = [
    (torch.eye(5)[:4].long(), r"`generator` must give floating-point probabilities, found torch.int64"),
    (torch.full((3, 5), 0.2), r"`generator` must give a tensor with a target per sample, 4 in all, found \[3, 5\]"),
    (None, r"`generator` must give a tensor with a target per sample, 4 in all, found NoneType"),
    (torch.full((4, 4), 0.25), r"`generator` must give probabilities of shape \[4, 5\], found \[4, 4\]"),
    (torch.tensor([[-0.2, 0.3, 0.3, 0.3, 0.3]] * 4), r"non-negative.*lowest entry of -0.2"),
    (torch.full((4, 5), 0.3), r"summing over dimension 1 to 1, found .* and a sum of 1.5.*LabelGenerator"),
]


@pytest.mark.parametrize(("value", "message"), GENERATORS)
def test_generators_that_return_no_probabilities_are_refused(value, message):
    maxl = MAXL(mlp(), PSI, generator=Returns(value))
    for call in (lambda: maxl.loss(X, Y), lambda: maxl.hypergradient(X, Y), lambda: maxl.meta_loss(X, Y)):
        with pytest.raises(ValueError, match=message):
            call()


def test_generator_that_returns_detached_targets_is_refused():
    class Detached(Returns):
        def forward(self, x, y):
            return self.value.detach()

    maxl = MAXL(mlp(), PSI, generator=Detached(torch.full((4, 5), 0.2)))
    with pytest.raises(ValueError, match=r"`generator` must return targets that depend on its parameters"):
        maxl.hypergradient(X, Y)


def test_label_generator_of_another_hierarchy_or_without_weights_is_refused():
    with pytest.raises(
        ValueError, match=r"`generator` must have psi \[2, 3\] and weighted=False, found \[3, 2\] and False"
    ):
        MAXL(mlp(), PSI, generator=LabelGenerator(nn.Linear(8, 5), [3, 2]))
    with pytest.raises(ValueError, match=r"psi \[2, 3\] and weighted=True, found \[2, 3\] and False"):
        MAXL(mlp(), PSI, weighted=True, generator=LabelGenerator(nn.Linear(8, 5), PSI))


def test_label_generator_of_the_wrong_width_is_refused():
    maxl = MAXL(mlp(), PSI, generator=LabelGenerator(nn.Linear(8, 6), PSI))
    with pytest.raises(ValueError, match=r"`generator` must give logits of shape \[4, 5\].*found \[4, 6\]"):
        maxl.loss(X, Y)


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        (torch.zeros(3, dtype=torch.long), ValueError, r"`targets` must give a tensor with a target per sample"),
        (
            torch.tensor([4, 4, 4, 4]),
            ValueError,
            r"`targets` must lie in the block of their primary class, found label 4",
        ),
        (torch.tensor([5, 0, 0, 0]), ValueError, r"`targets` must hold auxiliary class indices in 0..4, found 5"),
        (torch.full((4, 5), 0.3), ValueError, r"`targets` must give probabilities"),
        (torch.full((4, 4), 0.25), ValueError, r"`targets` must give probabilities of shape \[4, 5\]"),
    ],
)
def test_bad_targets_are_refused(targets, kind, message):
    maxl = MAXL(mlp(), PSI)
    with pytest.raises(kind, match=message):
        maxl.loss(X, Y, targets=targets)
    with pytest.raises(kind, match=message):
        maxl.network_step(X, Y, optimizers(maxl)[0], targets=targets)


def test_optimizers_that_hold_the_wrong_parameters_are_refused():
    maxl = MAXL(mlp(), PSI)
    optimizer, generator_optimizer = optimizers(maxl)
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    partial = torch.optim.SGD(maxl.module.parameters(), lr=0.1)
    everything = torch.optim.SGD(maxl.parameters(), lr=0.1)
    cases = [
        (foreign, generator_optimizer, r"`optimizer` must hold all 8 trainable parameters of the network, found 0"),
        (partial, generator_optimizer, r"found 6; missing: auxiliary_head.weight, auxiliary_head.bias"),
        (
            everything,
            generator_optimizer,
            r"`optimizer` must hold the parameters of the network alone.*maxl.parameters",
        ),
        (optimizer, foreign, r"`generator_optimizer` must hold all 6 trainable parameters of the generator, found 0"),
        (optimizer, everything, r"`generator_optimizer` must hold the parameters of the generator alone"),
    ]
    for first, second, message in cases:
        with pytest.raises(ValueError, match=message):
            maxl.step(X, Y, first, second)
    with pytest.raises(ValueError, match=cases[0][2]):
        maxl.hypergradient(X, Y, optimizer=foreign)
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch.optim.Optimizer, found float"):
        maxl.step(X, Y, 0.1, generator_optimizer)
    before = copy.deepcopy(maxl.state_dict())
    with pytest.raises(TypeError, match=r"`generator_optimizer` must be a torch.optim.Optimizer, found NoneType"):
        maxl.step(X, Y, optimizer, None)
    with pytest.raises(TypeError, match=r"`generator_optimizer` must take a step without a closure, found LBFGS"):
        maxl.step(X, Y, optimizer, torch.optim.LBFGS(maxl.generator.parameters()))
    torch.testing.assert_close(maxl.state_dict(), before, rtol=0, atol=0)
    maxl.network.requires_grad_(False)
    with pytest.raises(ValueError, match=r"`optimizer` must have parameters to train, found that all of the network's"):
        maxl.step(X, Y, optimizer, generator_optimizer)


def test_tensors_of_a_mapping_are_checked_one_by_one():
    maxl = MAXL(mlp(), PSI)
    with pytest.raises(
        ValueError, match=r"`x\['mask'\]` and `y` must have the same number of samples.*\[3, 8\] and \[4\]"
    ):
        maxl.loss({"ids": X, "scale": torch.tensor(1.0), "mask": X[:3]}, Y)


def test_control_without_a_regularizer_is_refused():
    learner = AuxiliaryLabelGenerator(mlp(), LabelGenerator(nn.Linear(8, 5), PSI), 5)
    with pytest.raises(ValueError, match=r"`method` 'regularizer' needs a regularizer, found None"):
        learner.hypergradient(X, Y, method="regularizer")


def test_frozen_parameters_need_no_optimizer():
    model = mlp()
    model[0].requires_grad_(False)
    maxl = MAXL(model, PSI)
    trainable = [p for p in maxl.network.parameters() if p.requires_grad]
    before = model[0].weight.clone()
    result = maxl.step(X, Y, torch.optim.SGD(trainable, lr=0.1), optimizers(maxl)[1])
    assert result.meta_loss.isfinite()
    assert torch.equal(model[0].weight, before)


def test_weighted_targets_must_sum_to_something_positive():
    maxl = MAXL(mlp(), PSI, weighted=True, generator=Returns(torch.full((4, 5), 0.3)))
    assert maxl.loss(X, Y).isfinite()
    maxl = MAXL(mlp(), PSI, weighted=True, generator=Returns(torch.zeros(4, 5)))
    with pytest.raises(ValueError, match=r"summing over dimension 1 to a positive weight, found .* and a sum of 0"):
        maxl.loss(X, Y)


def test_bad_options_of_the_hypergradient_are_refused():
    maxl = MAXL(mlp(), PSI)
    with pytest.raises(ValueError, match=r"`method` must be one of 'forward', 'finite-difference', .*found 'magic'"):
        maxl.hypergradient(X, Y, method="magic")
    with pytest.raises(TypeError, match=r"`meta_batch` must be a pair \(x, y\), found Tensor"):
        maxl.hypergradient(X, Y, meta_batch=X)
    with pytest.raises(ValueError, match=re.escape("`meta_batch[1]` must hold primary class indices in 0..1, found 2")):
        maxl.hypergradient(X, Y, meta_batch=(X, Y + 1))
    with pytest.raises(TypeError, match=r"`optimizer` must be of a kind whose step can be differentiated.*SparseAdam"):
        maxl.step(X, Y, torch.optim.SparseAdam(maxl.network.parameters()), optimizers(maxl)[1])


@pytest.mark.parametrize(("version", "fits"), [("2.4.1+cpu", False), ("2.8.0", False), ("2.9.0", True), ("2.15", True)])
def test_compile_needs_a_torch_that_can(monkeypatch, version, fits):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    maxl = MAXL(nn.Linear(8, 2), [2, 2])
    with contextlib.nullcontext() if fits else pytest.raises(RuntimeError, match=f"found {re.escape(version)}"):
        maxl.compile(backend="eager")
