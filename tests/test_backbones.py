"""Hypergradients of real architectures: the two roads agree on each."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from maxl_l2l import MAXL

PSI = [2, 1, 3]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(48, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(x.flatten(1).unflatten(1, (-1, 48)))[0][:, -1])


class Tied(nn.Module):
    """One weight in two layers, and one layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(48, 48)
        self.body = nn.Sequential(self.first, nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.body[2].weight = self.first.weight
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)[:, :48]))


def torchvision_model(name):
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=3)


BACKBONES = {
    **{
        name: torchvision_model(name)
        for name in (
            "resnet18",
            "squeezenet1_1",
            "efficientnet_b0",
            "shufflenet_v2_x0_5",
            "convnext_tiny",
            "densenet121",
        )
    },
    "vit": lambda: VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=3),
    "swin": lambda: SwinTransformer([2, 2], 8, [1, 1], [1, 2], [2, 2], num_classes=3),
    "lstm": Recurrent,
    "tied": Tied,
}


def hypergradient(maxl, x, y, method):
    maxl.zero_grad()
    torch.manual_seed(1)
    maxl.hypergradient(x, y, method=method)
    return torch.cat([p.grad.flatten() for p in maxl.generator.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", BACKBONES)
def test_forward_equals_unrolled(name):
    maxl = MAXL(BACKBONES[name]().double(), PSI, entropy_weight=0.0)
    x, y = torch.randn(3, 3, 32, 32).double(), torch.tensor([0, 1, 2])
    forward, unrolled = hypergradient(maxl, x, y, "forward"), hypergradient(maxl, x, y, "unrolled")
    assert unrolled.norm() > 0
    # BatchNorm over three values a channel, as here in the last layers, multiplies rounding errors by up to 1e6.
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()


def test_forward_works_where_the_second_derivative_is_missing():
    # mobilenet_v3's hardsigmoid can't be differentiated twice.
    maxl = MAXL(torchvision_model("mobilenet_v3_small")().double(), PSI, entropy_weight=0.0)
    x, y = torch.randn(3, 3, 32, 32).double(), torch.tensor([0, 1, 2])
    assert hypergradient(maxl, x, y, "forward").norm() > 0
    with pytest.raises(RuntimeError, match="hardsigmoid"):
        maxl.hypergradient(x, y, method="unrolled")
