"""learn2learn's interface: clones, adapt, attributes of the model, and what copies share."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wrapped_classifier import PSI, batch, mlp, optimizers

from maxl_l2l import MAXL, AuxiliaryLabelGenerator, LabelGenerator


def test_the_models_parameters_come_first():
    model = mlp()
    assert all(own is listed for own, listed in zip(model.parameters(), MAXL(model, PSI).parameters()))


def test_unknown_attributes_are_looked_up_on_the_model():
    class Model(nn.Module):
        tag = "mine"

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(x)

        def __deepcopy__(self, memo):
            raise AssertionError("the wrapper's copy must not be the model's")

    maxl = MAXL(Model(), PSI, generator=LabelGenerator(nn.Linear(8, 5), PSI))
    assert maxl.tag == "mine"
    assert maxl.fc is maxl.module.fc
    assert getattr(maxl, "__deepcopy__", None) is None
    with pytest.raises(AttributeError, match="nowhere"):
        _ = maxl.nowhere


# ---- clone and adapt


def test_unrolled_clone_has_the_hypergradient_of_the_fused_engine():
    maxl = MAXL(mlp().double(), PSI, lr=0.1)
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))
    learner = maxl.clone()
    learner.adapt(learner.loss(x, y))
    learner.meta_loss(x, y).backward()
    explicit = [p.grad.clone() for p in maxl.generator.parameters()]
    assert all(p.grad is not None for p in maxl.module.parameters())  # theta_1 too, as in MAML
    maxl.zero_grad()
    maxl.hypergradient(x, y)
    torch.testing.assert_close([p.grad for p in maxl.generator.parameters()], explicit, rtol=1e-10, atol=1e-14)


def test_two_inner_steps_match_central_differences():
    torch.manual_seed(0)
    maxl = MAXL(mlp().double(), PSI, lr=0.5)
    x, y = torch.randn(6, 8).double(), torch.randint(0, 2, (6,))

    def meta_loss():
        learner = maxl.clone()
        for _ in range(2):
            learner.adapt(learner.loss(x, y))
        return learner.meta_loss(x, y)

    weight = maxl.generator.body[0].weight
    (grad,) = torch.autograd.grad(meta_loss(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-5 * direction
    above = meta_loss().item()
    with torch.no_grad():
        weight -= 2e-5 * direction
    assert (above - meta_loss().item()) / 2e-5 == pytest.approx((grad * direction).sum().item(), rel=1e-6)


def test_clone_is_independent_but_connected():
    maxl = MAXL(mlp(), PSI)
    before = copy.deepcopy(maxl.state_dict())
    learner = maxl.clone()
    assert type(learner) is MAXL
    assert learner.hierarchy == maxl.hierarchy
    assert learner.generator is maxl.generator
    learner.adapt(learner.loss(*batch()))
    learner(batch()[0])
    moved = {name for name, value in maxl.state_dict().items() if not torch.equal(value, before[name])}
    # The generator's pass in loss() is a real one; nothing of the network may move.
    assert all(name.startswith("generator.") and ("running" in name or "batches" in name) for name in moved)
    learner.meta_loss(*batch()).backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in maxl.module.parameters())


def test_clone_flags_override_or_inherit():
    maxl = MAXL(mlp(), PSI, allow_nograd=True)
    assert maxl.allow_unused is True
    learner = maxl.clone(allow_unused=False, allow_nograd=False)
    assert (learner.first_order, learner.allow_unused, learner.allow_nograd) == (False, False, False)
    again = maxl.clone()
    assert (again.allow_unused, again.allow_nograd) == (True, True)
    with pytest.warns(UserWarning, match="first_order"):
        assert maxl.clone(first_order=True).first_order is True


def test_warning_of_the_constructor_points_at_the_callers_line():
    for construct in (
        lambda: MAXL(mlp(), PSI, first_order=True),
        lambda: AuxiliaryLabelGenerator(mlp(), LabelGenerator(nn.Linear(8, 5), PSI), 5, first_order=True),
    ):
        with pytest.warns(UserWarning, match="first_order") as caught:
            construct()
        assert caught[0].filename == __file__


def test_adapt_refuses_frozen_and_unused_parameters_by_name():
    model = mlp()
    model[0].weight.requires_grad_(False)
    learner = MAXL(model, PSI).clone()
    loss = learner.loss(*batch())
    with pytest.raises(
        RuntimeError, match=r"needs all of the model's parameters to be trainable, found frozen: 0\.wei"
    ):
        learner.adapt(loss)
    learner.adapt(loss, allow_nograd=True)
    learner = MAXL(mlp(), PSI).clone()
    partial = learner.module[3].weight.norm()
    with pytest.raises(RuntimeError, match=r"to enter `loss`, found unused: 0\.bias.* and 0 more|unused: 0\.bias"):
        learner.adapt(partial)
    learner = MAXL(mlp(), PSI).clone()
    kept = learner.module[0].weight
    learner.adapt(learner.module[3].weight.norm(), allow_unused=True)
    assert learner.module[0].weight is kept


def test_adapt_works_on_a_loss_of_the_users_own():
    learner = MAXL(mlp(), PSI, lr=0.1).clone()
    x, y = batch()
    before = F.cross_entropy(learner(x), y)
    learner.adapt(before)  # the auxiliary head goes unused
    assert F.cross_entropy(learner(x), y) < before


def test_first_order_warns_and_names_the_alternative():
    with pytest.warns(
        UserWarning, match=r"cuts the path from the primary loss to the generator.*Use step\(\)"
    ) as caught:
        maxl = MAXL(mlp(), PSI, first_order=True)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = maxl.clone()  # said already
        learner.adapt(learner.loss(*batch()))
    maxl = MAXL(mlp(), PSI)
    with pytest.warns(UserWarning, match="hypergradient"):
        maxl.clone(first_order=True)
    learner = maxl.clone()
    loss = learner.loss(*batch())
    with pytest.warns(UserWarning, match="hypergradient"):
        learner.adapt(loss, first_order=True)


def test_first_order_cuts_the_primary_path():
    with pytest.warns(UserWarning, match="first_order"):
        maxl = MAXL(mlp(), PSI, first_order=True, entropy_weight=0.0)
    learner = maxl.clone()
    learner.adapt(learner.loss(*batch()))
    learner.primary_loss(*batch()).backward()
    assert all(p.grad is None for p in maxl.generator.parameters())
    assert all(p.grad is not None for p in maxl.module.parameters())


# torch 2.4 warns of itself when a tensor is unpickled
@pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`:FutureWarning")
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda maxl: pickle.loads(pickle.dumps(maxl))], ids=["copy", "pickle"]
)
def test_copies_are_whole_and_independent(copied):
    maxl = MAXL(mlp(), PSI)
    twin = copied(maxl)
    x, y = batch()
    torch.testing.assert_close(twin.eval().loss(x, y), maxl.eval().loss(x, y))
    twin.train().step(x, y, *optimizers(twin))
    assert not torch.equal(twin.module[0].weight, maxl.module[0].weight)
    assert twin.network.module is twin.module


def test_hypergradient_of_a_clone_says_where_to_call_it():
    learner = MAXL(nn.Linear(8, 2), [2, 2]).clone()
    with pytest.raises(ValueError, match="`hypergradient` needs a learner with parameters of its own, found a clone's"):
        learner.hypergradient(torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))
