"""Models of several kinds, for the tests of what is put around them."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import VisionTransformer

C, K = 4, 6


PSI = [1, 2, 1, 2]


def torchvision_model(name):
    return getattr(torchvision.models, name)(weights=None, num_classes=C)


def vit():
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=C
    )


class Segmenter(nn.Module):
    """Halves the resolution, classifies each position, and resizes the logits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, C, 1)

    def forward(self, x):
        logits = self.head(self.body(x).relu())
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)


class Wrapped(nn.Module):
    """A linear head whose use in the forward pass a test chooses."""

    def __init__(self, forward=lambda head, x: head(x)):
        super().__init__()
        self.head = nn.Linear(8, C)
        self.route = forward

    def forward(self, x):
        return self.route(self.head, x)


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, C))


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


class TwoParts(nn.Module):
    """A backbone, and the head that a test gives it."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.classifier = body, head

    def forward(self, x):
        return self.classifier(self.body(x))


def mlp_head(width=6, inplace=False):
    return nn.Sequential(nn.Linear(width, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=inplace), nn.Linear(5, C))
