"""Images of any kind brought to one form: uint8 of shape (n, channels, height, width).

Grey images have one channel. Colour images have three: a palette is looked up, transparency is dropped, and
grey images among colour ones are repeated in all three. What would lose information (16-bit and floating-point
image files) or change shapes (several sizes in one set) is an error that names the file.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

ByteArray = npt.NDArray[np.uint8]

_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


def optional(module: str) -> Any:
    """Import a library of the extra ``cosmosfl[data]``.

    Raises
    ------
    ImportError
        If it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module.split('.')[0]} is not installed; pip install 'cosmosfl[data]'") from error


def has_colour(image: Any, name: str) -> bool:
    """Say whether a PIL image is a colour image, from its mode alone: nothing is decoded.

    Raises
    ------
    ValueError
        If its mode is not one of the known ones; the message starts with `name`.
    """
    if image.mode not in _GREY_MODES | _COLOUR_MODES:
        raise ValueError(f"{name}: an image of mode {image.mode!r}; expected 8-bit grey or colour")
    return image.mode in _COLOUR_MODES


def open_image(encoded: bytes, name: str) -> Any:
    """Open an image file (PNG, JPEG, WebP, ...) given as bytes; PIL reads no more than its head.

    Raises
    ------
    ValueError
        If it is not an image; the message starts with `name`.
    """
    try:
        return optional("PIL.Image").open(io.BytesIO(encoded))
    except ImportError:
        raise
    except Exception as error:  # what PIL raises on a broken file depends on the format
        raise _undecodable(name, error) from error


def pixels(image: Any, n_channels: int, name: str) -> ByteArray:
    """Return the pixels of a PIL image as uint8 of shape (n_channels, height, width).

    Raises
    ------
    ValueError
        If it cannot be decoded, or its mode is not an 8-bit one; the message starts with `name`.
    """
    has_colour(image, name)
    try:
        if image.format == "JPEG":  # cameras store the picture as the sensor saw it, and how it was held
            image = optional("PIL.ImageOps").exif_transpose(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the way that PIL does not warn about
        array: ByteArray = np.asarray(image.convert("L" if n_channels == 1 else "RGB"))
    except Exception as error:
        raise _undecodable(name, error) from error
    return array[None] if n_channels == 1 else array.transpose(2, 0, 1)


def _undecodable(name: str, error: Exception) -> ValueError:
    reason = "not a known image format" if type(error).__name__ == "UnidentifiedImageError" else error
    return ValueError(f"{name}: cannot be decoded as an image ({reason})")


def stack(images: Sequence[ByteArray], names: Sequence[str], shape: tuple[int, ...]) -> ByteArray:
    """Stack images of the same `shape` (channels, height, width).

    Raises
    ------
    ValueError
        If one has another size; the message names it.
    """
    for image, name in zip(images, names, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"{name}: {_size(image.shape)} pixels; expected {_size(shape)} as the first image "
                "has, since all images of a data set have one size"
            )
    return np.stack(images)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}×{shape[1]}"


def as_images(inputs: Any, name: str) -> ByteArray:
    """Bring images in memory to uint8 of shape (n, channels, height, width).

    Parameters
    ----------
    inputs
        An array (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width), or a sequence of
        PIL images. If both readings of four axes are possible, the channels come first. Values are whole
        numbers in 0..255, or floating-point numbers in [0, 1], which are multiplied by 255 and rounded.
    name
        How errors call it.

    Raises
    ------
    ValueError
        If shape or values are others.
    """
    if len(inputs) and hasattr(inputs[0], "convert"):
        return _from_pil(inputs, name)
    array = _to_bytes(np.asarray(inputs), name)
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    raise ValueError(
        f"{name}: shape {array.shape}; expected (n, height, width), (n, height, width, 1 or 3) or "
        "(n, 1 or 3, height, width)"
    )


def _from_pil(images: Sequence[Any], name: str) -> ByteArray:
    names = [f"{name}[{i}]" for i in range(len(images))]
    n_channels = 3 if any(has_colour(image, label) for image, label in zip(images, names, strict=True)) else 1
    decoded = [pixels(image, n_channels, label) for image, label in zip(images, names, strict=True)]
    return stack(decoded, names, decoded[0].shape)


def _to_bytes(array: npt.NDArray[Any], name: str) -> ByteArray:
    if array.dtype == np.uint8 or array.size == 0:
        return array.astype(np.uint8, copy=False)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: dtype {array.dtype}; expected numbers, or PIL images of one size")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # NaN fails too
        raise ValueError(f"{name}: values from {low} to {high}; expected 0..255, or floating point in [0, 1]")
    if array.dtype.kind == "f":
        if high <= 1:
            array = np.rint(array * 255)
        elif not np.array_equal(array, np.rint(array)):
            raise ValueError(
                f"{name}: fractions up to {high}; expected whole numbers in 0..255, or floating point in [0, 1]"
            )
    return array.astype(np.uint8)
