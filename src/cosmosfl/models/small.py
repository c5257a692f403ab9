"""Small models for CPUs, for images of any size from 4×4 up or for flat features."""

from __future__ import annotations

import math

from torch import nn

from cosmosfl.models.blocks import image_shape


def mlp(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two hidden layers of 256 units; images are flattened."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, n_classes),
    )


def cnn_s(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Two 3×3 convolutions (32, 64 channels) with batch normalisation, one hidden layer of 128 units."""
    return _cnn(input_shape, n_classes, widths=(32, 64), hidden=128)


def cnn_m(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Three stages of 3×3 convolutions (64, 128, 256 channels), one hidden layer of 256 units."""
    return _cnn(input_shape, n_classes, widths=(64, 128, 256), hidden=256)


def _cnn(input_shape: tuple[int, ...], n_classes: int, widths: tuple[int, ...], hidden: int) -> nn.Module:
    channels, height, width = image_shape(input_shape)
    layers: list[nn.Module] = []
    for out in widths:
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
        if min(height, width) >= 4:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    grid = (min(height, 4), min(width, 4))
    if grid != (height, width):
        layers.append(nn.AdaptiveAvgPool2d(grid))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * grid[0] * grid[1], hidden),
        nn.ReLU(),
        nn.Linear(hidden, n_classes),
    )
