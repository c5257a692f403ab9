"""Built-in torch architectures by name; each is a factory ``f(input_shape, n_classes) -> nn.Module``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cosmosfl.models.small import cnn_m, cnn_s, mlp
from cosmosfl.naming import unknown

Factory = Callable[[tuple[int, ...], int], nn.Module]

MODELS: dict[str, Factory] = {"mlp": mlp, "cnn-s": cnn_s, "cnn-m": cnn_m}
"""Name -> factory; the first line of a factory's docstring describes it."""


def find_model(name: str) -> Factory:
    """Return the factory called `name`.

    Raises
    ------
    ValueError
        If there is none; the message names the nearest.
    """
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    return MODELS[name]
