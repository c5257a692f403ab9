"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from cosmosfl.models.blocks import conv_bn, image_shape, pool_and_classify, prepared, stem_halvings

_STAGES = (  # expansion, channels, blocks, stride: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise 3×3 convolution, linear 1×1 projection; added to an input of the same shape."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.layers = nn.Sequential(
            *([*conv_bn(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []),
            *conv_bn(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, height, width) to (n, outputs, height / stride, width / stride)."""
        result: Tensor = self.layers(x)
        return x + result if self.adds else result


def mobilenetv2(input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """MobileNetV2 with a stem for small images.

    2.22 million parameters and the classifier's 1,281 a class. At 32 pixels the first two halvings of the original
    are left out, at 64 the second; the last stage works on a grid of 4×4.
    """
    channels, _, _ = image_shape(input_shape)
    halvings = stem_halvings(input_shape)
    width = 32
    layers = [*conv_bn(channels, width, 3, stride=2 if halvings >= 1 else 1), nn.ReLU6()]
    for expansion, outputs, blocks, stride in _STAGES:
        for block in range(blocks):
            too_small = outputs == 24 and halvings < 2  # the original's second halving
            first_stride = 1 if too_small else stride
            layers.append(InvertedResidual(width, outputs, expansion, first_stride if block == 0 else 1))
            width = outputs
    layers += [*conv_bn(width, 1280, 1), nn.ReLU6()]
    *pool, classifier = pool_and_classify(1280, n_classes)
    return prepared(nn.Sequential(*layers, *pool, nn.Dropout(0.2), classifier))
