"""Compiled passes: the same numbers as the plain ones, dropout masks and statistics included."""

import copy
import pickle

import pytest
import torch
from torch import nn

from maxl_l2l import MAXL
from maxl_l2l.hypergradient.compilation import compile_options

PSI = [3, 4]
pytestmark = [
    pytest.mark.skipif(torch.__version__ < "2.9", reason="maxl.compile() needs torch 2.9"),
    # What torch.compile itself warns of when it first loads, and its own use of what is deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*layout contract:UserWarning"),
]


@pytest.fixture(autouse=True)
def _reset():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def cnn(dropout=0.5):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(384, 2),
    ).double()


def batch():
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, 8, 8, generator=numbers, dtype=torch.float64)
    return x, torch.randint(0, 2, (8,), generator=numbers)


def optimizers(maxl):
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9)
    return optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.1)


def trained(prepare, model=cnn, **options):
    """All that three steps of both networks, and steps of one, change."""
    torch.manual_seed(0)
    maxl = MAXL(prepare(model()), PSI, **options)
    return run(maxl)


def run(maxl):
    made = optimizers(maxl)
    torch.manual_seed(1)
    for _ in range(3):
        maxl.step(*batch(), *made)
    maxl.network_step(*batch(), made[0])
    maxl.generator_step(*batch(), *made, micro_batches=2)
    maxl.zero_grad()
    maxl.hypergradient(*batch(), optimizer=made[0])
    grads = [parameter.grad for parameter in maxl.generator.parameters()]
    return list(maxl.state_dict().values()), grads, torch.get_rng_state()


def test_compiled_learner_trains_as_the_plain_one():
    expected = trained(lambda model: model, weighted=True)
    torch.manual_seed(0)
    maxl = MAXL(cnn(), PSI, weighted=True)
    maxl.compile(backend="aot_eager")
    breaks = dict(torch._dynamo.utils.counters["graph_break"])
    torch.testing.assert_close(run(maxl), expected, rtol=1e-9, atol=1e-12)
    assert dict(torch._dynamo.utils.counters["graph_break"]) == breaks


def test_inductor_draws_the_same_dropout_masks():
    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        maxl = MAXL(model.double(), PSI)
        if compiled:
            maxl.compile()
        torch.manual_seed(1)
        x, y = batch()
        maxl.step(x.flatten(1), y, *optimizers(maxl))
        states.append((list(maxl.state_dict().values()), torch.get_rng_state()))
    torch.testing.assert_close(*states, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
def test_model_that_the_user_has_compiled_trains_as_the_plain_one(in_place):
    def prepare(model):
        if in_place:
            model.compile(backend="aot_eager")
            compiled = model
        else:
            compiled = torch.compile(model, backend="aot_eager")
        compiled(batch()[0])  # so that its code exists before there is an auxiliary head
        return compiled

    torch.manual_seed(0)
    plain = cnn()
    expected = trained(lambda model: (model(batch()[0]), model)[1], model=lambda: copy.deepcopy(plain))
    found = trained(prepare, model=lambda: copy.deepcopy(plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_copies_and_clones_of_a_compiled_learner_are_plain():
    torch.manual_seed(0)
    maxl = MAXL(cnn(0.0), PSI)
    maxl.compile(backend="aot_eager")
    maxl.step(*batch(), *optimizers(maxl))
    before = copy.deepcopy(maxl.state_dict())
    for other in (copy.deepcopy(maxl), pickle.loads(pickle.dumps(maxl))):
        other.step(*batch(), *optimizers(other))
    learner = maxl.clone()
    learner.adapt(learner.primary_loss(*batch()))
    learner.meta_loss(*batch()).backward()
    torch.testing.assert_close(maxl.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is not None for parameter in maxl.module.parameters())


def test_backbone_without_a_head_is_compiled_too():
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        maxl = MAXL(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh()).double(), PSI, num_features=8)
        if compiled:
            maxl.compile(backend="aot_eager")
        results.append(run(maxl))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


def test_head_that_is_a_sequence_is_compiled_too():
    layers = [nn.ELU(inplace=True), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.3), nn.Conv2d(5, 2, 6)]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*layers), nn.Flatten()).double()
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        maxl = MAXL(copy.deepcopy(model), PSI, head="1")
        breaks = dict(torch._dynamo.utils.counters["graph_break"])
        if compiled:
            maxl.compile(backend="aot_eager")
        results.append(run(maxl))
        assert dict(torch._dynamo.utils.counters["graph_break"]) == breaks
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_inductor_is_set_to_draw_the_random_numbers_of_plain_passes():
    assert compile_options() == {"options": {"fallback_random": True}}
    assert compile_options(backend="aot_eager") == {"backend": "aot_eager"}
    found = compile_options(mode="reduce-overhead", options={"max_autotune": True}, dynamic=False)
    assert found["dynamic"] is False
    assert (
        found["options"].items() >= {"fallback_random": True, "max_autotune": True, "triton.cudagraphs": True}.items()
    )
    assert "mode" not in found


def test_compiled_attention_is_differentiated(monkeypatch):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.middle(self.attention(x, x, x)[0])).mean(1))

    monkeypatch.setattr("maxl_l2l.hypergradient.tape.MIN_PRODUCTS_OF_LINEAR", 1)
    torch.manual_seed(0)
    maxl = MAXL(Attention().double(), PSI, head="head", entropy_weight=0.0)
    x, y = torch.randn(6, 3, 8).double(), torch.randint(0, 2, (6,))
    found = []
    for compiled in (False, True):
        if compiled:
            maxl.compile(backend="aot_eager")
        for _ in range(3):
            maxl.zero_grad()
            maxl.hypergradient(x, y)
            found.append(torch.cat([parameter.grad.flatten() for parameter in maxl.generator.parameters()]))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-10, atol=1e-14)


def test_hooks_of_the_generator_are_compiled_with_it():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(192, 7)

        def forward(self, x, y):
            return self.layer(x.flatten(1))

    torch.manual_seed(0)
    generator = Plain().double()
    generator.register_forward_hook(lambda module, args, logits: logits.softmax(dim=1))
    maxl = MAXL(cnn(0.0), PSI, generator=generator)
    expected = maxl.hypergradient(*batch()).targets
    maxl.compile(backend="aot_eager")
    torch.testing.assert_close(maxl.hypergradient(*batch()).targets, expected)


def test_a_network_that_is_replaced_is_not_passed_through_the_code_of_the_old_one():
    torch.manual_seed(0)
    maxl = MAXL(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)), [2, 2])
    maxl.compile(backend="eager")
    x, y = torch.randn(4, 8), torch.tensor([0, 1, 1, 0])
    maxl.hypergradient(x, y)
    maxl.generator = copy.deepcopy(maxl.generator)
    maxl.zero_grad()
    maxl.hypergradient(x, y)
    assert all(parameter.grad is not None for parameter in maxl.generator.parameters())
