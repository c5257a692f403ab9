"""ResNet-18 (He et al. 2016, arXiv 1512.03385)."""

from __future__ import annotations

from torch import Tensor, nn

from cosmosfl.models.blocks import conv_bn, pool_and_classify, prepared, stem


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions whose result is added to their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(inputs, outputs, 3, stride=stride), nn.ReLU(), *conv_bn(outputs, outputs, 3)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, 1, stride=stride))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        result: Tensor = self.activation(self.residual(x) + self.shortcut(x))
        return result


def resnet18(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """ResNet-18 with a 3×3 stem for small images.

    11.17 million parameters and the classifier's 513 a class. At 32 pixels nothing is halved before the second stage,
    at 64 the stem does; the last stage works on a grid of 4×4.
    """
    layers = stem(input_shape, 64)
    width = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        stride = 1 if stage == 0 else 2
        layers += [ResidualBlock(width, outputs, stride), ResidualBlock(outputs, outputs, 1)]
        width = outputs
    return prepared(nn.Sequential(*layers, *pool_and_classify(width, n_classes)))
