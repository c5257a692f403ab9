"""Data sets in a directory, in the layouts in which they are passed around.

============= =============================================================================================
layout        files
============= =============================================================================================
parquet       ``train-*.parquet`` and ``test-*.parquet`` as on the Hugging Face hub, also in ``data/`` or in
              ``train/`` and ``test/``: a column of encoded images and a column of labels
IDX           ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-...`` or ``test-...``, also
              ``.gz``
image folders ``train/<class>/*.png`` and ``test/<class>/*.png`` (or jpg, webp, ...); also the directory
              ``tiny-imagenet-200`` as Stanford publishes it
tables        ``train.csv`` and ``test.csv``, also ``.csv.gz``, in UTF-8 with a header: the column ``label``
              holds words or whole numbers, all others are features and hold numbers, which are taken as
              they are (in single precision)
============= =============================================================================================

If there is no ``test`` split, ``valid`` (``val``, ``validation``) takes its place. Finding a layout lists files
and opens none.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np

from cosmosfl.data.images import ByteArray, optional
from cosmosfl.data.splits import (
    BATCH,
    Contents,
    EncodedImage,
    Labels,
    Split,
    arrow_images,
    arrow_labels,
    decode,
)
from cosmosfl.data.tables import SUFFIXES, TableLayout

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
}
_IDX_NAME = re.compile(r"(?P<stem>.*?)[-_.]?(?P<kind>images|labels)[-_.]idx\d[-_.]ubyte(\.gz)?")
_IDX_BYTES = b"\0\0\x08"  # two zeros and the code of unsigned bytes; the number of dimensions follows
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"})


@dataclass(frozen=True)
class Expected:
    """What is known of a data set beforehand; the defaults are for a data set of somebody's own.

    Attributes
    ----------
    image_columns, label_columns
        Columns of parquet shards; the first that exists is taken.
    n_channels
        1 or 3; None to find out from the images.
    idx_prefix
        How the names of the IDX files start, where a directory holds several sets.
    idx_transposed
        Whether rows and columns of the IDX images are swapped, as in EMNIST.
    """

    image_columns: tuple[str, ...] = ("image", "img")
    label_columns: tuple[str, ...] = ("label",)
    n_channels: int | None = None
    idx_prefix: str = ""
    idx_transposed: bool = False


class Layout(Protocol):
    """A data set that was found in a directory."""

    @property
    def files(self) -> Sequence[Path]:
        """All files that it consists of."""

    def read(self, expected: Expected) -> Contents:
        """Read the labels, and prepare to decode the inputs."""


def find_layout(root: Path, expected: Expected) -> Layout:
    """Find out in which layout a data set lies in the directory `root`.

    Raises
    ------
    ValueError
        If there is none, or a split is missing.
    """
    files = _list(root)
    tables = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    is_table = any(_split_of(path.relative_to(root)) == "train" for path in tables)
    parquet = [path for path in files if path.suffix == ".parquet"]
    if any(_split_of(path.relative_to(root)) for path in parquet) or (parquet and not is_table):
        return _find_parquet(root, parquet)
    prefix = expected.idx_prefix
    idx = [path for path in files if _IDX_NAME.fullmatch(path.name) and path.name.startswith(prefix)]
    if idx:
        return _find_idx(root, idx)
    images = [path for path in files if path.suffix.lower() in _IMAGE_SUFFIXES]
    if any(path.relative_to(root).parts[0].lower() in _SPLITS for path in images) or (images and not is_table):
        return _find_folders(root, images)
    if tables:
        return _find_tables(root, tables)
    raise ValueError(
        f"{root}: no data set among its {len(files):,} files; expected parquet shards "
        f"(train-*.parquet, test-*.parquet), IDX files ({prefix}...train-images-idx3-ubyte, ..., "
        "also .gz), image folders (train/<class>/*.png, test/<class>/*.png) or tables (train.csv, test.csv)"
    )


def _list(root: Path) -> list[Path]:
    """All files below `root`, sorted, without hidden ones; links are followed, but to no directory twice."""
    seen: set[str] = set()
    found: list[Path] = []
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:
            subdirectories.clear()
            continue
        seen.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        found.extend(Path(directory, name) for name in files if not name.startswith("."))
    return sorted(found)


def _split_of(path: Path) -> str | None:
    """Which split a file belongs to: by a word in its name, or else in the directories that it lies in."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _test_split(splits: Collection[str], root: Path, kind: str) -> str:
    """Check that there is a training and a test split, and say what the latter is called."""
    for wanted in (("train",), ("test", "valid")):
        if not any(name in splits for name in wanted):
            there = ", ".join(sorted(splits)) or "none"
            raise ValueError(f"{root}: {kind} without a {' or '.join(wanted)} split (there: {there})")
    return "test" if "test" in splits else "valid"


# ---- parquet -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetLayout:
    """Shards with a column of images, bytes or a struct of ``bytes`` and ``path``, and a column of labels."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All shards."""
        return self.train + self.test

    def read(self, expected: Expected) -> Contents:
        """Read the labels, and prepare to decode the images."""
        train = [_Shard(path, expected) for path in self.train]
        test = [_Shard(path, expected) for path in self.test]
        first = train[0]
        for shard in (*train, *test):
            if shard.class_names != first.class_names:
                raise ValueError(f"{shard.path}: its class names differ from those in {first.path.name}")
        return Contents(*decode(train, test, expected.n_channels or first.n_channels), first.class_names)


def _find_parquet(root: Path, files: Sequence[Path]) -> ParquetLayout:
    splits: dict[str, list[Path]] = {}
    for path in files:
        split = _split_of(path.relative_to(root))
        if split is not None:
            splits.setdefault(split, []).append(path)
    test = _test_split(splits, root, "parquet shards")
    for name in ("train", test):
        directories = sorted({str(path.parent.relative_to(root)) for path in splits[name]})
        if len(directories) > 1:
            raise ValueError(
                f"{root}: {name} shards in several directories ({', '.join(directories)}); "
                "expected one data set, so give the directory of one"
            )
    return ParquetLayout(tuple(splits["train"]), tuple(splits[test]))


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file; what pyarrow says about a broken one becomes an error that names it."""
    broken = optional("pyarrow").ArrowException, OSError
    try:
        with optional("pyarrow.parquet").ParquetFile(path) as file:
            yield file
    except broken as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error


class _Shard:
    """One parquet file. Making it reads the schema only."""

    def __init__(self, path: Path, expected: Expected) -> None:
        self.path = path
        with _parquet(path) as file:
            schema = file.schema_arrow
        self.image = _column(path, schema.names, expected.image_columns, "images")
        self.label = _column(path, schema.names, expected.label_columns, "labels")
        try:
            metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            features = metadata.get("info", {}).get("features", {})
            names = features.get(self.label, {}).get("names")
            mode = features.get(self.image, {}).get("mode")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: its metadata for Hugging Face cannot be read ({error})") from error
        self.class_names = tuple(str(name) for name in names) if names else None
        self.n_channels = None if mode is None else 1 if mode == "L" else 3

    def labels(self) -> Labels:
        with _parquet(self.path) as file:
            return arrow_labels(file.read(columns=[self.label]).column(0), str(self.path))

    def images(self) -> Iterator[list[EncodedImage]]:
        row = 0
        with _parquet(self.path) as file:
            for batch in file.iter_batches(BATCH, columns=[self.image]):
                names = [f"{self.path}, row {row + i}" for i in range(len(batch))]
                yield arrow_images(batch.column(0), names, follow_paths=False)
                row += len(batch)


def _column(path: Path, columns: Sequence[str], wanted: Sequence[str], what: str) -> str:
    for name in wanted:
        if name in columns:
            return name
    names = " or ".join(map(repr, wanted))
    raise ValueError(f"{path}: columns {', '.join(columns)}; expected {names} for the {what}")


# ---- IDX -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdxLayout:
    """The files of MNIST and its kin: for each split the paths of images and labels."""

    train: tuple[Path, Path]
    test: tuple[Path, Path]

    @property
    def files(self) -> tuple[Path, ...]:
        """All four files."""
        return self.train + self.test

    def read(self, expected: Expected) -> Contents:
        """Read the labels, and prepare to read the images."""
        train, test = (_idx_split(*paths, expected.idx_transposed) for paths in (self.train, self.test))
        return Contents(train, test, None)


def _find_idx(root: Path, files: Sequence[Path]) -> IdxLayout:
    found: dict[str, dict[str, list[Path]]] = {}
    for path in files:
        match = _IDX_NAME.fullmatch(path.name)
        split = _split_of(path.relative_to(root))
        unpacked = path.suffix == ".gz" and path.with_suffix("").exists()  # beside it, and faster
        if match and split and not unpacked:
            found.setdefault(split, {"images": [], "labels": []})[match["kind"]].append(path)
    test = _test_split(found, root, "IDX files")
    return IdxLayout(_idx_pair(root, "train", found["train"]), _idx_pair(root, test, found[test]))


def _idx_pair(root: Path, split: str, found: dict[str, list[Path]]) -> tuple[Path, Path]:
    for kind, paths in found.items():
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths) or "none"
            raise ValueError(f"{root}: IDX files with {kind} of the {split} split: {names}; expected one")
    return found["images"][0], found["labels"][0]


def _idx_split(images: Path, labels: Path, transposed: bool) -> Split:
    with _idx(labels, 1) as (file, (count,)):
        values = _take(file, labels, count)
    with _idx(images, 3) as (_, (n_images, height, width)):
        pass
    if n_images != count:
        raise ValueError(f"{images}: {n_images:,} images; expected {count:,} as in {labels.name}")

    def blocks() -> Iterator[ByteArray]:
        with _idx(images, 3) as (file, _):
            for start in range(0, count, BATCH):
                n = min(BATCH, count - start)
                block = _take(file, images, n * height * width).reshape(n, 1, height, width)
                yield block.swapaxes(2, 3) if transposed else block
            if file.read(1):
                raise ValueError(f"{images}: goes on after the {count:,} images that its head announces")

    return Split(Labels(str(labels), values), (1, width, height) if transposed else (1, height, width), blocks)


@contextmanager
def _idx(path: Path, n_dimensions: int) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """Open an IDX file and read its head: the shape of the array that follows."""
    try:
        with cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * n_dimensions)
            if head[:4] != _IDX_BYTES + bytes([n_dimensions]) or len(head) < 4 + 4 * n_dimensions:
                raise ValueError(
                    f"{path}: not an IDX file of bytes in {n_dimensions} dimensions (starts with "
                    f"{head[:4].hex(' ') or 'nothing'})"
                )
            shape = tuple(np.frombuffer(head, ">u4", offset=4).tolist())
            if path.suffix != ".gz":
                _check_size(path, len(head) + math.prod(shape))
            yield file, shape
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a readable gzip file ({error})") from error


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{path}: {size:,} bytes; expected {expected:,} by its head; incomplete, or not IDX")


def _take(file: IO[bytes], path: Path, count: int) -> ByteArray:
    content = file.read(count)
    if len(content) < count:
        raise ValueError(f"{path}: ends {count - len(content):,} bytes before its head says")
    return np.frombuffer(content, np.uint8)


# ---- image folders -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderLayout:
    """One directory per class in one directory per split; each image is a pair of path and class name."""

    root: Path
    train: tuple[tuple[Path, str], ...]
    test: tuple[tuple[Path, str], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All images."""
        return tuple(path for path, _ in self.train + self.test)

    def read(self, expected: Expected) -> Contents:
        """Prepare to decode the images."""
        splits = decode([_Files("train", self)], [_Files("test", self)], expected.n_channels)
        return Contents(*splits, None)


class _Files:
    """The images of one split."""

    def __init__(self, split: str, layout: FolderLayout) -> None:
        self._name = f"{layout.root}, {split} split"
        self._images = layout.train if split == "train" else layout.test

    def labels(self) -> Labels:
        return Labels(self._name, np.array([label for _, label in self._images]))

    def images(self) -> Iterator[list[EncodedImage]]:
        for start in range(0, len(self._images), BATCH):
            yield [(str(path), path.read_bytes()) for path, _ in self._images[start : start + BATCH]]


def _find_folders(root: Path, images: Sequence[Path]) -> FolderLayout:
    splits: dict[str, list[Path]] = {}
    for path in images:
        split = _SPLITS.get(path.relative_to(root).parts[0].lower())
        if split is not None:
            splits.setdefault(split, []).append(path)
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        splits.pop("test", None)  # as published, TinyImageNet has a test split without labels
    test = _test_split(splits, root, "image folders")
    labelled = {
        name: _annotated(annotations, splits[name]) if name == "valid" and annotations.is_file()
        else tuple((path, _folder_class(path, root)) for path in splits[name])
        for name in ("train", test)
    }  # fmt: skip
    return FolderLayout(root, labelled["train"], labelled[test])


def _folder_class(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    if len(parts) < 3:
        raise ValueError(f"{path}: not in the directory of a class; expected {parts[0]}/<class>/{path.name}")
    return parts[1]


def _annotated(annotations: Path, images: Sequence[Path]) -> tuple[tuple[Path, str], ...]:
    """Classes from the file beside the validation images of TinyImageNet: name, class, bounding box."""
    lines = annotations.read_text().splitlines()
    classes = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    for path in images:
        if path.name not in classes:
            raise ValueError(f"{annotations}: no line about {path.name}; expected name, tab, class")
    return tuple((path, classes[path.name]) for path in images)


# ---- tables --------------------------------------------------------------------------------------------------


def _find_tables(root: Path, files: Sequence[Path]) -> TableLayout:
    splits: dict[str, list[Path]] = {}
    plain = {path.with_name(path.name.lower()) for path in files}
    for path in files:
        split = _split_of(path.relative_to(root))
        packed_twin = path.suffix.lower() == ".gz" and path.with_name(path.stem.lower()) in plain
        if split is not None and not packed_twin:
            splits.setdefault(split, []).append(path)
    test = _test_split(splits, root, "tables")
    for name in ("train", test):
        if len(splits[name]) > 1:
            several = ", ".join(str(path.relative_to(root)) for path in splits[name])
            raise ValueError(f"{root}: several {name} tables ({several}); expected one")
    return TableLayout(splits["train"][0], splits[test][0])
