"""The networks: the paper's VGG-16 with BatchNorm, and torchvision's ResNet-18 with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

VGG16 = (2, 2, 3, 3, 3)
CHANNELS = (64, 128, 256, 512, 512)


def vgg_features(blocks: Sequence[int], width: float) -> tuple[list[nn.Module], int]:
    """The layers of a VGG for images of 32x32 up to its features, and how many those are.

    Args:
        blocks: How many times convolution, BatchNorm and ReLU come before each of the five poolings.
        width: Factor on the number of channels.
    """
    layers: list[nn.Module] = []
    before = 3
    for number, channels in zip(blocks, (max(1, round(width * channels)) for channels in CHANNELS)):
        for _ in range(number):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return [*layers, nn.Flatten()], before


class VGG(nn.Module):
    """VGG-16 as in the released code of Liu et al. (2019): BatchNorm, two linear layers as head, Xavier's weights.

    Args:
        num_classes: Outputs.
        width: Factor on the number of channels.
    """

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        layers, channels = vgg_features(VGG16, width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, num_classes)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draws all weights; the label generator, a copy of this model, draws its own by it."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


class SmallImageResNet(ResNet):  # type: ignore[misc]
    """torchvision's ResNet-18 with the usual stem for small images: a 3x3 convolution of stride 1, no pooling.

    At any width, and in the label generator, its weights are those that torch's layers draw by themselves.

    Args:
        num_classes: Outputs.
        width: Factor on the number of channels.
    """

    def __init__(self, num_classes: int, width: float = 1.0) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes)
        first, *_ = channels = [max(1, round(width * 64 * 2**number)) for number in range(4)]
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.maxpool = nn.Identity()
        self.bn1, self.inplanes = nn.BatchNorm2d(first), first
        for number, planes in enumerate(channels, start=1):
            setattr(self, f"layer{number}", self._make_layer(BasicBlock, planes, 2, stride=1 if number == 1 else 2))
        self.fc = nn.Linear(channels[-1], num_classes)


def network(name: str, num_classes: int, width: float) -> nn.Module:
    """Builds ``vgg16`` or ``resnet18``."""
    kinds: dict[str, type[nn.Module]] = {"vgg16": VGG, "resnet18": SmallImageResNet}
    return kinds[name](num_classes, width)


HEADS = {"vgg16": "classifier", "resnet18": "fc"}
"""The name of each network's head, of which each task has one."""
