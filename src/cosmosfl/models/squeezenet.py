"""SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosmosfl.models.blocks import halve, image_shape, prepared, stem_halvings


class Fire(nn.Module):
    """1×1 squeeze to few channels, 1×1 and 3×3 expansions side by side; added to an input of the same shape."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeeze, 1), nn.ReLU())
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.activation = nn.ReLU()
        self.bypass = inputs == 2 * expand

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, 2 · expand, height, width)."""
        squeezed = self.squeeze(x)
        result: Tensor = self.activation(torch.cat([self.expand1(squeezed), self.expand3(squeezed)], dim=1))
        return x + result if self.bypass else result


def squeezenet(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """SqueezeNet 1.1 with simple bypass and a stem for small images; no batch normalisation.

    0.72 million parameters and the classifier's 513 a class. Three things make it learn from scratch with Adam at
    1e-3, where PyTorch's initial weights leave it at chance: Kaiming weights in every layer, the classifier's too
    (smaller ones there stall it); the paper's simple bypass (section 6), which halves the epochs that it needs and
    adds no parameters; and no ReLU after the classifier, so that no class can die.
    """
    channels, _, _ = image_shape(input_shape)
    halvings = stem_halvings(input_shape)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 3, stride=2 if halvings >= 1 else 1, padding=1),
        nn.ReLU(),
        *([halve()] if halvings >= 2 else []),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        halve(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        halve(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
        nn.Dropout(0.5),
        nn.Conv2d(512, n_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    return prepared(nn.Sequential(*layers))
