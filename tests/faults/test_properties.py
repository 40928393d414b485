"""Properties over random cases: hierarchies, labels, dtypes, layouts, networks, optimizers, and exceptions anywhere.

The cases are the same in every run of this file. ``MAXL_PROPERTY_SEED=7`` draws others, and
``MAXL_PROPERTY_CASES=cases.json`` has the number of cases of each property written to a file;
``tests/faults/properties.py`` does both.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import random
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import by_hand
import hypothesis
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from maxl_l2l import MAXL, AuxiliaryLabelGenerator, Hierarchy, LabelGenerator, entropy_loss, focal_loss, masked_softmax

SEED = os.environ.get("MAXL_PROPERTY_SEED")
CASES = Counter()
PROFILE = hypothesis.settings(
    derandomize=SEED is None,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


@pytest.fixture(autouse=True, scope="module")
def _written_cases():
    """Writes down how many cases of each property were run."""
    yield
    if path := os.environ.get("MAXL_PROPERTY_CASES"):
        Path(path).write_text(json.dumps(CASES))


def holds_for(num_cases, *strategies):
    """Makes a test run on that many cases, which it gets as its last arguments, and counts those that pass."""

    def decorate(test):
        @functools.wraps(test)
        def counted(*args, **kwargs):
            test(*args, **kwargs)
            CASES[test.__name__] += 1

        found = given(*strategies)(counted)
        if SEED is not None:
            found = hypothesis.seed(int(SEED))(found)
        return hypothesis.settings(PROFILE, max_examples=num_cases)(found)

    return decorate


# What is drawn: hierarchies, labels and tensors

NUMBERS = st.integers(0, 2**32 - 1)
PSI = st.lists(st.integers(1, 7), min_size=1, max_size=6)
HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)
PLACES = ((), (3,), (2, 3))
VALUES = ("normal", "large", "equal", "saturated")
LAYOUTS = ("contiguous", "channels last", "transposed", "every second")


def labels_in(num_classes, max_size=6):
    """Labels of a batch; nothing says that all classes are there."""
    return st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=max_size)


def numbers(seed):
    return torch.Generator().manual_seed(seed)


def logits_of_kind(kind, shape, seed, dtype):
    values = torch.randn(shape, generator=numbers(seed), dtype=torch.float64)
    changed = {
        "normal": values,
        "large": 100 * values,
        "equal": torch.full(shape, 1e4),
        "saturated": 1e4 * values.sign(),
    }
    return changed[kind].to(dtype)


def laid_out(x, layout):
    """The same values at other places in memory."""
    if layout == "every second":
        return torch.stack([x, x], dim=-1)[..., 0]
    if layout == "channels last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout != "contiguous":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x.contiguous()


@dataclass(frozen=True)
class Scores:
    """Logits and labels, by what they are made of."""

    psi: tuple
    labels: tuple
    places: tuple
    dtype: torch.dtype
    kind: str
    layout: str
    seed: int

    @property
    def y(self):
        """The labels, those of a sample's places different from one another."""
        y = torch.tensor(self.labels)
        for size in self.places:
            y = torch.stack([y.roll(shift, 0) for shift in range(size)], dim=-1)
        return y

    def logits(self, num_classes):
        shape = (len(self.labels), num_classes, *self.places)
        return laid_out(logits_of_kind(self.kind, shape, self.seed, self.dtype), self.layout)


@st.composite
def scores(draw, kinds=VALUES, dtypes=DTYPES):
    psi = draw(PSI)
    return Scores(
        tuple(psi),
        tuple(draw(labels_in(len(psi)))),
        draw(st.sampled_from(PLACES)),
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(kinds)),
        draw(st.sampled_from(LAYOUTS)),
        draw(NUMBERS),
    )


def in_block(psi, y):
    """Which sub-classes belong to each label, ``[N, ...]`` to ``[N, K, ...]``, by the definition."""
    owners = torch.tensor([primary for primary, size in enumerate(psi) for _ in range(size)])
    return torch.stack([owner == y for owner in owners], dim=1)


def is_finite(*tensors):
    return all(tensor.isfinite().all() for tensor in tensors)


# What is drawn: learners

# Twice what has buffers or draws random numbers.
DENSE_LAYERS = (
    *("batch norm", "dropout", "linear", "layer norm", "relu"),
    *("batch norm", "dropout", "residual", "gelu", "tanh", "silu"),
)
IMAGE_LAYERS = (*DENSE_LAYERS, "convolution", "group norm", "max pool", "average pool")
# eps keeps a gradient that is zero but for rounding from being divided by its own size.
OPTIMIZERS = {
    "none": None,
    "sgd": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, maximize=True),
    "adam": functools.partial(torch.optim.Adam, weight_decay=0.01, eps=1e-4),
    "amsgrad": functools.partial(torch.optim.Adam, amsgrad=True, maximize=True, eps=1e-4),
    "adamw": functools.partial(torch.optim.AdamW, eps=1e-4),
    "nadam": functools.partial(torch.optim.NAdam, decoupled_weight_decay=True, weight_decay=0.01, eps=1e-4),
    "radam": functools.partial(torch.optim.RAdam, eps=1e-4),
    "rmsprop": functools.partial(torch.optim.RMSprop, momentum=0.5, eps=1e-4),
    "adagrad": functools.partial(torch.optim.Adagrad, lr_decay=0.1, weight_decay=0.01, eps=1e-4),
    "adadelta": functools.partial(torch.optim.Adadelta, eps=1e-4),
}
HEADS = ("linear", "convolution", "named")


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@dataclass(frozen=True)
class Recipe:
    """A learner, its optimizer and a batch, by what they are made of: the same recipe makes the same ones again."""

    psi: tuple
    labels: tuple
    meta_labels: tuple | None
    image: bool
    inputs: str
    layout: str
    layers: tuple
    head: str
    frozen: frozenset
    generator_frozen: frozenset
    weighted: bool
    gamma: float
    entropy_weight: float
    optimizer: str
    num_groups: int
    earlier_steps: int
    max_grad_norm: float | None
    seed: int
    dtype: torch.dtype = torch.float64

    @property
    def is_dense(self):
        return self.image and self.head == "convolution"

    @property
    def options(self):
        return {"meta_batch": self.meta_batch, "max_grad_norm": self.max_grad_norm}

    @property
    def batch(self):
        return self.drawn_batch(self.labels, self.seed)

    @property
    def meta_batch(self):
        return None if self.meta_labels is None else self.drawn_batch(self.meta_labels, self.seed + 1)

    def drawn_batch(self, labels, seed):
        shape = (len(labels), 2, 4, 4) if self.image else (len(labels), 130)
        x = torch.randn(shape, generator=numbers(seed), dtype=torch.float64)
        x = {"normal": x, "zero": 0 * x, "equal": x[:1].expand(shape), "large": 10 * x}[self.inputs]
        y = torch.tensor(labels)
        if self.is_dense:
            side = 2 if self.has_pool else 4
            y = torch.stack([y.roll(shift, 0) for shift in range(side)], dim=1)[:, :, None].repeat(1, 1, side)
        return laid_out(x.to(self.dtype), self.layout), y

    @property
    def has_pool(self):
        return any(name.endswith("pool") for name in self.layers)

    def layer(self, name, size):
        """A layer between features of one width; size is that of an image's side, a batch that is too small for
        BatchNorm gets another norm."""
        width = 4 if self.image else 7
        is_small = not self.image and min(map(len, (self.labels, self.meta_labels or self.labels))) < 3

        def linear():
            return nn.Conv2d(width, width, 3, padding=1) if self.image else nn.Linear(width, width)

        def layer_norm():
            return nn.LayerNorm([width, size, size] if self.image else width)

        kinds = {
            "linear": linear,
            "convolution": linear,
            "residual": lambda: Residual(nn.Sequential(linear(), nn.Tanh())),
            "batch norm": lambda: (nn.BatchNorm2d if self.image else nn.BatchNorm1d)(width),
            "layer norm": layer_norm,
            "group norm": lambda: nn.GroupNorm(2, width),
            "relu": nn.ReLU,
            "gelu": nn.GELU,
            "tanh": nn.Tanh,
            "silu": nn.SiLU,
            "dropout": lambda: nn.Dropout(0.4),
            "max pool": lambda: nn.MaxPool2d(2) if size == 4 else nn.Identity(),
            "average pool": lambda: nn.AvgPool2d(2) if size == 4 else nn.Identity(),
        }
        return kinds["layer norm" if is_small and name == "batch norm" else name]()

    def model(self, *last):
        """The network: its body, which ends with the given layers, and its head."""
        body, size = [], 4
        if self.layers:
            body.append(nn.Conv2d(2, 4, 3, padding=1) if self.image else nn.Linear(130, 7))
        for name in self.layers:
            body.append(self.layer(name, size))
            size = 2 if name.endswith("pool") else size
        body += last
        features = (4 if self.layers else 2) if self.image else (7 if self.layers else 130)
        if self.is_dense:
            head = nn.Conv2d(features, len(self.psi), 1)
        else:
            body.append(nn.Flatten())
            head = nn.Linear(features * size**2 if self.image else features, len(self.psi))
        return nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=head)).to(self.dtype)

    def learner(self):
        torch.manual_seed(self.seed)
        model = self.model()
        for index, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(index not in self.frozen)
        options = {name: getattr(self, name) for name in ("gamma", "entropy_weight", "weighted")}
        maxl = MAXL(model, self.psi, lr=0.1, head="head" if self.head == "named" else None, **options)
        freeze_some(maxl.generator, self.generator_frozen)
        return maxl

    def made_optimizer(self, network):
        """The optimizer, in groups of different learning rates and after some steps."""
        return optimizer_of(OPTIMIZERS[self.optimizer], network, self.num_groups, self.earlier_steps, self.seed)


def freeze_some(generator, frozen):
    """Freezes parameters by number, but never all: an optimizer needs one."""
    *others, _ = generator.parameters()
    for index, parameter in enumerate(others):
        parameter.requires_grad_(index not in frozen)


def optimizer_of(kind, network, num_groups, earlier_steps, seed):
    if kind is None:
        return None
    parameters = list(network.parameters())
    groups = [{"params": parameters[start::num_groups]} for start in range(min(num_groups, len(parameters)))]
    for group, lr in zip(groups, (0.01, 0.003, 0.03)):
        group["lr"] = lr
    optimizer = kind(groups, lr=0.01)
    drawn, before = numbers(seed), [parameter.detach().clone() for parameter in parameters]
    for _ in range(earlier_steps):
        for parameter in parameters:
            if parameter.requires_grad:
                grad = torch.randn(parameter.shape, generator=drawn, dtype=torch.float64)
                parameter.grad = (0.1 * grad).to(parameter)
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for parameter, value in zip(parameters, before):
            parameter.copy_(value)
    return optimizer


@st.composite
def recipes(draw, **fixed):
    psi = draw(PSI)
    image = draw(st.booleans())
    layers = st.lists(st.sampled_from(IMAGE_LAYERS if image else DENSE_LAYERS), max_size=4)
    drawn = Recipe(
        psi=tuple(psi),
        labels=tuple(draw(labels_in(len(psi)))),
        meta_labels=draw(st.none() | labels_in(len(psi)).map(tuple)),
        image=image,
        inputs=draw(st.sampled_from(("normal", "normal", "zero", "equal", "large"))),
        layout=draw(st.sampled_from(LAYOUTS)),
        layers=tuple(draw(layers)),
        head=draw(st.sampled_from(HEADS)),
        frozen=draw(st.frozensets(st.integers(0, 9), max_size=4)),
        generator_frozen=draw(st.frozensets(st.integers(0, 9), max_size=4)),
        weighted=draw(st.booleans()),
        gamma=draw(st.sampled_from((0.0, 1.0, 2.0))),
        entropy_weight=draw(st.sampled_from((0.0, 0.2, 1.0))),
        optimizer=draw(st.sampled_from(list(OPTIMIZERS))),
        num_groups=draw(st.integers(1, 3)),
        earlier_steps=draw(st.integers(0, 2)),
        max_grad_norm=draw(st.sampled_from((None, None, 0.1))),
        seed=draw(st.integers(0, 2**31)),
    )
    return replace(drawn, **fixed)


def real_optimizers(**fixed):
    return recipes(**fixed).map(lambda recipe: replace(recipe, optimizer=recipe.optimizer.replace("none", "sgd")))


def without_dropout(recipe):
    return replace(recipe, layers=tuple(name for name in recipe.layers if name != "dropout"))


# What is compared


def gradient(module):
    """The gradients of a module as one vector; zero where there is none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    return torch.cat([grad.flatten() for grad in grads])


def hypergradient(maxl, batch, **options):
    maxl.generator.zero_grad()
    torch.manual_seed(7)
    maxl.hypergradient(*batch, **options)
    return gradient(maxl.generator)


def assert_near(found, expected, tolerance=1e-8):
    """Compares by the norm of all entries; what is below 1e-12 counts as zero."""
    assert is_finite(found, expected)
    assert (found - expected).norm().item() <= tolerance * expected.norm().item() + 1e-12


def held(value):
    """A value in a form in which equality is equality of all bits."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: held(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [held(inner) for inner in value]
    return value


def everything(maxl, *optimizers):
    """All that a call which raises must leave as it was, to the bit."""
    modules = list(maxl.modules())
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    values = {
        "parameters and buffers": [*maxl.parameters(), *maxl.buffers()],
        "gradients of the network": [parameter.grad for parameter in maxl.network.parameters()],
        "gradients of the generator": [parameter.grad for parameter in maxl.generator.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "random states": random_states,
        "frozen parameters": [parameter.requires_grad for parameter in maxl.parameters()],
        "training modes": [module.training for module in modules],
        "identity of tensors": [id(tensor) for tensor in (*maxl.parameters(), *maxl.buffers())],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        "switches": [torch.is_grad_enabled(), torch.backends.mkldnn.enabled, torch.backends.cuda.flash_sdp_enabled()],
    }
    return {name: held(value) for name, value in values.items()}


def assert_unchanged(before, after, *but):
    assert [name for name in before if before[name] != after[name] and name not in but] == []


def leave_gradients(module, seed):
    """Gives some of the parameters a gradient, as if the user were accumulating."""
    drawn = numbers(seed)
    for index, parameter in enumerate(module.parameters()):
        if parameter.requires_grad and index % 2:
            parameter.grad = torch.randn(parameter.shape, generator=drawn, dtype=parameter.dtype)


def plain_focal(logits, targets, gamma):
    """The focal loss of each sample, as the paper has it."""
    probs = logits.softmax(dim=1)
    return -(targets * (1 - probs) ** gamma * logits.log_softmax(dim=1)).sum(dim=1)


def plain_step(maxl, optimizer, recipe):
    """One step of the network by the user's own code, and the primary loss of the meta batch after it."""
    x, y = recipe.batch
    targets = maxl.generator(x, y).detach()
    primary, auxiliary = maxl.network(x)
    hard = F.one_hot(y, len(recipe.psi)).movedim(-1, 1)
    loss = plain_focal(primary, hard, recipe.gamma).mean() + plain_focal(auxiliary, targets, recipe.gamma).mean()
    optimizer.zero_grad()
    loss.backward()
    if recipe.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(maxl.network.parameters(), recipe.max_grad_norm)
    optimizer.step()
    buffers = [buffer.clone() for buffer in maxl.buffers()]
    x, y = recipe.meta_batch or recipe.batch
    meta_loss = plain_focal(maxl.network(x)[0], F.one_hot(y, len(recipe.psi)).movedim(-1, 1), recipe.gamma).mean()
    for buffer, value in zip(maxl.buffers(), buffers):
        buffer.copy_(value)
    return meta_loss.item()


# The paper's pieces


@holds_for(150, PSI, st.data())
def test_blocks_of_any_hierarchy_share_out_the_sub_classes(psi, data):
    hierarchy = Hierarchy(psi)
    blocks = [list(hierarchy.block(primary)) for primary in range(len(psi))]
    assert [len(block) for block in blocks] == psi
    assert list(itertools.chain(*blocks)) == list(range(hierarchy.num_auxiliary))
    owners = hierarchy.primary_of_auxiliary().tolist()
    assert all(owners[k] == primary for primary, block in enumerate(blocks) for k in block)
    y = torch.tensor(data.draw(labels_in(len(psi))))
    assert torch.equal(hierarchy.mask(y), in_block(psi, y))


@holds_for(300, scores())
def test_masked_softmax_stays_in_its_block(drawn):
    y, logits = drawn.y, drawn.logits(sum(drawn.psi))
    probs = masked_softmax(logits, y, drawn.psi)
    inside = in_block(drawn.psi, y)
    assert probs.dtype == (torch.float32 if drawn.dtype in HALF else drawn.dtype)
    assert (probs[~inside] == 0).all()
    assert is_finite(probs)
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(dim=1), torch.ones_like(probs.sum(dim=1)))
    # A softmax of the block alone, sample by sample.
    rows = zip(logits.movedim(1, -1).flatten(0, -2), y.flatten(), probs.movedim(1, -1).flatten(0, -2))
    for row, label, found in rows:
        start = sum(drawn.psi[:label])
        block = slice(start, start + drawn.psi[label])
        torch.testing.assert_close(found[block], row[block].to(found.dtype).softmax(dim=0))


@holds_for(150, scores(dtypes=(torch.float32, torch.float64)))
def test_masked_softmax_passes_gradients_inside_the_block_alone(drawn):
    y, logits = drawn.y, drawn.logits(sum(drawn.psi)).requires_grad_()
    probs = masked_softmax(logits, y, drawn.psi)
    weights = torch.randn(probs.shape, generator=numbers(drawn.seed), dtype=probs.dtype)
    (grad,) = torch.autograd.grad((weights * probs).sum(), logits)
    assert is_finite(grad)
    assert (grad[~in_block(drawn.psi, y)] == 0).all()
    # Of each block's probabilities the sum is constant.
    torch.testing.assert_close(grad.sum(dim=1), torch.zeros_like(grad.sum(dim=1)), rtol=0, atol=1e-5)


GAMMAS = st.sampled_from((0.0, 0.5, 1.0, 2.0, 5.0))
TARGETS = ("indices", "one-hot", "labels", "simplex")


def target_of_kind(kind, drawn, num_classes):
    if kind == "labels":
        return masked_softmax(drawn.logits(num_classes), drawn.y, drawn.psi)
    if kind == "simplex":
        return replace(drawn, kind="normal", seed=drawn.seed // 2).logits(num_classes).double().softmax(dim=1)
    hard = (drawn.y + drawn.seed) % num_classes
    return hard if kind == "indices" else F.one_hot(hard, num_classes).movedim(-1, 1).to(torch.float32)


@holds_for(300, scores(), GAMMAS, st.sampled_from(TARGETS))
def test_focal_loss_is_finite_and_not_negative(drawn, gamma, kind):
    num_classes = sum(drawn.psi)
    target = target_of_kind(kind, drawn, num_classes)
    logits = drawn.logits(num_classes).requires_grad_()
    loss = focal_loss(logits, target, gamma)
    assert is_finite(loss)
    assert loss >= 0
    assert loss.dtype not in HALF
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert is_finite(grad)
    # As the hypergradient needs it: the second derivative along any direction.
    direction = torch.randn(logits.shape, generator=numbers(drawn.seed + 1)).to(grad)
    (second,) = torch.autograd.grad((grad * direction).sum(), logits)
    assert is_finite(second)


@holds_for(150, scores(kinds=("normal",), dtypes=(torch.float64,)), GAMMAS, st.sampled_from(TARGETS))
def test_focal_loss_is_the_papers_formula(drawn, gamma, kind):
    num_classes = sum(drawn.psi)
    target, logits = target_of_kind(kind, drawn, num_classes), drawn.logits(num_classes)
    soft = target if target.is_floating_point() else F.one_hot(target, num_classes).movedim(-1, 1)
    expected = plain_focal(logits, soft, gamma).mean()
    torch.testing.assert_close(focal_loss(logits, target, gamma), expected, rtol=1e-9, atol=1e-12)
    if gamma == 0:
        torch.testing.assert_close(
            expected, F.cross_entropy(logits, target.long() if kind == "indices" else soft.double())
        )


@holds_for(200, scores())
def test_entropy_lies_between_that_of_one_class_and_that_of_all(drawn):
    labels = masked_softmax(drawn.logits(sum(drawn.psi)), drawn.y, drawn.psi).requires_grad_()
    loss = entropy_loss(labels)
    classes = set(drawn.labels)
    used = sum(drawn.psi[primary] for primary in classes)
    counts = [drawn.labels.count(primary) / len(drawn.labels) for primary in classes]
    # The mean label has as much mass in a block as the class has samples; inside it is spread at most evenly.
    most = sum(count * math.log(count) for count in counts)
    assert is_finite(loss)
    assert -math.log(used) - 1e-5 <= loss.item() <= most + 1e-5
    (grad,) = torch.autograd.grad(loss, labels)
    assert is_finite(grad)


# Learners


@holds_for(
    200, recipes(), st.sampled_from((torch.float64, torch.float32, torch.bfloat16)), st.booleans(), st.booleans()
)
def test_losses_labels_and_gradients_of_any_learner_are_finite(recipe, dtype, autocast, saturated):
    recipe = replace(recipe, dtype=dtype)
    maxl, (x, y) = recipe.learner(), recipe.batch
    optimizer = recipe.made_optimizer(maxl.network)
    if saturated:
        with torch.no_grad():
            for head in (maxl.network.module.head, maxl.network.auxiliary_head, maxl.generator.body.head):
                head.weight.mul_(1e4)
    region = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with region:
        result = maxl.hypergradient(x, y, optimizer=optimizer, **recipe.options)
        assert maxl.loss(x, y) >= 0
        assert maxl.primary_loss(x, y) >= 0
    assert is_finite(gradient(maxl.generator))
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in maxl.generator.parameters())
    for loss in (result.primary_loss, result.auxiliary_loss, result.meta_loss):
        assert is_finite(loss)
        assert loss >= 0
        assert loss.dtype not in HALF
    lowest = -recipe.entropy_weight * math.log(sum(recipe.psi))
    assert lowest - 1e-5 <= result.regularizer.item() <= 1e-5
    targets = result.targets
    assert targets.dtype not in HALF
    assert (targets[~in_block(recipe.psi, y)] == 0).all()
    mass = targets.sum(dim=1)
    assert ((mass > 0.2499) & (mass < 4.001) if recipe.weighted else (mass - 1).abs() < 1e-5).all()


@holds_for(150, recipes(), st.integers(0, 2))
def test_the_forward_hypergradient_equals_the_unrolled_one(recipe, earlier_calls):
    maxl = recipe.learner()
    optimizer = recipe.made_optimizer(maxl.network)
    options = {"optimizer": optimizer, **recipe.options}
    for _ in range(earlier_calls):  # later calls reuse what the inner pass has computed
        maxl.hypergradient(*recipe.batch, **options)
    forward = hypergradient(maxl, recipe.batch, **options)
    unrolled = hypergradient(maxl, recipe.batch, method="unrolled", **options)
    assert maxl.experience.fallbacks == {}
    assert_near(forward, unrolled)


SGD_OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from((0.01, 0.3)),
        "momentum": st.sampled_from((0.0, 0.9)),
        "weight_decay": st.sampled_from((0.0, 0.1)),
        "maximize": st.booleans(),
    }
)


@holds_for(100, PSI, st.integers(1, 3), SGD_OPTIONS, st.sampled_from((0.0, 0.2)), st.data())
def test_the_hypergradient_is_that_of_plain_algebra(psi, num_layers, options, entropy_weight, data):
    labels, seed = data.draw(labels_in(len(psi))), data.draw(st.integers(0, 2**31))
    meta_labels, nesterov = data.draw(labels_in(len(psi))), options["momentum"] > 0 and data.draw(st.booleans())
    torch.manual_seed(seed)
    widths = [5, *[8] * num_layers]
    body = [
        layer for inputs, outputs in itertools.pairwise(widths) for layer in (nn.Linear(inputs, outputs), nn.Tanh())
    ]
    maxl = MAXL(nn.Sequential(*body, nn.Linear(8, len(psi))).double(), psi, entropy_weight=entropy_weight)
    optimizer = torch.optim.SGD(maxl.network.parameters(), nesterov=nesterov, **options)
    theta_1, theta_2 = list(maxl.network.parameters()), list(maxl.generator.parameters())
    buffers = [torch.randn_like(p) for p in theta_1]
    if options["momentum"]:
        for parameter, buffer in zip(theta_1, buffers):
            optimizer.state[parameter]["momentum_buffer"] = buffer.clone()
    x, y = torch.randn(len(labels), 5).double(), torch.tensor(labels)
    meta_x, meta_y = torch.randn(len(meta_labels), 5).double(), torch.tensor(meta_labels)

    def moved(parameter, grad, buffer):
        sign = -1 if options["maximize"] else 1
        grad = sign * grad + options["weight_decay"] * parameter
        velocity = options["momentum"] * buffer + grad
        update = grad + options["momentum"] * velocity if nesterov else velocity if options["momentum"] else grad
        return parameter - options["lr"] * update

    grads = torch.autograd.grad(by_hand.inner_loss(theta_1, theta_2, x, y, psi), theta_1, create_graph=True)
    plus = [moved(*parts) for parts in zip(theta_1, grads, buffers)]
    q = by_hand.labels(theta_2, x, y, psi).mean(dim=0)
    q = q[q > 0]  # classes that are absent contribute nothing
    meta_loss = by_hand.primary_loss(plus, meta_x, meta_y) + entropy_weight * (q * q.log()).sum()
    expected = torch.autograd.grad(meta_loss, theta_2)
    found = hypergradient(maxl, (x, y), optimizer=optimizer, meta_batch=(meta_x, meta_y))
    assert_near(found, torch.cat([grad.flatten() for grad in expected]))


def relabelled(psi, seed):
    """A permutation of the sub-classes that leaves each in its block: the old number of each new one."""
    order, start = [], 0
    for size in psi:
        order += (start + torch.randperm(size, generator=numbers(seed + start))).tolist()
        start += size
    return torch.tensor(order)


def relabel(layer, order, optimizer=None):
    """Permutes the first rows of a layer in place, and the optimizer's state of them."""
    for parameter in layer.parameters():
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for values in (parameter, *state.values()):
            if torch.is_tensor(values) and values.shape == parameter.shape:
                with torch.no_grad():
                    values[: len(order)] = values[order].clone()


def relabelled_gradient(module, head, order):
    """As :func:`gradient`, with the first rows of a head's gradients permuted."""
    for name, parameter in module.named_parameters():
        if name.startswith(head) and parameter.grad is not None:
            parameter.grad[: len(order)] = parameter.grad[order]
    return gradient(module)


@holds_for(120, recipes(), NUMBERS)
def test_relabelling_sub_classes_permutes_the_hypergradient_and_changes_nothing_else(recipe, seed):
    maxl, other = recipe.learner(), recipe.learner()
    optimizer, other_optimizer = recipe.made_optimizer(maxl.network), recipe.made_optimizer(other.network)
    order = relabelled(recipe.psi, seed)
    relabel(other.network.auxiliary_head, order, other_optimizer)
    relabel(other.generator.body.head, order)
    for learner in (maxl, other):
        torch.manual_seed(7)
        learner.loss(*recipe.batch).backward()
    assert_near(gradient(other.network), relabelled_gradient(maxl.network, "auxiliary_head", order))
    maxl.zero_grad()
    other.zero_grad()

    torch.manual_seed(7)
    result = maxl.hypergradient(*recipe.batch, optimizer=optimizer, **recipe.options)
    torch.manual_seed(7)
    again = other.hypergradient(*recipe.batch, optimizer=other_optimizer, **recipe.options)
    for name in ("primary_loss", "auxiliary_loss", "meta_loss", "regularizer", "outputs"):
        assert_near(getattr(again, name), getattr(result, name))
    assert_near(again.targets, result.targets[:, order])
    assert_near(gradient(other.generator), relabelled_gradient(maxl.generator, "body.head", order))


def stepped_gradient(maxl, road, batch, meta_batch):
    """The gradient that a step has taken, by what it did to parameters: a vector."""
    before = torch.cat([p.detach().flatten() for p in maxl.network.parameters()])
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=1.0)
    torch.manual_seed(7)
    if road == "network_step":
        maxl.network_step(*batch, optimizer)
    else:
        maxl.step(*batch, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=1.0), meta_batch=meta_batch)
    return before - torch.cat([p.detach().flatten() for p in maxl.network.parameters()])


def plain_gradient(maxl, batch, targets, gamma):
    """The gradient of plain multi-task training towards given targets, as anyone would write it."""
    x, y = batch
    torch.manual_seed(7)
    maxl.generator(x, y)  # draws its dropout masks first
    maxl.zero_grad()
    features = maxl.module.body(x)
    primary, auxiliary = maxl.module.head(features), maxl.network.auxiliary_head(features)
    hard = F.one_hot(y, primary.shape[1]).movedim(-1, 1)
    (plain_focal(primary, hard, gamma).mean() + plain_focal(auxiliary, targets, gamma).mean()).backward()
    return gradient(maxl.network)


ROADS_OF_THE_NETWORK = st.sampled_from(("network_step", "step"))


@holds_for(120, recipes(), ROADS_OF_THE_NETWORK, st.sampled_from((0.0, 3.0)))
def test_uniform_labels_give_the_gradient_of_plain_multi_task_training(recipe, road, logit):
    maxl, twin = recipe.learner(), recipe.learner()
    num_auxiliary, head = sum(recipe.psi), maxl.generator.body.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[:num_auxiliary] = logit  # beyond is the weight, which is 4 ** tanh(0) = 1
    if road == "network_step":
        maxl.generator.requires_grad_(False)
    inside = in_block(recipe.psi, recipe.batch[1]).double()
    uniform = inside / inside.sum(dim=1, keepdim=True)
    expected = plain_gradient(twin, recipe.batch, uniform, recipe.gamma)
    assert_near(stepped_gradient(maxl, road, recipe.batch, recipe.meta_batch), expected)


@holds_for(80, recipes(weighted=False), ROADS_OF_THE_NETWORK)
def test_classes_that_are_not_split_give_the_gradient_of_hard_labels(recipe, road):
    recipe = replace(recipe, psi=(1,) * len(recipe.psi))
    hard = F.one_hot(recipe.batch[1], len(recipe.psi)).movedim(-1, 1).double()
    expected = plain_gradient(recipe.learner(), recipe.batch, hard, recipe.gamma)
    assert_near(stepped_gradient(recipe.learner(), road, recipe.batch, recipe.meta_batch), expected)


@holds_for(80, recipes().map(without_dropout), st.sampled_from(LAYOUTS), st.booleans())
def test_memory_formats_change_nothing(recipe, layout, weights_too):
    # torch draws dropout masks in the order of memory.
    plain, other = replace(recipe, layout="contiguous"), replace(recipe, layout=layout)
    maxl, twin = plain.learner(), other.learner()
    if weights_too and recipe.image:
        twin.to(memory_format=torch.channels_last)
    found = hypergradient(twin, other.batch, optimizer=other.made_optimizer(twin.network), **other.options)
    expected = hypergradient(maxl, plain.batch, optimizer=plain.made_optimizer(maxl.network), **plain.options)
    assert_near(found, expected)


@holds_for(80, recipes().map(without_dropout))
def test_the_hypergradient_is_that_of_adapt_and_meta_loss(recipe):
    recipe = replace(recipe, optimizer="none", max_grad_norm=None, meta_labels=None)
    maxl = recipe.learner()
    found = hypergradient(maxl, recipe.batch)
    learner = maxl.clone(allow_nograd=True, allow_unused=True)
    learner.adapt(learner.loss(*recipe.batch))
    maxl.zero_grad()
    learner.meta_loss(*recipe.batch).backward()
    assert_near(gradient(maxl.generator), found)


# Steps, and what they leave alone


@holds_for(120, real_optimizers())
def test_a_step_is_one_plain_step_of_the_network(recipe):
    maxl, twin = recipe.learner(), recipe.learner()
    optimizer, twin_optimizer = recipe.made_optimizer(maxl.network), recipe.made_optimizer(twin.network)
    generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
    torch.manual_seed(7)
    maxl.step(*recipe.batch, optimizer, generator_optimizer, **recipe.options)
    torch.manual_seed(7)
    plain_step(twin, twin_optimizer, recipe)
    torch.testing.assert_close(maxl.network.state_dict(), twin.network.state_dict(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dict(maxl.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(optimizer.state_dict(), twin_optimizer.state_dict(), rtol=1e-8, atol=1e-9)


@holds_for(100, real_optimizers())
def test_the_inner_step_goes_where_the_live_optimizer_would(recipe):
    maxl, twin = recipe.learner(), recipe.learner()
    optimizer, twin_optimizer = recipe.made_optimizer(maxl.network), recipe.made_optimizer(twin.network)
    torch.manual_seed(7)
    result = maxl.hypergradient(*recipe.batch, optimizer=optimizer, **recipe.options)
    torch.manual_seed(7)
    expected = plain_step(twin, twin_optimizer, recipe)
    assert result.meta_loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


@holds_for(80, real_optimizers())
def test_frozen_parameters_stay_and_get_no_gradient(recipe):
    maxl = recipe.learner()
    frozen = [p for p in maxl.parameters() if not p.requires_grad]
    before = held(frozen)
    optimizer = recipe.made_optimizer(maxl.network)
    maxl.step(*recipe.batch, optimizer, torch.optim.Adam(maxl.generator.parameters()), **recipe.options)
    maxl.hypergradient(*recipe.batch, optimizer=optimizer, **recipe.options)
    assert held(frozen) == before
    assert all(p.grad is None and not p.requires_grad for p in frozen)


METHODS = st.sampled_from(("forward", "unrolled", "finite-difference", "regularizer"))


@holds_for(120, recipes(), METHODS)
def test_the_hypergradient_adds_to_the_generators_gradient_and_changes_nothing_else(recipe, method):
    maxl, twin = recipe.learner(), recipe.learner()
    leave_gradients(maxl, recipe.seed)
    start = gradient(maxl.generator)
    optimizer = recipe.made_optimizer(maxl.network)
    optimizers = [] if optimizer is None else [optimizer]
    torch.manual_seed(7)
    before = everything(maxl, *optimizers)
    maxl.hypergradient(*recipe.batch, optimizer=optimizer, method=method, **recipe.options)
    assert_unchanged(before, everything(maxl, *optimizers), "gradients of the generator")
    alone = hypergradient(
        twin, recipe.batch, optimizer=recipe.made_optimizer(twin.network), method=method, **recipe.options
    )
    torch.testing.assert_close(gradient(maxl.generator), start + alone, rtol=0, atol=0)


# Exceptions


class Interruption(BaseException):
    """What no one catches, as when a user presses Ctrl-C."""


ERRORS = st.sampled_from((Interruption, RuntimeError, ValueError))


class Fault:
    """Raises at its n-th call, wherever that is."""

    def __init__(self):
        self.at, self.error, self.calls, self.stages = 0, RuntimeError, 0, set()

    def set(self, at, error):
        self.at, self.error, self.calls, self.stages = at, error, 0, set()

    def reach(self, stage):
        self.calls += 1
        self.stages.add(stage)
        if self.calls == self.at:
            raise self.error(stage)

    def before(self, stage, function):
        def call(*args):
            self.reach(stage)
            return function(*args)

        return call

    def __deepcopy__(self, memo):
        return self


class Watched(torch.autograd.Function):
    """The identity, which may raise in backward and in forward mode."""

    @staticmethod
    def forward(ctx, x, fault, name):
        ctx.fault, ctx.network = fault, name
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        ctx.fault.reach(f"backward pass of the {ctx.network}")
        return grad.clone(), None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        ctx.fault.reach(f"forward-mode pass of the {ctx.network}")
        return tangent.clone()


class Stage(nn.Module):
    def __init__(self, name, fault):
        super().__init__()
        self.name, self.fault = name, fault

    def forward(self, x):
        self.fault.reach(f"forward pass of the {self.name}")
        return Watched.apply(x, self.fault, self.name)


def watched_learner(recipe, fault):
    """A learner in which every stage may raise; its networks end with what has moved buffers and drawn numbers."""
    torch.manual_seed(recipe.seed)
    model = recipe.model(Stage("network", fault))
    body = replace(recipe, psi=(1,) * sum(recipe.psi)).model(Stage("generator", fault))
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index not in recipe.frozen)
    loss = functools.partial(F.cross_entropy, reduction="none")
    maxl = AuxiliaryLabelGenerator(
        model,
        LabelGenerator(body, recipe.psi),
        sum(recipe.psi),
        head="head",
        primary_loss=fault.before("primary loss", loss),
        auxiliary_loss=fault.before("auxiliary loss", loss),
        regularizer=fault.before("regularizer", entropy_loss),
    )
    freeze_some(maxl.generator, recipe.generator_frozen)
    return maxl


ROADS = {
    "hypergradient": lambda maxl, batch, one, _, **options: maxl.hypergradient(*batch, optimizer=one, **options),
    "step": lambda maxl, batch, one, other, **options: maxl.step(*batch, one, other, **options),
    "network_step": lambda maxl, batch, one, _, method, meta_batch, **options: maxl.network_step(
        *batch, one, **options
    ),
    "generator_step": lambda maxl, batch, one, other, **options: maxl.generator_step(*batch, one, other, **options),
}
STAGES = {
    "forward pass of the network",
    "forward pass of the generator",
    "primary loss",
    "auxiliary loss",
    "backward pass of the network",
}
META_STAGES = {"regularizer", "backward pass of the generator"}
EXCEPTION_METHODS = st.sampled_from(("forward", "unrolled", "finite-difference"))


def stages_of(road, method):
    """What such a call must come by, or the test would show nothing of it."""
    if road == "network_step":
        return STAGES
    return STAGES | META_STAGES | ({"forward-mode pass of the network"} if method == "forward" else set())


def for_exceptions(recipe, micro_batches):
    """A recipe in which every stage is reached: there is a layer before the watched one, and it is trained."""
    layers = recipe.layers or ("tanh",)
    if micro_batches > 1 and not recipe.image:  # BatchNorm would get a single sample
        layers = tuple("layer norm" if name == "batch norm" else name for name in layers)
    frozen = {"frozen": recipe.frozen - {0}, "generator_frozen": recipe.generator_frozen - {0}}
    return replace(recipe, layers=layers, **frozen)


KINDS = st.sampled_from(list(OPTIMIZERS)[1:])


@pytest.mark.parametrize("road", ROADS)
@holds_for(60, real_optimizers(), EXCEPTION_METHODS, ERRORS, st.integers(1, 2), KINDS)
def test_an_exception_at_any_stage_changes_nothing(road, recipe, method, error, micro_batches, kind):
    recipe, fault = for_exceptions(recipe, micro_batches), Fault()
    maxl = watched_learner(recipe, fault)
    optimizer = recipe.made_optimizer(maxl.network)
    generator_optimizer = optimizer_of(OPTIMIZERS[kind], maxl.generator, 2, recipe.earlier_steps, recipe.seed)
    for module in (maxl.network, maxl.generator):
        leave_gradients(module, recipe.seed)
    options = {"method": method, "micro_batches": micro_batches, **recipe.options}
    torch.manual_seed(7)
    before = everything(maxl, optimizer, generator_optimizer)
    for at in itertools.count(1):  # at the first call, then at the second, until there is none left
        fault.set(at, error)
        finished = False
        with contextlib.suppress(error):
            ROADS[road](maxl, recipe.batch, optimizer, generator_optimizer, **options)
            finished = True
        if finished:
            break
        assert fault.calls == at  # no other exception than the injected one
        assert_unchanged(before, everything(maxl, optimizer, generator_optimizer))
    assert fault.stages == stages_of(road, method)
    assert maxl.experience.fallbacks == {}
    if road == "hypergradient":
        after = everything(maxl, optimizer, generator_optimizer)
        assert_unchanged(before, after, "gradients of the generator")


def raise_in_step(optimizer, fault, when):
    """Has an optimizer raise before it moves anything, when it has moved the first group, or after it has moved all."""
    step = optimizer.step

    def raising(*args):
        groups = optimizer.param_groups
        if when == "before":
            fault.reach("step")
        if when == "halfway":
            optimizer.param_groups = groups[:1]
        step(*args)
        optimizer.param_groups = groups
        if when != "before":
            fault.reach("step")

    optimizer.step = raising


@pytest.mark.parametrize("road", ["step", "network_step", "generator_step"])
@holds_for(50, real_optimizers(), KINDS, st.sampled_from(("before", "halfway", "after")), ERRORS)
def test_an_optimizer_that_raises_leaves_all_as_it_was(road, recipe, kind, when, error):
    maxl, fault = recipe.learner(), Fault()
    optimizer = recipe.made_optimizer(maxl.network)
    generator_optimizer = optimizer_of(OPTIMIZERS[kind], maxl.generator, 2, recipe.earlier_steps, recipe.seed)
    for one, network in ((optimizer, maxl.network), (generator_optimizer, maxl.generator)):
        leave_gradients(network, recipe.seed)
        raise_in_step(one, fault, when)
    torch.manual_seed(7)
    before = everything(maxl, optimizer, generator_optimizer)
    num_steps = 2 if road == "step" else 1
    for at in range(1, num_steps + 1):
        fault.set(at, error)
        with pytest.raises(error, match="step"):
            ROADS[road](maxl, recipe.batch, optimizer, generator_optimizer, method="forward", **recipe.options)
        assert_unchanged(before, everything(maxl, optimizer, generator_optimizer))
    fault.set(0, error)
    ROADS[road](maxl, recipe.batch, optimizer, generator_optimizer, method="forward", **recipe.options)
    assert fault.calls == num_steps
