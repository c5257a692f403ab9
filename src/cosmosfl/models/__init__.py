"""Torch architectures by name; each is a factory ``f(input_shape, n_classes) -> nn.Module``."""

from __future__ import annotations

from cosmosfl.models.alexnet import alexnet
from cosmosfl.models.densenet import densenet121
from cosmosfl.models.mobilenet import mobilenetv2
from cosmosfl.models.outside import Factory, outside_factory, resized
from cosmosfl.models.resnet import resnet18
from cosmosfl.models.small import cnn_m, cnn_s, mlp
from cosmosfl.models.squeezenet import squeezenet
from cosmosfl.models.vgg import vgg16
from cosmosfl.naming import unknown

__all__ = ["MODELS", "Factory", "find_model"]

MODELS: dict[str, Factory] = {
    "mlp": mlp,
    "cnn-s": cnn_s,
    "cnn-m": cnn_m,
    "alexnet": alexnet,
    "resnet18": resnet18,
    "mobilenetv2": mobilenetv2,
    "squeezenet": squeezenet,
    "vgg16": vgg16,
    "densenet121": densenet121,
}
"""Built-in architectures: name -> factory; the first line of a factory's docstring describes it."""


def find_model(name: str) -> Factory:
    """Return the factory that a name stands for.

    Parameters
    ----------
    name
        One of:

        - a key of `MODELS`: built in;
        - ``module:factory``, as in ``mypackage.nets:tiny``: a function or class that can be imported, without
          required parameters or with two, ``(input_shape, n_classes)``, and returns a torch module. This runs
          that module's code: take such names from the user, never from a file of someone else;
        - ``torchvision:NAME`` or ``timm:NAME``: a model of that library, without pre-trained weights.

        With ``@SIZE`` at its end, as in ``torchvision:mobilenet_v2@224``, the module sees its images resized to
        that many pixels a side.

    Returns
    -------
    Factory
        ``f(input_shape, n_classes) -> nn.Module``. It can be pickled.

    Raises
    ------
    ValueError
        If there is no such model; the message names the nearest.
    ImportError
        If the library is not installed.
    """
    base, at, size = name.partition("@")
    if at and not (size.isdecimal() and int(size) > 0):
        raise ValueError(f"model: {name!r}: size {size!r}; expected a number of pixels, as in 'resnet18@64'")
    if base in MODELS:
        factory = MODELS[base]
    elif ":" in base:
        factory = outside_factory(base)
    else:
        raise ValueError(unknown("model", base, MODELS))
    return resized(factory, int(size)) if at else factory
