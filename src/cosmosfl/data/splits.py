"""A training and a test split that are not decoded yet: labels at once, inputs in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cosmosfl.data.images import ByteArray, has_colour, open_image, pixels, stack
from cosmosfl.data.sets import InputArray, IntArray

BATCH = 256
"""Images in a block: enough to be fast, few enough to be small in memory."""

EncodedImage = tuple[str, bytes]


class Labels(NamedTuple):
    """Labels (n,) as they are written, whole numbers or words; errors about them start with `name`."""

    name: str
    values: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Split:
    """Labels (n,), the shape of an input, and what decodes the inputs in blocks of this type.

    The shape is (channels, height, width) of an image, or (features,) of a row.
    """

    labels: Labels
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[InputArray]]
    dtype: npt.DTypeLike = np.uint8


@dataclass(frozen=True, eq=False)
class Contents:
    """A training and a test split, the class names if the files hold them, and the names of features of tables."""

    train: Split
    test: Split
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None = None


class Encoded(Protocol):
    """Image files with labels: a parquet shard, a `datasets.Dataset`, a list of paths."""

    def labels(self) -> Labels:
        """Return all labels (n,)."""

    def images(self) -> Iterator[list[EncodedImage]]:
        """Yield batches of images: what to call each in errors, and its file as bytes."""


def decode(train: Sequence[Encoded], test: Sequence[Encoded], n_channels: int | None) -> tuple[Split, Split]:
    """Prepare two splits of image files, each in one or more parts, to be decoded.

    Parameters
    ----------
    n_channels
        1 or 3. None: 3 if any image is in colour; the heads of the image files are read up to the first such.
    """
    labels = _join(train), _join(test)
    if n_channels is None:
        colour = any(has_colour(open_image(encoded, name), name) for name, encoded in _images([*train, *test]))
        n_channels = 3 if colour else 1
    name, encoded = next(_images(train))
    shape = pixels(open_image(encoded, name), n_channels, name).shape
    train_split, test_split = (
        Split(of, shape, _decoder(parts, shape)) for of, parts in zip(labels, (train, test), strict=True)
    )
    return train_split, test_split


def _join(parts: Sequence[Encoded]) -> Labels:
    labels = [part.labels() for part in parts]
    for name, values in labels:
        _check(name, values)
        if (values.dtype.kind == "U") != (labels[0].values.dtype.kind == "U"):
            raise ValueError(
                f"{name}: labels of type {values.dtype}; expected {labels[0].values.dtype} as in {labels[0].name}"
            )
    return Labels(labels[0].name, np.concatenate([values for _, values in labels]))


def _images(parts: Sequence[Encoded]) -> Iterator[EncodedImage]:
    for part in parts:
        for batch in part.images():
            yield from batch


def _decoder(parts: Sequence[Encoded], shape: tuple[int, ...]) -> Callable[[], Iterator[ByteArray]]:
    def blocks() -> Iterator[ByteArray]:
        for part in parts:
            for batch in part.images():
                names = [name for name, _ in batch]
                images = [pixels(open_image(encoded, name), shape[0], name) for name, encoded in batch]
                yield stack(images, names, shape)

    return blocks


def arrow_labels(column: Any, name: str) -> Labels:
    """Return a column of pyarrow as labels."""
    if column.null_count:
        raise ValueError(f"{name}: {column.null_count:,} rows without a label; expected one in every row")
    return Labels(name, np.asarray(column.to_pylist()))


def arrow_images(column: Any, names: Sequence[str], *, follow_paths: bool) -> list[EncodedImage]:
    """Return an array of pyarrow as encoded images.

    An image is bytes, or a struct of `bytes` and `path` as in the feature `Image` of `datasets`. Where there
    are no bytes, the path is read only if `follow_paths`: a file from a stranger must not name files of this
    machine.
    """
    images = []
    for name, value in zip(names, column.to_pylist(), strict=True):
        path = value.get("path") if isinstance(value, Mapping) else None
        encoded = value.get("bytes") if isinstance(value, Mapping) else value
        label = f"{name} ({path})" if path else name
        if encoded is None and path and follow_paths:
            encoded = Path(path).read_bytes()
        if type(encoded) is not bytes:
            raise ValueError(
                f"{label}: {type(encoded).__name__} instead of an image; expected the bytes of an image file"
            )
        images.append((label, encoded))
    return images


def index_labels(
    train: Labels, test: Labels, class_names: Sequence[str] | None
) -> tuple[IntArray, IntArray, tuple[str, ...]]:
    """Turn labels as they are written into indices 0..C-1, and name the classes.

    Whole numbers stay as they are. Words get the index that they have in `class_names`; without it the words of
    the training split are sorted, by value if all are whole numbers, else by alphabet.

    Raises
    ------
    ValueError
        If a label is none of these, or none of the class names.
    """
    for labels in (train, test):
        _check(*labels)
    words = train.values.dtype.kind == "U"
    if (test.values.dtype.kind == "U") != words:
        raise ValueError(
            f"{test.name}: labels of type {test.values.dtype}; expected {train.values.dtype} as in {train.name}"
        )
    if class_names is not None:
        names = tuple(class_names)
    elif words:
        names = sort_names(set(train.values.tolist()))
    else:
        names = tuple(str(c) for c in range(int(max(train.values.max(), test.values.max())) + 1))
    if words:
        return _find_words(train, names), _find_words(test, names), names
    for name, values in (train, test):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= len(names):
            raise ValueError(f"{name}: label {low if low < 0 else high}; expected 0..{len(names) - 1}")
    return train.values.astype(np.int64), test.values.astype(np.int64), names


def _check(name: str, values: npt.NDArray[Any]) -> None:
    if len(values) == 0:
        raise ValueError(f"{name}: no samples; expected at least 1")
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise ValueError(
            f"{name}: labels of type {values.dtype} and shape {values.shape}; expected one whole "
            "number or word for each sample"
        )


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Sort class names: by value if all are whole numbers, so that "10" follows "9", else by alphabet."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _find_words(labels: Labels, names: tuple[str, ...]) -> IntArray:
    index = {name: i for i, name in enumerate(names)}
    for word in np.unique(labels.values).tolist():
        if word not in index:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(f"{labels.name}: label {word!r} is not among the {len(names)} classes ({some})")
    return np.array([index[word] for word in labels.values.tolist()], np.int64)
