"""Finite differences: how exact they are, the error that they estimate, and the distance that they search for."""

import pytest
import torch
from classifiers import OPTIMIZERS, batch, hypergradient, relative, trained


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
def test_finite_differences_are_near_and_say_how_near(kind, dtype, tolerance):
    maxl, optimizer = trained(OPTIMIZERS[kind], dtype, entropy_weight=0.0)
    x, y = batch(dtype=dtype)
    exact = hypergradient(maxl, x, y, optimizer=optimizer)
    error = relative(hypergradient(maxl, x, y, optimizer=optimizer, method="finite-difference"), exact)
    torch.manual_seed(7)
    stated = maxl.hypergradient(x, y, optimizer=optimizer, method="finite-difference").error.item()
    assert 0 < error < tolerance
    assert error < 2 * stated
    assert stated < 5 * tolerance
    assert maxl.hypergradient(x, y, optimizer=optimizer).error is None


def test_distance_of_finite_differences_can_be_given():
    maxl, _ = trained(None, entropy_weight=0.0)
    x, y = batch()
    exact = hypergradient(maxl, x, y)
    errors = [
        relative(hypergradient(maxl, x, y, method="finite-difference", epsilon=epsilon), exact)
        for epsilon in (1.0, 1e-2, 1e-4)
    ]
    # Central: of second order in the distance.
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] / errors[2] == pytest.approx(1e4, rel=0.2)


def test_step_by_finite_differences_moves_the_generator_as_the_exact_one_does():
    x, y = batch()
    moved = {}
    for method in ("forward", "finite-difference"):
        maxl, optimizer = trained(OPTIMIZERS["sgd"], entropy_weight=0.0)
        before = [p.detach().clone() for p in maxl.generator.parameters()]
        torch.manual_seed(7)
        result = maxl.step(x, y, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=1.0), method=method)
        moved[method] = torch.cat([(p - q).flatten() for p, q in zip(maxl.generator.parameters(), before)]).detach()
    assert 0 < result.error < 1e-3
    assert 0 < relative(moved["finite-difference"], moved["forward"]) < 1e-3


def test_finite_differences_of_a_meta_loss_that_sees_no_direction_are_zero():
    maxl, _ = trained(None, entropy_weight=0.0)
    head = list(maxl.network.auxiliary_head.parameters())
    for parameter in maxl.module.parameters():
        parameter.requires_grad_(False)
    maxl.hypergradient(*batch(), optimizer=torch.optim.SGD(head, lr=0.1), method="finite-difference")
    assert all(p.grad is None or not p.grad.any() for p in maxl.generator.parameters())


def test_half_precision_input_under_autocast_is_taken_by_finite_differences():
    maxl, _ = trained(None, torch.float32)
    x, y = batch(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        maxl.hypergradient(x, y, method="finite-difference")
    assert all(parameter.grad.isfinite().all() for parameter in maxl.generator.parameters())
