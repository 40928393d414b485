"""Snapshots put everything back, and find the tensors that PyTorch does not see."""

import copy
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from maxl_l2l.model_check.snapshot import Snapshot, plain_tensors, same
from maxl_l2l.passes.nested import copied, tensors_of

Pair = namedtuple("Pair", ["left", "right"])


class Holder(nn.Module):
    """Holds tensors in every way there is."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.alias = self.layer.weight
        self.register_buffer("count", torch.zeros(()))
        self.loose = torch.ones(2)
        self.blocks = [nn.BatchNorm1d(2), {"scale": torch.ones(1)}]
        self.expanded = torch.ones(1).expand(3)
        self.steps = 0
        self.log = ["start"]


def test_plain_tensors_are_found_by_path_and_no_registered_ones():
    paths = {f"holder.blocks[0].{name}" for name in nn.BatchNorm1d(2).state_dict()}
    expected = paths | {"holder.loose", "holder.blocks[1]['scale']", "holder.expanded"}
    assert set(plain_tensors(nn.ModuleDict({"holder": Holder()}))) == expected
    assert plain_tensors(nn.LSTM(2, 2)) == {}  # it lists its parameters in a plain list


def test_snapshot_puts_everything_back():
    module = Holder()
    module.layer.weight.grad = grad = torch.ones(2, 2)
    expected = copy.deepcopy(module)
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()]
    tensors = {path: (tensor, tensor.clone()) for path, tensor in plain_tensors(module).items()}
    snapshot = Snapshot(module)
    with torch.no_grad():
        module.layer.weight.fill_(5)
        module.layer.weight.grad = None
        module.count += 1
        module.loose.add_(1)
        module.blocks[0](torch.randn(4, 2))
    module.blocks.append(3)
    module.log.clear()
    module.steps = 7
    module.new = torch.ones(1)
    module.layer = nn.Linear(3, 3)
    module.eval()
    torch.randn(1), random.random(), np.random.rand()
    assert "steps" in snapshot.moved_attributes()
    snapshot.restore()
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert module.layer.weight is module.alias
    assert module.layer.weight.grad is grad
    for path, tensor in plain_tensors(module).items():
        assert tensor is tensors[path][0]
        assert torch.equal(tensor, tensors[path][1])
    assert (module.steps, module.log, module.training, module.blocks[0].training) == (0, ["start"], True, True)
    assert not hasattr(module, "new")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert snapshot.moved_attributes() == []


@pytest.mark.parametrize("x", [{"a": [torch.ones(2)]}, (torch.ones(2), 3), Pair(torch.ones(2), [torch.ones(1)])])
def test_copies_share_no_tensor(x):
    twin = copied(x)
    assert type(twin) is type(x)
    pairs = list(zip(tensors_of(x), tensors_of(twin)))
    assert pairs
    assert all(torch.equal(one, other) and one.data_ptr() != other.data_ptr() for one, other in pairs)


def test_same_is_of_values_shape_and_dtype():
    nan = torch.tensor([1.0, float("nan")])
    assert same(nan, nan.clone())
    assert not same(nan, torch.tensor([2.0, float("nan")]))
    assert not same(torch.ones(1), torch.ones(2))
    assert not same(torch.ones(1), torch.ones(1).double())
