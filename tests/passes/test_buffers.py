"""What surrounds virtual passes: copies of buffers, and buffers written back."""

import pytest
import torch
from torch import nn

from maxl_l2l.passes.buffers import clones, copy_all, write_buffers
from maxl_l2l.passes.virtual_pass import virtual_pass


def test_copy_all_copies_tensors_of_every_kind():
    sources = [
        torch.randn(3),
        torch.randn(2, 4, dtype=torch.float64),
        torch.tensor(5),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.eye(3).to_sparse(),
        torch.randn(3).half(),
    ]
    targets = [torch.zeros_like(source) for source in sources]
    targets[5] = torch.zeros(3)  # of another dtype, which it keeps
    copy_all(zip(targets, sources))
    for target, source in zip(targets, sources):
        torch.testing.assert_close(target, source, rtol=0, atol=0, check_dtype=False)
    assert targets[5].dtype == torch.float32


def test_clones_are_apart_from_their_originals():
    originals = {"mean": torch.zeros(3), "count": torch.tensor(1)}
    copies = clones(originals)
    copies["mean"] += 1
    assert originals["mean"].tolist() == [0, 0, 0]
    assert copies["count"].item() == 1


def test_write_buffers_copies_in_place_and_lets_a_buffer_grow():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("seen", torch.zeros(1))
            self.register_buffer("left", torch.ones(1))

    module = Counting()
    before = dict(module.named_buffers())
    write_buffers([(module, {"mean": torch.tensor([1.0, 2.0]), "seen": torch.tensor([3.0, 4.0])})])
    assert module.mean is before["mean"]
    assert module.mean.tolist() == [1, 2]
    assert module.seen is before["seen"]
    assert module.seen.tolist() == [3, 4]
    assert module.left.tolist() == [1]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_refused_where_its_compiled_code_can_not_be_left_out(monkeypatch, in_place):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)  # as before torch 2.6
    model = nn.Sequential(nn.Linear(2, 3))
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    parameters = dict(model.named_parameters())
    with pytest.raises(RuntimeError, match=r"`model` must not be compiled, as torch .* Give the plain model, or"):
        virtual_pass(model, parameters, {}, torch.zeros(1, 2))
