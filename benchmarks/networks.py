"""The networks that are measured, all for images of 32x32."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torchvision.models import VisionTransformer, resnet18

VGG16 = (2, 2, 3, 3, 3)
CHANNELS = (64, 128, 256, 512, 512)


def network(name: str, num_classes: int) -> nn.Module:
    """Builds a classifier by its name.

    Args:
        name: ``vgg16-<width>``; ``vgg-<n>x5-<width>``, the same with n convolutions in each of its five blocks;
            ``resnet18``; ``vit``.
        num_classes: Its outputs.

    Raises:
        ValueError: There is no such network.
    """
    if name == "resnet18":
        return small_image_resnet18(num_classes)
    if name == "vit":
        return small_vit(num_classes)
    found = re.fullmatch(r"vgg(?:16|-(\d+)x5)-(\d*\.?\d+)", name)
    if not found:
        raise ValueError(
            f"`name` must be vgg16-<width>, vgg-<n>x5-<width>, resnet18 or vit, found {name!r}. The paper's is vgg16-1."
        )
    blocks = [int(found[1])] * 5 if found[1] else VGG16
    return vgg(blocks, float(found[2]), num_classes)


def vgg(blocks: Sequence[int], width: float, num_classes: int) -> nn.Module:
    """The paper's VGG: convolution, BatchNorm, ReLU; max-pooling after each block; two linear layers.

    Args:
        blocks: How many convolutions each of the five blocks has.
        width: Factor on the number of channels.
        num_classes: Outputs.
    """
    layers: list[nn.Module] = []
    before = 3
    for number, channels in zip(blocks, (max(1, round(width * channels)) for channels in CHANNELS)):
        for _ in range(number):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(before, before), nn.ReLU(inplace=True), nn.Linear(before, num_classes)
    )


def small_image_resnet18(num_classes: int) -> nn.Module:
    """torchvision's ResNet-18 with the usual stem for small images: a 3x3 convolution of stride 1, no pooling."""
    model: nn.Module = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def small_vit(num_classes: int) -> nn.Module:
    """torchvision's VisionTransformer, 6 layers of width 192 on patches of 4x4; no dropout."""
    model: nn.Module = VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=num_classes,
    )
    model.heads = nn.Linear(192, num_classes)  # torchvision's begins at zero: next to no hypergradient to compare
    return model
