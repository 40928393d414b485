"""The differentiable inner step against the optimizers of torch.optim that it follows."""

import copy
import inspect

import pytest
import torch
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop, SparseAdam
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR

from maxl_l2l.inner_step.look_ahead import InnerStep

EPS = 1e-2  # Adam's: large enough that its first step, of slope lr * eps / grad^2, has a slope worth measuring
ADAM = {"lr": 0.1, "eps": EPS, "betas": (0.7, 0.5)}  # a short memory, so that AMSGrad's maximum is sometimes the past

OPTIMIZERS = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd-tensor-lr": (SGD, {"lr": torch.tensor(0.1, dtype=torch.float64)}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "dampening": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd-weight-decay": (SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "sgd-maximize": (SGD, {"lr": 0.1, "maximize": True, "weight_decay": 0.3}),
    "sgd-all": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.3, "maximize": True}),
    "adam": (Adam, ADAM),
    "adam-default": (Adam, {}),
    "amsgrad": (Adam, ADAM | {"amsgrad": True}),
    "adam-weight-decay": (Adam, ADAM | {"weight_decay": 0.3}),
    "adam-maximize": (Adam, ADAM | {"maximize": True, "weight_decay": 0.3, "amsgrad": True}),
    "adamw": (AdamW, ADAM | {"weight_decay": 0.3}),
    "adamw-default": (AdamW, {}),
    "adamw-all": (AdamW, ADAM | {"weight_decay": 0.3, "amsgrad": True, "maximize": True}),
}
for kind in (NAdam, RAdam):
    name = kind.__name__.lower()
    OPTIMIZERS[name] = (kind, ADAM)
    OPTIMIZERS[f"{name}-default"] = (kind, {})
    OPTIMIZERS[f"{name}-long-memory"] = (kind, ADAM | {"betas": (0.9, 0.9)})  # RAdam rectifies from its 5th step on
    OPTIMIZERS[f"{name}-all"] = (kind, ADAM | {"weight_decay": 0.3, "decoupled_weight_decay": True})
    if "maximize" in inspect.signature(kind).parameters:
        OPTIMIZERS[f"{name}-maximize"] = (kind, ADAM | {"weight_decay": 0.3, "maximize": True})
RMS = {"lr": 0.1, "eps": EPS, "alpha": 0.7}
OPTIMIZERS |= {
    "rmsprop": (RMSprop, RMS),
    "rmsprop-default": (RMSprop, {}),
    "rmsprop-momentum": (RMSprop, RMS | {"momentum": 0.9, "weight_decay": 0.3}),
    "rmsprop-all": (RMSprop, RMS | {"momentum": 0.9, "weight_decay": 0.3, "centered": True, "maximize": True}),
    "adagrad": (Adagrad, {"lr": 0.1, "eps": EPS}),
    "adagrad-all": (
        Adagrad,
        {
            "lr": 0.1,
            "eps": EPS,
            "lr_decay": 0.2,
            "weight_decay": 0.3,
            "initial_accumulator_value": 0.1,
            "maximize": True,
        },
    ),
    "adadelta": (Adadelta, {"lr": 0.1, "eps": EPS}),
    "adadelta-all": (Adadelta, {"lr": 0.1, "eps": EPS, "rho": 0.7, "weight_decay": 0.3, "maximize": True}),
}
OPTIMIZERS |= {
    "adamax": (Adamax, {"lr": 0.1, "eps": EPS, "betas": (0.7, 0.5), "weight_decay": 0.3}),
    "asgd": (ASGD, {"lr": 0.1, "lambd": 0.1, "t0": 1, "weight_decay": 0.3}),
    "rprop": (Rprop, {"lr": 0.1}),
}
if "decoupled_weight_decay" in inspect.signature(Adam).parameters:
    OPTIMIZERS["adam-decoupled"] = (Adam, ADAM | {"weight_decay": 0.3, "decoupled_weight_decay": True})

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def random_tensors(seed, like):
    """Entries of magnitude >= 0.1, away from the kink of Adam's first step."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in like]
    return [value + 0.1 * value.sign() for value in values]


def new_parameters():
    shapes = [(3, 4), (4,), (2, 2, 2), (), (5,)]
    parameters = random_tensors(0, [torch.empty(shape, dtype=torch.float64) for shape in shapes])
    parameters[0] = parameters[0].t()  # not contiguous
    return [parameter.requires_grad_() for parameter in parameters]


def after_steps(name, num_steps):
    """Parameters in two groups, and their optimizer after some steps that parameter 1 sat out at first."""
    kind, options = OPTIMIZERS[name]
    parameters = new_parameters()
    optimizer = kind(
        [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.02, "weight_decay": 0.7}], **options
    )
    for step in range(num_steps):
        grads = random_tensors(10 + step, parameters)
        take_step(parameters, optimizer, [grads[0], grads[1] if step > 0 else None, *grads[2:]])
    return parameters, optimizer


def take_step(parameters, optimizer, grads):
    for parameter, grad in zip(parameters, grads):
        parameter.grad = None if grad is None else grad.detach().clone()
    optimizer.step()


def real_step(parameters, optimizer, grads):
    """Where the optimizer itself would go; it and the parameters stay where they are."""
    parameters, optimizer = copy.deepcopy((parameters, optimizer))
    take_step(parameters, optimizer, grads)
    return [parameter.detach() for parameter in parameters]


def assert_all_close(found, expected, rtol=1e-12, atol=1e-14):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.detach(), other, rtol=rtol, atol=atol)


def slopes_of(inner, parameters, grads):
    """The diagonal of dU/dgrad: the pull-back of ones, as all of these rules act elementwise."""
    return inner.pull_back(parameters, grads, [torch.ones_like(parameter) for parameter in parameters])


@each_optimizer
@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("unused", [(), (0, 3)], ids=["all", "some-unused"])
def test_look_ahead_is_where_the_optimizer_goes(name, num_steps, unused):
    parameters, optimizer = after_steps(name, num_steps)
    grads = [None if at in unused else grad for at, grad in enumerate(random_tensors(1, parameters))]
    stepped = InnerStep(optimizer).look_ahead(parameters, grads)
    assert_all_close(stepped, real_step(parameters, optimizer, grads))
    if name == "rprop":  # where the sign turns, it stays
        return
    moved = [not torch.equal(one, other) for one, other in zip(stepped, parameters)]
    assert moved == [at not in unused for at in range(len(parameters))]


@each_optimizer
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_slopes_are_central_differences_of_the_optimizers_step(name, num_steps):
    parameters, optimizer = after_steps(name, num_steps)
    grads = random_tensors(1, parameters)
    grads[2] = None
    slopes = slopes_of(InnerStep(optimizer), parameters, grads)
    # The optimizers act elementwise, so that all entries may be shifted at once.
    h = 1e-5
    above, below = (
        real_step(parameters, optimizer, [None if grad is None else grad + shift for grad in grads])
        for shift in (h, -h)
    )
    expected = [(up - down) / (2 * h) for up, down in zip(above, below)]
    assert slopes[2] is None
    del slopes[2], expected[2]
    # Truncation h^2, rounding 1e-16 / h = 1e-11.
    assert_all_close(slopes, expected, rtol=1e-6, atol=1e-9)


@each_optimizer
def test_slopes_are_the_derivative_of_look_ahead(name):
    parameters, optimizer = after_steps(name, 2)
    grads = [grad.requires_grad_() for grad in random_tensors(1, parameters)]
    inner = InnerStep(optimizer)
    total = sum(stepped.sum() for stepped in inner.look_ahead(parameters, grads))
    assert_all_close(slopes_of(inner, parameters, grads), torch.autograd.grad(total, grads))


@each_optimizer
def test_slopes_are_computed_without_grad_mode_and_carry_no_graph(name):
    parameters, optimizer = after_steps(name, 1)
    grads = random_tensors(1, parameters)
    inner = InnerStep(optimizer)
    with torch.no_grad():
        slopes = slopes_of(inner, parameters, grads)
    assert not any(slope.requires_grad for slope in slopes)
    assert all(torch.equal(*pair) for pair in zip(slopes, slopes_of(inner, parameters, grads)))


@each_optimizer
@pytest.mark.parametrize("num_steps", [0, 2])
def test_zero_gradient_gives_no_nan(name, num_steps):
    kind, options = OPTIMIZERS[name]
    parameters = new_parameters()
    optimizer = kind(parameters, **options)
    grads = random_tensors(1, parameters)
    grads[0][:, 1] = grads[4][2] = 0  # a dead unit: its gradient was always 0
    for _ in range(num_steps):
        take_step(parameters, optimizer, grads)
    grads[1] = torch.zeros_like(grads[1])  # a gradient that is 0 only now
    attached = [grad.requires_grad_() for grad in grads]
    stepped = InnerStep(optimizer).look_ahead(parameters, attached)
    assert_all_close(stepped, real_step(parameters, optimizer, grads))
    derivatives = torch.autograd.grad(sum(one.sum() for one in stepped), attached)
    for derivative, slope in zip(derivatives, slopes_of(InnerStep(optimizer), parameters, grads)):
        assert slope.isfinite().all()
        assert torch.equal(derivative, slope)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("num_steps", [0, 2])
def test_slope_of_adam_at_a_dead_unit_is_that_of_momentum_over_eps(kind, amsgrad, num_steps):
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = kind([parameter], lr=0.1, eps=EPS, betas=(0.7, 0.5), amsgrad=amsgrad)
    zero = torch.zeros_like(parameter)
    for _ in range(num_steps):
        take_step([parameter], optimizer, [zero])
    (slope,) = slopes_of(InnerStep(optimizer), [parameter], [zero])
    expected = -0.1 * (1 - 0.7) / (1 - 0.7 ** (num_steps + 1)) / EPS
    torch.testing.assert_close(slope, torch.full_like(zero, expected), rtol=1e-12, atol=0)


@each_optimizer
@pytest.mark.parametrize("num_steps", [0, 3])
def test_looking_ahead_changes_nothing(name, num_steps):
    parameters, optimizer = after_steps(name, num_steps)
    before, state = copy.deepcopy((parameters, optimizer.state_dict()))
    held = [parameter.grad for parameter in parameters]
    inner, grads = InnerStep(optimizer), random_tensors(1, parameters)
    inner.look_ahead(parameters, grads)
    slopes_of(inner, parameters, grads)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    assert all(torch.equal(now, then) for now, then in zip(parameters, before))
    assert all(parameter.grad is grad for parameter, grad in zip(parameters, held))
    assert all(torch.equal(now, then) for now, then in zip(grads, random_tensors(1, parameters)))


@each_optimizer
def test_the_step_taken_afterwards_does_not_move_what_was_looked_up(name):
    parameters, optimizer = after_steps(name, 1)
    grads = random_tensors(1, parameters)
    stepped = InnerStep(optimizer).look_ahead(parameters, grads)
    before = [value.clone() for value in stepped]
    take_step(parameters, optimizer, grads)
    assert all(torch.equal(now, then) for now, then in zip(stepped, before))
    assert_all_close(stepped, [parameter.detach() for parameter in parameters])


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam", "adamw"])
@pytest.mark.parametrize(
    "make_scheduler",
    [lambda optimizer: ExponentialLR(optimizer, 0.5), lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=9)],
    ids=["rate", "rate-and-momentum"],
)
def test_inner_step_follows_a_scheduler(name, make_scheduler):
    parameters, optimizer = after_steps(name, 0)
    inner, scheduler = InnerStep(optimizer), make_scheduler(optimizer)
    grads, distances = random_tensors(1, parameters), []
    for _ in range(3):
        stepped = inner.look_ahead(parameters, grads)
        assert_all_close(stepped, real_step(parameters, optimizer, grads))
        distances.append(slopes_of(inner, parameters, grads)[0].abs().sum().item())
        take_step(parameters, optimizer, grads)
        scheduler.step()
    assert len(set(distances)) == 3


def test_a_changed_group_is_read_at_the_next_call():
    parameters, optimizer = after_steps("momentum", 1)
    inner, grads = InnerStep(optimizer), random_tensors(1, parameters)
    inner.look_ahead(parameters, grads)
    optimizer.param_groups[1] |= {"lr": 3.0, "momentum": 0.1, "weight_decay": 0.0}
    assert_all_close(inner.look_ahead(parameters, grads), real_step(parameters, optimizer, grads))


def test_any_selection_of_the_optimizers_parameters_can_be_looked_ahead():
    parameters, optimizer = after_steps("adamw", 2)
    grads = random_tensors(1, parameters)
    order = [4, 0, 3]
    selected = InnerStep(optimizer).look_ahead([parameters[at] for at in order], [grads[at] for at in order])
    everything = real_step(parameters, optimizer, grads)
    assert_all_close(selected, [everything[at] for at in order])


def test_parameters_keep_their_dtype_and_shape():
    parameters = [torch.ones(2, 3, dtype=dtype, requires_grad=True) for dtype in (torch.float32, torch.float64)]
    parameters[0] = torch.ones(2, 3, requires_grad=True)
    optimizer = Adam(parameters, lr=0.1)
    grads = random_tensors(1, parameters)
    inner = InnerStep(optimizer)
    for values in (inner.look_ahead(parameters, grads), slopes_of(inner, parameters, grads)):
        assert [(value.dtype, value.shape) for value in values] == [(p.dtype, p.shape) for p in parameters]


def test_plain_descent_subtracts_the_scaled_gradient():
    parameters = new_parameters()
    inner, grads = InnerStep.sgd(iter(parameters), lr=0.25), random_tensors(1, parameters)
    assert_all_close(inner.look_ahead(parameters, grads), [(p - 0.25 * g).detach() for p, g in zip(parameters, grads)])
    assert all((slope == -0.25).all() for slope in slopes_of(inner, parameters, grads))


@pytest.mark.parametrize("max_norm", [0.5, 1e6], ids=["clipped", "within"])
@pytest.mark.parametrize("name", ["momentum", "adam", "adamax"])
def test_clipping_is_part_of_the_step(name, max_norm):
    parameters, optimizer = after_steps(name, 2)
    grads = random_tensors(1, parameters)
    grads[1] = None
    inner = InnerStep(optimizer, max_grad_norm=max_norm)
    v = random_tensors(2, parameters)
    v[3] = None  # does not enter the meta loss

    def clipped_step(grads):
        shadows = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
        for shadow, grad in zip(shadows, grads):
            shadow.grad = None if grad is None else grad.clone()
        torch.nn.utils.clip_grad_norm_(shadows, max_norm)
        return real_step(parameters, optimizer, [shadow.grad for shadow in shadows])

    assert_all_close(inner.look_ahead(parameters, grads), clipped_step(grads))
    pulled = inner.pull_back(parameters, grads, v)
    assert pulled[1] is None
    direction, h = random_tensors(3, parameters), 1e-6
    above, below = (
        clipped_step([None if g is None else g + sign * h * d for g, d in zip(grads, direction)]) for sign in (1, -1)
    )
    expected = sum(((up - down) * w).sum() / (2 * h) for up, down, w in zip(above, below, v) if w is not None)
    found = sum((p * d).sum() for p, d in zip(pulled, direction) if p is not None)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_clipping_a_zero_gradient_gives_no_nan():
    parameter = torch.ones(3, requires_grad=True)
    inner = InnerStep(SGD([parameter], lr=0.5), max_grad_norm=1.0)
    (pulled,) = inner.pull_back([parameter], [torch.zeros(3)], [torch.ones(3)])
    assert pulled.isfinite().all()


class Unfollowable(SGD):
    """Inherits the option `differentiable`, and has a step that autograd can't follow."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad.sign())


def test_optimizer_that_is_neither_known_nor_differentiable_raises():
    message = r"`optimizer` must be of a kind .*: Adadelta, .*, SGD, or one with .*`differentiable`; found SparseAdam"
    with pytest.raises(TypeError, match=message + ", which lacks it. Use one of these for the network"):
        InnerStep(SparseAdam(new_parameters(), lr=0.1))


def test_optimizer_whose_step_leaves_no_graph_raises():
    parameters = new_parameters()
    grads = random_tensors(1, parameters)
    with pytest.raises(TypeError, match=r"`optimizer` must have a step .*; Unfollowable has the option"):
        InnerStep(Unfollowable(parameters, lr=0.1)).pull_back(parameters, grads, grads)


def test_subclass_is_followed_by_its_own_step_not_by_its_parents():
    class Divided(SGD):
        def __init__(self, parameters, lr, divisor):
            super().__init__(parameters, lr=lr)
            self.divisor = divisor

        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] /= self.divisor
            super().step()

    parameters = new_parameters()
    optimizer, grads = Divided(parameters, lr=0.1, divisor=2), random_tensors(1, parameters)
    ExponentialLR(optimizer, 0.5)  # wraps the optimizer's step
    stepped = InnerStep(optimizer).look_ahead(parameters, grads)
    assert_all_close(stepped, [(p - 0.05 * g).detach() for p, g in zip(parameters, grads)])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_state_that_is_no_vector_is_left_to_the_optimizer():
    parameters, optimizer = after_steps("adam", 2)
    for parameter in parameters:
        optimizer.state[parameter]["name"] = "a note of the user's"
    grads = random_tensors(1, parameters)
    assert_all_close(InnerStep(optimizer).look_ahead(parameters, grads), real_step(parameters, optimizer, grads))


class Lookahead(torch.optim.Optimizer):
    """Holds an optimizer and does more than it: no wrapper to look through."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = optimizer


def test_what_holds_an_optimizer_and_is_none_of_its_class_is_refused():
    with pytest.raises(TypeError, match="found Lookahead, which lacks it"):
        InnerStep(Lookahead(SGD([torch.zeros(2, requires_grad=True)], lr=0.1)))


def test_wrapper_of_the_optimizers_class_is_looked_through():
    wrapper = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer
    optimizer = SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    assert InnerStep(wrapper(optimizer)).optimizer is optimizer
