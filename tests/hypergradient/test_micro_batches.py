"""Micro-batches: the gradient of the whole batch, and statistics that move once for each part."""

import pytest
import torch
from classifiers import OPTIMIZERS, PSI, batch, hypergradient, relative, trained
from torch import nn

from maxl_l2l import MAXL


def layer_norm_cnn():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(), nn.Linear(216, 2)).double()


@pytest.mark.parametrize("method", ["forward", "unrolled", "finite-difference", "regularizer"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_micro_batches_give_the_gradient_of_the_whole_batch(method, max_grad_norm):
    torch.manual_seed(0)
    maxl = MAXL(layer_norm_cnn(), PSI)
    x, y = batch()
    options = {"meta_batch": batch(7, seed=3), "method": method, "max_grad_norm": max_grad_norm}
    whole = hypergradient(maxl, x, y, **options)
    parts = hypergradient(maxl, x, y, micro_batches=3, **options)
    assert relative(parts, whole) < (1e-6 if method == "finite-difference" else 1e-12)
    result = maxl.hypergradient(x, y, micro_batches=4, **options)
    expected = maxl.hypergradient(x, y, **options)
    torch.testing.assert_close(result[:6], expected[:6])


@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_with_batch_norm_and_dropout_are_differentiated_exactly(weighted):
    maxl, optimizer = trained(OPTIMIZERS["adam"], weighted=weighted)
    x, y = batch()
    forward, unrolled = (
        hypergradient(maxl, x, y, optimizer=optimizer, micro_batches=3, method=method)
        for method in ("forward", "unrolled")
    )
    assert relative(forward, unrolled) < 1e-10


def test_micro_batches_move_statistics_once_each_and_make_the_same_step():
    x, y = batch()
    states = []
    for micro_batches in (1, 3):
        torch.manual_seed(0)
        maxl = MAXL(layer_norm_cnn(), PSI)
        optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.1, momentum=0.9)
        generator_optimizer = torch.optim.SGD(maxl.generator.parameters(), lr=0.1)
        maxl.step(x, y, optimizer, generator_optimizer, micro_batches=micro_batches)
        maxl.generator_step(x, y, optimizer, generator_optimizer, micro_batches=micro_batches)
        maxl.network_step(x, y, optimizer, micro_batches=micro_batches)
        maxl.network_step(x, y, optimizer, auxiliary=False, micro_batches=micro_batches)
        states.append(maxl.state_dict())
    torch.testing.assert_close(*states)
    maxl, optimizer = trained(OPTIMIZERS["sgd"])
    before = int(maxl.module[1].num_batches_tracked)
    maxl.step(x, y, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.1), micro_batches=3)
    assert int(maxl.module[1].num_batches_tracked) == before + 3
    assert int(maxl.generator.body[1].num_batches_tracked) == before + 3
