"""From gradients to optimizer steps: clipping, gradient scaling, and what the user's own code would have done."""

import copy

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from maxl_l2l import MAXL, NonFiniteError

PSI = [3, 4]


def cnn():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 2))


def batch(scale=1.0):
    numbers = torch.Generator().manual_seed(0)
    return scale * torch.randn(12, 1, 8, 8, generator=numbers), torch.randint(0, 2, (12,), generator=numbers)


def learner(**options):
    torch.manual_seed(0)
    maxl = MAXL(cnn(), PSI, **options)
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9)
    return maxl, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=1.0)


def test_clipped_step_is_that_of_clip_grad_norm():
    x, y = batch()
    maxl, optimizer, generator_optimizer = learner()
    other, its_optimizer, its_generator_optimizer = learner()
    limit = 1e-3
    other.hypergradient(x, y, optimizer=its_optimizer, max_grad_norm=limit)
    with torch.no_grad():
        targets = copy.deepcopy(other.generator)(x, y)
    other.loss(x, y, targets=targets).backward()
    for network, its in ((other.network, its_optimizer), (other.generator, its_generator_optimizer)):
        before = nn.utils.clip_grad_norm_(network.parameters(), limit)
        assert before > limit
        its.step()
    maxl.step(x, y, optimizer, generator_optimizer, max_grad_norm=limit)
    for found, expected in zip(maxl.parameters(), other.parameters()):
        torch.testing.assert_close(found, expected)


def test_network_step_clips_too():
    maxl, optimizer, _ = learner()
    before = [parameter.detach().clone() for parameter in maxl.network.parameters()]
    maxl.network_step(*batch(), optimizer, max_grad_norm=1e-3)
    moved = torch.cat([(p - q).flatten() for p, q in zip(maxl.network.parameters(), before)])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


STEPS = {
    "step": lambda maxl, batch, one, other, **options: maxl.step(*batch, one, other, **options),
    "network_step": lambda maxl, batch, one, other, **options: maxl.network_step(*batch, one, **options),
    "generator_step": lambda maxl, batch, one, other, **options: maxl.generator_step(*batch, one, other, **options),
}
each_step = pytest.mark.parametrize("name", STEPS)


@each_step
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_scaling_changes_no_step_in_float32(name, micro_batches):
    results = []
    for scaler in (None, GradScaler("cpu", init_scale=2.0**10), GradScaler("cpu", enabled=False)):
        maxl, optimizer, generator_optimizer = learner(weighted=True)
        for _ in range(2):
            result = STEPS[name](
                maxl,
                batch(),
                optimizer,
                generator_optimizer,
                scaler=scaler,
                max_grad_norm=0.1,
                micro_batches=micro_batches,
            )
            assert not result.skipped
        results.append((maxl.state_dict(), optimizer.state_dict(), result.primary_loss))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)


@each_step
def test_overflow_skips_the_step_says_so_and_lowers_the_scale(name):
    maxl, optimizer, generator_optimizer = learner()
    scaler = GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    before = {key: value.clone() for key, value in maxl.named_parameters()}
    result = STEPS[name](maxl, batch(1e4), optimizer, generator_optimizer, scaler=scaler)
    assert result.skipped
    assert result.primary_loss.isfinite()
    for key, value in maxl.named_parameters():
        assert torch.equal(value, before[key])
    assert not optimizer.state
    assert scaler.get_scale() == 2.0**126
    scaler.update(2.0**8)
    assert not STEPS[name](maxl, batch(), optimizer, generator_optimizer, scaler=scaler).skipped
    assert any(not torch.equal(value, before[key]) for key, value in maxl.named_parameters())


def test_input_that_is_not_finite_is_an_error_with_a_scaler_too():
    maxl, optimizer, generator_optimizer = learner()
    x, y = batch(float("nan"))
    with pytest.raises(NonFiniteError, match="the primary loss is nan"):
        maxl.step(x, y, optimizer, generator_optimizer, scaler=GradScaler("cpu"))


@each_step
def test_float16_autocast_trains_with_a_scaler(name):
    maxl, optimizer, generator_optimizer = learner()
    scaler = GradScaler("cpu", init_scale=2.0**8)
    before = {key: value.clone() for key, value in maxl.named_parameters()}
    with torch.autocast("cpu", dtype=torch.float16):
        for _ in range(3):
            result = STEPS[name](maxl, batch(), optimizer, generator_optimizer, scaler=scaler)
    assert not result.skipped
    assert any(not torch.equal(value, before[key]) for key, value in maxl.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["forward", "finite-difference"])
def test_hypergradient_under_autocast_is_near_that_of_float32(dtype, method):
    maxl, _, _ = learner(entropy_weight=0.0)
    x, y = batch()
    maxl.hypergradient(x, y)
    expected = torch.cat([p.grad.flatten() for p in maxl.generator.parameters()])
    maxl.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        scaler = GradScaler("cpu", init_scale=2.0**8)
        frozen = torch.optim.SGD(maxl.generator.parameters(), lr=0.0)
        maxl.generator_step(x, y, None, frozen, method=method, scaler=scaler)
    found = torch.cat([p.grad.flatten() for p in maxl.generator.parameters()])
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_float16_without_a_scaler_is_warned_of():
    maxl, optimizer, generator_optimizer = learner()
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.warns(RuntimeWarning, match=r"`scaler` is None under float16 autocast: .*torch.amp.GradScaler"),
    ):
        maxl.step(*batch(), optimizer, generator_optimizer)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_grad_norm": 0.0}, ValueError, "`max_grad_norm` must be a finite number > 0, found 0.0"),
        ({"max_grad_norm": float("nan")}, ValueError, "`max_grad_norm` must be a finite number > 0, found nan"),
        ({"scaler": 3}, TypeError, "`scaler` must be an instance of GradScaler, found int"),
        ({"micro_batches": 0}, ValueError, "`micro_batches` must be at least 1, found 0"),
    ],
)
@each_step
def test_bad_options_are_refused(name, options, error, message):
    maxl, optimizer, generator_optimizer = learner()
    with pytest.raises(error, match=message):
        STEPS[name](maxl, batch(), optimizer, generator_optimizer, **options)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_step_size_that_is_not_finite_and_positive_is_refused(epsilon):
    maxl, *_ = learner()
    with pytest.raises(ValueError, match=f"`epsilon` must be a finite number > 0, found {epsilon}"):
        maxl.hypergradient(*batch(), method="finite-difference", epsilon=epsilon)


@each_step
def test_disabled_scaler_is_as_none(name):
    maxl, optimizer, generator_optimizer = learner()
    x, y = batch(float("inf"))
    with pytest.raises(NonFiniteError):
        STEPS[name](maxl, (x, y), optimizer, generator_optimizer, scaler=GradScaler("cpu", enabled=False))
    maxl.module[0].weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(NonFiniteError, match="network gradient"):
        STEPS[name](maxl, batch(), optimizer, generator_optimizer, scaler=GradScaler("cpu", enabled=False))
    assert all(parameter.isfinite().all() for parameter in maxl.parameters())
