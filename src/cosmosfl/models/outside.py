"""Models from elsewhere: importable factories, torchvision, timm; none is imported before it is asked for."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from types import ModuleType

from torch import Tensor, nn

from cosmosfl.models.blocks import image_shape
from cosmosfl.naming import unknown

Factory = Callable[[tuple[int, ...], int], nn.Module]


class Resized(nn.Module):
    """A module that sees its images at another size.

    Parameters
    ----------
    module
        Maps images (n, channels, size, size) to logits.
    size
        Side of the square that images are resized to, in pixels: bilinear, with antialiasing when they shrink.
    """

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module = module
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, channels, height, width) to the module's logits."""
        shrinks = max(x.shape[-2:]) > self.size
        square = nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=shrinks)
        result: Tensor = self.module(square)
        return result


class GreyAsColour(nn.Module):
    """A module for three channels that takes images of one channel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 1, height, width) to the module's logits."""
        result: Tensor = self.module(x.expand(-1, 3, -1, -1))
        return result


def resized(factory: Factory, size: int) -> Factory:
    """Return a factory like this one, for modules that see their images at `size` × `size` pixels."""
    return partial(_make_resized, factory, size)


def outside_factory(name: str) -> Factory:
    """Return the factory for ``torchvision:NAME``, ``timm:NAME`` or ``module:factory``.

    Raises
    ------
    ImportError
        If torchvision or timm is not installed.
    ValueError
        If there is no such model or factory.
    """
    where, _, what = name.partition(":")
    if where == "torchvision":
        return _torchvision_factory(what)
    if where == "timm":
        return _timm_factory(what)
    return _imported_factory(name, where, what)


def _make_resized(factory: Factory, size: int, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    channels, _, _ = image_shape(input_shape)
    return Resized(factory((channels, size, size), n_classes), size)


def _torchvision_factory(model: str) -> Factory:
    models = _library("torchvision", "torchvision.models")
    known = models.list_models(module=models)  # those that classify images
    if model not in known:
        raise ValueError(unknown("model of torchvision", model, known))
    return partial(_make_torchvision, model)


def _make_torchvision(model: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    channels, _, _ = image_shape(input_shape)
    if channels not in (1, 3):
        raise ValueError(f"images of {channels} channels; models of torchvision take 3, or 1 that is repeated")
    module: nn.Module = _library("torchvision", "torchvision.models").get_model(model, num_classes=n_classes)
    return GreyAsColour(module) if channels == 1 else module


def _timm_factory(model: str) -> Factory:
    timm = _library("timm", "timm")
    if not timm.is_model(model):
        raise ValueError(f"model of timm: {model!r} is not known; timm.list_models() lists all")
    return partial(_make_timm, model)


def _make_timm(model: str, input_shape: tuple[int, ...], n_classes: int) -> nn.Module:
    channels, _, _ = image_shape(input_shape)
    module: nn.Module = _library("timm", "timm").create_model(model, num_classes=n_classes, in_chans=channels)
    return module


def _library(package: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _is_within(module, error.name):
            raise
        raise ImportError(
            f"models named '{package}:...' need {package}, which is not installed; pip install {package}"
        ) from error


def _imported_factory(name: str, module: str, attribute: str) -> Factory:
    if not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        raise ValueError(f"model: {name!r}; expected 'module:factory', as in 'mypackage.nets:tiny'")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _is_within(module, error.name):
            raise  # the module exists; something that it needs does not
        raise ValueError(
            f"model: {name!r}: there is no module {error.name!r}; is it installed, or on PYTHONPATH?"
        ) from error
    try:
        factory = attrgetter(attribute)(imported)
    except AttributeError as error:
        raise ValueError(f"model: {name!r}: module {module!r} has no {attribute!r}") from error
    if isinstance(factory, nn.Module) or not callable(factory):
        # a ValueError, as for every wrong name; a module that exists already would be shared by all clients
        raise ValueError(  # noqa: TRY004
            f"model: {name!r} is an object of type {type(factory).__name__}; expected a factory: a function or "
            "class that makes a new torch module"
        )
    return partial(_make_imported, name, factory, _takes_shape(name, factory))


def _is_within(module: str, missing: str | None) -> bool:
    return missing is not None and f"{module}.".startswith(f"{missing}.")


def _takes_shape(name: str, factory: Callable[..., object]) -> bool:
    signature = inspect.signature(factory)
    for arguments in ((), ((), 0)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise ValueError(
        f"model: {name!r} takes {signature}; expected a factory without required parameters, or with two: "
        "(input_shape, n_classes)"
    )


def _make_imported(
    name: str, factory: Callable[..., object], takes_shape: bool, input_shape: tuple[int, ...], n_classes: int
) -> nn.Module:
    module = factory(input_shape, n_classes) if takes_shape else factory()
    if not isinstance(module, nn.Module):
        raise TypeError(f"model: {name!r} made a {type(module).__name__}; expected a torch module")
    return module
