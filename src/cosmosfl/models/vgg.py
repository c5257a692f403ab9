"""VGG-16 (Simonyan & Zisserman 2015, arXiv 1409.1556)."""

from __future__ import annotations

from torch import nn

from cosmosfl.models.blocks import conv_bn, image_shape, prepared


def vgg16(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """VGG-16 with batch normalisation and a head for small images.

    14.7 million parameters in the convolutions. The head has two hidden layers of 512 units on the averages of 512
    channels, 0.53 million parameters; the original's 4,096 units on a grid of 7×7 have 120 million.
    """
    width, _, _ = image_shape(input_shape)
    layers: list[nn.Module] = []
    for outputs, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += [*conv_bn(width, outputs, 3), nn.ReLU()]
            width = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # rounded up, 28 pixels last for five halvings
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for _ in range(2):
        layers += [nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.5)]
        width = 512
    return prepared(nn.Sequential(*layers, nn.Linear(width, n_classes)))
