"""Numbers that go wrong: noticed in the step in which they do, named, and not learned from."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from faults import program
from maxl_l2l import MAXL, AuxiliaryLabelGenerator, NonFiniteError, RandomLabels, fit

METHODS = ("forward", "unrolled", "finite-difference")


def batch(size=8):
    numbers = torch.Generator().manual_seed(0)
    return torch.randn(size, 4, generator=numbers), torch.arange(size) % 2


def made(kind=torch.optim.Adam, maxl=None, **options):
    maxl = maxl or program.learner()
    optimizer = kind(maxl.network.parameters(), **{"lr": 0.01, **options})
    generator_optimizer = kind(maxl.generator.parameters(), **{"lr": 0.01, **options})
    return maxl, optimizer, generator_optimizer


def everything(maxl, *optimizers):
    """All that a step may change."""
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in maxl.named_parameters()}
    return copy.deepcopy(
        [dict(maxl.state_dict()), grads, torch.get_rng_state(), *(optimizer.state_dict() for optimizer in optimizers)]
    )


STEPS = {
    "step": lambda maxl, x, y, one, two, **options: maxl.step(x, y, one, two, **options),
    "network_step": lambda maxl, x, y, one, two, **options: maxl.network_step(x, y, one, **options),
    "generator_step": lambda maxl, x, y, one, two, **options: maxl.generator_step(x, y, one, two, **options),
    "hypergradient": lambda maxl, x, y, one, two, **options: maxl.hypergradient(x, y, optimizer=one, **options),
}
each_step = pytest.mark.parametrize("name", STEPS)


def refused(name, term, message, learned, x=None, y=None, **options):
    """Takes a step that must fail for a term, and change nothing."""
    maxl, one, two = learned
    good_x, good_y = batch()
    before = everything(maxl, one, two)
    with pytest.raises(NonFiniteError, match=message) as caught:
        STEPS[name](maxl, good_x if x is None else x, good_y if y is None else y, one, two, **options)
    assert caught.value.term == term
    assert program.same(everything(maxl, one, two)[1:], before[1:])
    for key, value in maxl.state_dict().items():
        torch.testing.assert_close(value, before[0][key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each_step
def test_input_is_named_with_the_sample(name, value):
    x, _ = batch()
    x[5, 2] = x[6, 0] = value
    kind = "NaN" if math.isnan(value) else "infinite"
    message = f"is nan, as the input x is {kind} in 2 of 8 samples, first in number 5; no parameter was updated with it"
    refused(name, "input", message, made(), x)


@pytest.mark.parametrize("method", METHODS)
def test_input_of_the_meta_batch_is_named(method):
    x, y = batch()
    message = r"the meta loss is nan, as the input meta_batch\[0\] is NaN in 8 of 8 samples, first in number 0;"
    refused("step", "input", message, made(), meta_batch=(x * math.nan, y), method=method)


@each_step
def test_parameters_that_were_not_finite_are_named(name):
    learned = made()
    with torch.no_grad():
        learned[0].module[0].weight[0, 0] = math.nan
    message = "is nan, as the network's parameters module.0.weight are NaN or infinite; no parameter was updated"
    refused(name, "network parameters", message, learned)


@pytest.mark.parametrize("name", ["step", "generator_step", "hypergradient"])
def test_generator_s_parameters_that_were_not_finite_are_named(name):
    learned = made()
    with torch.no_grad():
        next(learned[0].generator.parameters()).fill_(math.inf)
    message = "is nan, as the generator's parameters body.0.weight are NaN or infinite; no parameter was updated"
    refused(name, "generator parameters", message, learned)


@each_step
def test_buffers_that_were_not_finite_are_named(name):
    learned = made()
    learned[0].module[1].eval()
    learned[0].module[1].running_mean.fill_(math.nan)
    message = "is nan, as the network's buffers module.1.running_mean are NaN; no parameter was updated with it"
    refused(name, "network buffers", message, learned)


@each_step
def test_gradient_is_named(name):
    learned = made()
    learned[0].module[0].weight.register_hook(lambda grad: grad * math.nan)
    refused(name, "network gradient", "the network gradient is nan; no parameter was updated with it", learned)


@pytest.mark.parametrize("name", ["step", "generator_step", "hypergradient"])
def test_hypergradient_is_named(name):
    learned = made()
    next(learned[0].generator.parameters()).register_hook(lambda grad: grad * math.inf)
    refused(name, "hypergradient", r"the hypergradient is (nan|inf); no parameter was updated with it", learned)


@pytest.mark.parametrize("term", ["primary loss", "auxiliary loss", "regularizer"])
def test_loss_is_named(term):
    class Targets(nn.Linear):
        def forward(self, x, y):
            return super().forward(x).softmax(dim=1)

    def spoiled(name, loss):
        return lambda *args: loss(*args) * (math.nan if name == term else 1.0)

    maxl = AuxiliaryLabelGenerator(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
        Targets(4, 3),
        3,
        primary_loss=spoiled("primary loss", nn.functional.cross_entropy),
        auxiliary_loss=spoiled("auxiliary loss", nn.functional.cross_entropy),
        regularizer=spoiled("regularizer", lambda targets: (targets**2).mean()),
    )
    refused("step", term, f"the {term} is nan; no parameter was updated with it. Lower the", made(maxl=maxl))


@pytest.mark.parametrize("name", ["step", "network_step"])
def test_parameters_that_a_step_would_make_infinite_are_put_back(name):
    """The auxiliary head does not enter the meta loss, so that its update shows nowhere else."""
    maxl = program.learner()
    head = list(maxl.network.auxiliary_head.parameters())
    others = [p for p in maxl.network.parameters() if all(p is not own for own in head)]
    one = torch.optim.SGD([{"params": others}, {"params": head, "lr": 1e30, "weight_decay": 1e30}], lr=0.01)
    message = r"the network parameters would become -?inf; no parameter was updated with it"
    refused(name, "network parameters", message, (maxl, one, torch.optim.Adam(maxl.generator.parameters())))


def spoiling(which, what):
    """A learner and two optimizers, one of which makes a parameter or its state infinite in its step, or raises."""
    maxl, *optimizers = made(torch.optim.SGD, lr=0.1, momentum=0.9)

    def spoil(optimizer, *_):
        parameter = optimizer.param_groups[0]["params"][0]
        if what == "parameter":
            parameter.data[0] = math.inf
        elif what == "state":
            optimizer.state[parameter]["momentum_buffer"][0] = math.nan
        else:
            raise RuntimeError("the optimizer fails")

    handle = optimizers[("network", "generator").index(which)].register_step_post_hook(spoil)
    return maxl, *optimizers, handle


SPOILED = [
    ("step", "network"),
    ("step", "generator"),
    ("network_step", "network"),
    ("generator_step", "generator"),
]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(("name", "which"), SPOILED)
def test_parameters_that_an_optimizer_spoils_are_put_back_with_its_state(name, which, warm):
    *learned, _ = spoiling(which, "parameter")
    if warm:
        twin, *optimizers = made(torch.optim.SGD, lr=0.1, momentum=0.9)
        twin.step(*batch(), *optimizers)
        for optimizer, other in zip(learned[1:], optimizers):
            optimizer.load_state_dict(other.state_dict())
    message = rf"the {which} parameters would become inf; no parameter was updated with it\. Lower the learning rates"
    refused(name, f"{which} parameters", message, learned)


@pytest.mark.parametrize(("name", "which"), SPOILED)
def test_state_that_an_optimizer_spoils_is_put_back(name, which):
    message = f"the state of the {which}'s optimizer would become nan; no parameter was updated with it"
    refused(name, f"state of the {which}'s optimizer", message, spoiling(which, "state")[:3])


@pytest.mark.parametrize(("name", "which"), SPOILED)
def test_step_of_an_optimizer_that_raises_is_undone(name, which):
    maxl, one, two, _ = spoiling(which, "error")
    before = everything(maxl, one, two)
    with pytest.raises(RuntimeError, match="the optimizer fails"):
        STEPS[name](maxl, *batch(), one, two)
    assert program.same(everything(maxl, one, two), before)


def test_scaler_goes_on_after_a_step_that_was_undone():
    maxl, one, two, handle = spoiling("generator", "parameter")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.raises(NonFiniteError, match="the generator parameters would become inf"):
        maxl.step(*batch(), one, two, scaler=scaler)
    assert scaler.get_scale() == 8.0
    handle.remove()
    assert not maxl.step(*batch(), one, two, scaler=scaler).skipped


def test_adam_whose_second_moment_would_overflow_is_stopped():
    """Its parameters would no longer change, and no loss would show it."""
    maxl, one, two = made()
    maxl.module[0].weight.register_hook(lambda grad: torch.full_like(grad, 1e30))
    refused("network_step", "state of the network's optimizer", "optimizer would become inf", (maxl, one, two))


def test_batch_norm_whose_statistics_would_overflow_is_stopped():
    """Activations are normalised, so that no loss shows it."""
    x, _ = batch()
    refused("network_step", "buffers", "the buffers would become inf; no parameter", made(), x * 1e20)


def test_buffer_that_is_infinite_on_purpose_is_none_of_it():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model.register_buffer("mask", torch.tensor([-math.inf, 0.0]))
    maxl, one, two = made(maxl=MAXL(model, program.PSI))
    assert maxl.step(*batch(), one, two).primary_loss.isfinite()


def test_mask_in_a_mapping_is_none_of_it():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.layer = nn.Linear(4, 4)

        def forward(self, x, mask):
            return self.head(self.layer(x) * mask.exp())

    maxl, one, two = made(maxl=MAXL(Masked(), program.PSI))
    x, y = batch()
    inputs = {"x": x, "mask": torch.where(x > 0, 0.0, -math.inf)}
    assert maxl.step(inputs, y, one, two).primary_loss.isfinite()
    maxl.module.layer.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(NonFiniteError) as caught:
        maxl.step(inputs, y, one, two)
    assert caught.value.term == "network gradient"


@pytest.mark.parametrize(("term", "value"), [("loss", math.nan), ("loss", math.inf), ("gradient", math.nan)])
def test_adapt_leaves_the_learner_as_it_was(term, value):
    learner = made()[0].clone()
    before = {name: parameter.clone() for name, parameter in learner.network.named_parameters()}
    loss = learner.loss(*batch())
    if term == "gradient":
        loss.register_hook(lambda grad: grad * value)
    with pytest.raises(NonFiniteError, match=f"found the {term} {value}; no parameter was moved") as caught:
        learner.adapt(loss if term == "gradient" else loss * value)
    assert caught.value.term == term
    assert all(torch.equal(parameter, before[name]) for name, parameter in learner.network.named_parameters())
    learner.adapt(learner.loss(*batch()))
    assert not all(torch.equal(parameter, before[name]) for name, parameter in learner.network.named_parameters())


# ---- in a run


def loader(x, y):
    return DataLoader(TensorDataset(x, y), 8)


def test_run_saves_the_last_good_state_and_goes_on_from_it(tmp_path):
    x, y = batch(32)
    bad = x.clone()
    bad[20] = math.nan
    options = {"seed": 1, "progress": False}
    whole = program.learner()
    fit(whole, loader(x, y), 1, **program.parts(whole), **options)
    maxl, path = program.learner(), tmp_path / "run.pt"
    message = (
        r"stopped at step 3 \(epoch 1\): .* as the input x is NaN in 1 of 8 samples, first in number 4;.*run.pt.sto"
    )
    with pytest.raises(NonFiniteError, match=message):
        fit(maxl, loader(bad, y), 1, **program.parts(maxl), **options, checkpoint=path)
    path.with_name("run.pt.stopped").rename(path)
    maxl = program.learner()
    fit(maxl, loader(x, y), 1, **program.parts(maxl), **options, checkpoint=path, resume=True)
    assert program.same(dict(maxl.state_dict()), dict(whole.state_dict()))


def test_fixed_labels_are_trained_with_the_same_care():
    x, y = batch(32)
    data = RandomLabels(seed=0).label(TensorDataset(x * math.nan, y), program.PSI)
    with pytest.raises(NonFiniteError, match="as the input x is NaN in 8 of 8 samples"):
        fit(program.learner(), DataLoader(data, 8), 1, source=RandomLabels(seed=0), progress=False)


def test_test_data_that_are_not_finite_are_warned_of():
    x, y = batch(32)
    with pytest.warns(
        RuntimeWarning, match=r"`test_loader` gave a loss of nan after epoch 1\. Check its data"
    ) as caught:
        fit(program.learner(), loader(x, y), 1, test_loader=loader(x * math.nan, y), progress=False)
    assert caught[0].filename == __file__


def test_skipped_steps_are_counted_and_an_epoch_of_nothing_else_is_warned_of():
    x, y = batch(32)
    maxl = program.learner()
    maxl.module[0].weight.register_hook(lambda grad: grad * math.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with pytest.warns(
        RuntimeWarning, match=r"`scaler` skipped all 4 steps of epoch 1, its scale is 4096\.0 now\."
    ) as caught:
        history = fit(maxl, loader(x, y), 1, scaler=scaler, progress=False)
    assert history["skipped"] == [4]
    assert caught[0].filename == __file__


def test_options_and_counts_that_an_optimizer_keeps_elsewhere_are_put_back():
    maxl, one, two = made(torch.optim.SGD)
    two.state["count"] = 1
    two.param_groups[0]["k"] = 1

    def count(optimizer, *_):
        optimizer.state["count"] += 1
        optimizer.param_groups[0]["k"] += 1
        raise RuntimeError("the optimizer fails")

    two.register_step_post_hook(count)
    with pytest.raises(RuntimeError, match="the optimizer fails"):
        maxl.step(*batch(), one, two)
    assert (two.state["count"], two.param_groups[0]["k"]) == (1, 1)
