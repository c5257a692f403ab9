"""DenseNet-121 (Huang et al. 2017, arXiv 1608.06993)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosmosfl.models.blocks import pool_and_classify, prepared, stem

_GROWTH = 32


class DenseLayer(nn.Module):
    """A 1×1 and a 3×3 convolution, each after batch normalisation; their result is appended to the input."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        bottleneck = 4 * _GROWTH
        self.layers = nn.Sequential(
            *_bn_relu_conv(inputs, bottleneck, 1),
            *_bn_relu_conv(bottleneck, _GROWTH, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, inputs + 32, height, width)."""
        return torch.cat([x, self.layers(x)], dim=1)


def densenet121(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """DenseNet-121 with a 3×3 stem for small images; slow on CPUs.

    6.95 million parameters and the classifier's 1,025 a class. At 32 pixels nothing is halved before the first
    transition, at 64 the stem does; the last block works on a grid of 4×4. A training step takes more than
    twice as long as that of ResNet-18, the next slowest here.
    """
    layers = stem(input_shape, 64)
    width = 64
    for block, depth in enumerate((6, 12, 24, 16)):
        if block > 0:
            layers += [*_bn_relu_conv(width, width // 2, 1), nn.AvgPool2d(2, ceil_mode=True)]
            width //= 2
        for _ in range(depth):
            layers.append(DenseLayer(width))
            width += _GROWTH
    layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return prepared(nn.Sequential(*layers, *pool_and_classify(width, n_classes)))


def _bn_relu_conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(), convolution]
