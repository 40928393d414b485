"""Hypergradients of real architectures: the two exact methods agree on each."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.segmentation.fcn import FCN, FCNHead

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


def torchvision_model(name, **options):
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=3, **options)


def vgg16_bn():
    """With a small classifier: its own has 120 million parameters, for nothing here."""
    with torch.device("meta"):
        model = torchvision.models.vgg16_bn(weights=None)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


class Stages(nn.Module):
    """A backbone as torchvision's segmentation models take it, a dict of features."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)

    def forward(self, x):
        early = self.first(x).relu()
        return {"aux": early, "out": self.second(early).relu()}


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
    "vgg16_bn": vgg16_bn,
    "googlenet": torchvision_model("googlenet", aux_logits=True, init_weights=False),
    "vit": lambda: VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, attention_dropout=0.1, num_classes=3),
    "swin": lambda: SwinTransformer([2, 2], 8, [2, 2], [1, 2], [2, 2], num_classes=3),
    "segmentation": lambda: FCN(Stages(), FCNHead(12, 3), FCNHead(8, 3)),
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
    if name == "segmentation":
        y = torch.randint(3, (3, 32, 32))
    forward, unrolled = hypergradient(maxl, x, y, "forward"), hypergradient(maxl, x, y, "unrolled")
    assert unrolled.norm() > 0
    # BatchNorm over three values a channel, as here in the last layers, multiplies rounding errors by up to 1e6.
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()


def meta_loss_after_a_real_step(maxl, x, y):
    """The meta loss by plain PyTorch: a copy of the network, backward() and SGD."""
    maxl = copy.deepcopy(maxl)
    torch.manual_seed(1)
    maxl.loss(x, y, targets=maxl.generator(x, y).detach()).backward()
    torch.optim.SGD(maxl.network.parameters(), lr=maxl.lr).step()
    return maxl.primary_loss(x, y).item()


def test_forward_works_where_the_second_derivative_is_missing():
    # mobilenet_v3's hardsigmoid can't be differentiated twice.
    maxl = MAXL(torchvision_model("mobilenet_v3_small")().double(), PSI, entropy_weight=0.0)
    x, y = torch.randn(3, 3, 32, 32).double(), torch.tensor([0, 1, 2])
    found = hypergradient(maxl, x, y, "forward")
    direction, length = torch.randn_like(found), 1e-7
    start = nn.utils.parameters_to_vector(maxl.generator.parameters()).detach()
    values = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(start + sign * length * direction, maxl.generator.parameters())
        values.append(meta_loss_after_a_real_step(maxl, x, y))
    assert (values[0] - values[1]) / (2 * length) == pytest.approx((found @ direction).item(), rel=1e-4)
    with pytest.raises(RuntimeError, match="hardsigmoid"):
        maxl.hypergradient(x, y, method="unrolled")


@pytest.mark.parametrize("training", [True, False])
def test_float32_lstm_of_the_cpu_is_differentiated(training):
    # Its fused kernel has no forward-mode rule; nor has that of a transformer in evaluation mode, below.
    torch.manual_seed(0)
    maxl = MAXL(Recurrent(), PSI, entropy_weight=0.0).train(training)
    x, y = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    found = hypergradient(maxl, x, y, "forward")
    expected = hypergradient(maxl.double(), x.double(), y, "forward")
    if training:  # dropout draws other masks in other dtypes
        assert found.isfinite().all()
    else:
        assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert torch.backends.mkldnn.enabled


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(48, 3)

    def forward(self, x):
        return self.head(self.encoder(x.flatten(1).unflatten(1, (-1, 48))).mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder_is_differentiated_in_both_modes(training):
    maxl = MAXL(Encoder().double(), PSI, entropy_weight=0.0).train(training)
    x, y = torch.randn(3, 3, 32, 32).double(), torch.tensor([0, 1, 2])
    forward, unrolled = hypergradient(maxl, x, y, "forward"), hypergradient(maxl, x, y, "unrolled")
    assert (forward - unrolled).norm() <= 1e-9 * unrolled.norm()
    learner = maxl.clone()
    learner.adapt(learner.loss(x, y))
    learner.adapt(learner.primary_loss(x, y))
    learner.meta_loss(x, y).backward()
    assert torch.backends.mha.get_fastpath_enabled()


class Checkpointed(nn.Module):
    """Recomputes its body in the backward pass instead of keeping it."""

    def __init__(self, recompute):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(48, 16), nn.BatchNorm1d(16), nn.Tanh())
        self.head = nn.Linear(16, 3)
        self.recompute = recompute

    def forward(self, x):
        x = x.flatten(1)[:, :48]
        features = checkpoint(self.body, x, use_reentrant=False) if self.recompute else self.body(x)
        return self.head(features)


@pytest.mark.filterwarnings("ignore:.*autocast:FutureWarning")  # torch 2.4 warns of its own use
def test_activation_checkpointing_changes_neither_gradient_nor_statistics():
    torch.manual_seed(0)
    maxl = MAXL(Checkpointed(recompute=True).double(), PSI, lr=0.5)
    x, y = torch.randn(6, 3, 32, 32).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    before = copy.deepcopy(maxl.state_dict())
    found = hypergradient(maxl, x, y, "forward")
    torch.testing.assert_close(maxl.state_dict(), before, rtol=0, atol=0)
    maxl.module.recompute = maxl.generator.body.recompute = False
    torch.testing.assert_close(found, hypergradient(maxl, x, y, "unrolled"), rtol=1e-9, atol=1e-14)
    maxl.module.recompute = maxl.generator.body.recompute = True
    optimizer = torch.optim.SGD(maxl.network.parameters(), lr=0.5)
    maxl.step(x, y, optimizer, torch.optim.SGD(maxl.generator.parameters(), lr=0.5))
    maxl.network_step(x, y, optimizer)
    assert int(maxl.module.body[1].num_batches_tracked) == 2
    assert int(maxl.generator.body.body[1].num_batches_tracked) == 1


@pytest.mark.filterwarnings("ignore:.*autocast:FutureWarning")
def test_double_backward_through_checkpointed_activations_is_refused_before_anything_moves():
    maxl = MAXL(Checkpointed(recompute=True).double(), PSI)
    x, y = torch.randn(6, 3, 32, 32).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    before = copy.deepcopy(maxl.state_dict())
    with pytest.raises(RuntimeError, match="`method` 'unrolled' can't be used with activation checkpointing"):
        maxl.hypergradient(x, y, method="unrolled")
    torch.testing.assert_close(maxl.state_dict(), before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in maxl.modules())
