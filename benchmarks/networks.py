"""The networks that are measured, all for images of 32x32."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torchvision.models import VisionTransformer

from examples.cifar100.networks import VGG16, SmallImageResNet, vgg_features


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
        return SmallImageResNet(num_classes)
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
    """The paper's VGG as a single sequence, with the weights that torch draws; the last layer is its head.

    Args:
        blocks: How many convolutions each of the five blocks has.
        width: Factor on the number of channels.
        num_classes: Outputs.
    """
    layers, channels = vgg_features(blocks, width)
    return nn.Sequential(
        *layers, nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, num_classes)
    )


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
