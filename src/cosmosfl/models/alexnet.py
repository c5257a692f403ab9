"""AlexNet (Krizhevsky 2014, arXiv 1404.5997: the version on one GPU)."""

from __future__ import annotations

from torch import nn

from cosmosfl.models.blocks import halve, image_shape, prepared, stem_halvings


def alexnet(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """AlexNet with kernels and a head for small images; no batch normalisation.

    2.45 million parameters in the convolutions, of which the first is 5×5 in place of 11×11 with stride 4. The head
    has two hidden layers of 512 units on a grid of 4×4, 2.36 million parameters; the original's 4,096 units on a grid
    of 6×6 have 54.5 million.
    """
    channels, _, _ = image_shape(input_shape)
    halvings = stem_halvings(input_shape)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 5, stride=2**halvings, padding=2),
        nn.ReLU(),
        halve(),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        halve(),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        halve(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(256 * 4 * 4, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, n_classes),
    ]
    return prepared(nn.Sequential(*layers))
