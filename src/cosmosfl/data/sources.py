"""Data sets by name, from a directory, or from memory.

A data set by name is looked for in this order: a directory of its name in the data directory (``--data-dir``,
or the environment variable ``COSMOSFL_DATA``), the places where a system package puts it, the Hugging Face hub.
What was decoded once is kept in the cache (see `cosmosfl.data.cache`), that from the hub until the cache is
removed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from cosmosfl.data.cache import Blocks, cached, fingerprint, in_memory, is_cached
from cosmosfl.data.hub import HubLocation, NotReachedError, column_with, download, label_names, read_datasets
from cosmosfl.data.images import as_images, optional
from cosmosfl.data.layouts import Expected, find_layout
from cosmosfl.data.sets import InputArray, IntArray, check_labels
from cosmosfl.data.splits import Contents, Labels, index_labels
from cosmosfl.data.tables import TableLayout
from cosmosfl.naming import unknown
from cosmosfl.randomness import stream

PathLike = str | os.PathLike[str]

_ARRAYS = ("train_inputs", "train_labels", "test_inputs", "test_labels", "class_names")
_FEATURES = "feature_names"  # of tables, beside these
_HUB_STATE = "hub"  # what is on the hub does not change under its name


@dataclass(frozen=True, eq=False)
class Source:
    """A labelled data set to make a federation of.

    Attributes
    ----------
    name
        What it is called in configurations and results.
    train_inputs, test_inputs
        Images (n, channels, height, width), uint8, or rows of numbers (n, features), float32. They may be read-only
        maps of files; an index makes a copy.
    train_labels, test_labels
        Class indices (n,).
    class_names
        One name per class.
    feature_names
        Of tables, one name per column.
    """

    name: str
    train_inputs: InputArray
    train_labels: IntArray
    test_inputs: InputArray
    test_labels: IntArray
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SourceEntry:
    """A data set that is known by name.

    Attributes
    ----------
    summary
        One line about it.
    shape
        Of an image: channels, height, width.
    n_classes, n_train, n_test
        How many there are. A data set that differs is not taken for this one.
    obtain
        How to get it, to follow "To get it: "; ``{directory}`` stands for where to put it.
    hub
        Where it lies on the Hugging Face hub.
    system
        Directories where packages of a Linux distribution put it.
    class_names
        For layouts that do not hold any.
    idx_prefix, idx_transposed
        See `cosmosfl.data.layouts.Expected`.
    builtin
        Makes a data set that needs no files.
    """

    summary: str
    shape: tuple[int, int, int]
    n_classes: int
    n_train: int
    n_test: int
    obtain: str = ""
    hub: HubLocation | None = None
    system: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    idx_prefix: str = ""
    idx_transposed: bool = False
    builtin: Callable[[], Source] | None = None

    @property
    def expected(self) -> Expected:
        """How to read it: as on the hub, or with the columns that a data set of one's own has."""
        image, label = (self.hub.image, self.hub.label) if self.hub else ("image", "label")
        return Expected(
            image_columns=tuple(dict.fromkeys((image, *Expected.image_columns))),
            label_columns=tuple(dict.fromkeys((label, *Expected.label_columns))),
            n_channels=self.shape[0],
            idx_prefix=self.idx_prefix,
            idx_transposed=self.idx_transposed,
        )


def _digits() -> Source:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    order = stream(0, "digits", "test split").permutation(len(labels))  # a property of the set, not of a run
    test, train = order[:720], order[720:]
    names = tuple(str(name) for name in digits.target_names)
    return Source("digits", images[train], labels[train], images[test], labels[test], names)


_DIGIT_NAMES = tuple("0123456789")
_EMNIST_NAMES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FROM_HUB = (
    "pip install 'cosmosfl[data]' and let it download from the hub, or put the parquet files of "
    "https://huggingface.co/datasets/{hub} into {{directory}}"
)

SOURCES: dict[str, SourceEntry] = {
    "digits": SourceEntry(
        summary="handwritten digits of scikit-learn, 8×8 grey, 10 classes, 1,077 train and 720 test",
        shape=(1, 8, 8), n_classes=10, n_train=1_077, n_test=720, builtin=_digits,
    ),
    "fashion-mnist": SourceEntry(
        summary="Fashion-MNIST, pictures of clothes, 28×28 grey, 10 classes, 60,000 train and 10,000 test",
        shape=(1, 28, 28), n_classes=10, n_train=60_000, n_test=10_000, class_names=_FASHION_NAMES,
        hub=HubLocation("zalando-datasets/fashion_mnist"), system=("/usr/share/datasets/fashion-mnist",),
        obtain="on Debian or Ubuntu apt-get install dataset-fashion-mnist; elsewhere "
               + _FROM_HUB.format(hub="zalando-datasets/fashion_mnist"),
    ),
    "emnist-balanced": SourceEntry(
        summary="EMNIST-balanced, letters and digits, 28×28 grey, 47 classes, 112,800 train and 18,800 test",
        shape=(1, 28, 28), n_classes=47, n_train=112_800, n_test=18_800, class_names=_EMNIST_NAMES,
        idx_prefix="emnist-balanced", idx_transposed=True,
        obtain="download the binary format (gzip.zip) from "
               "https://www.nist.gov/itl/products-and-services/emnist-dataset and unpack the four files "
               "emnist-balanced-*-ubyte.gz into {directory}",
    ),
    "emnist47": SourceEntry(
        summary="the 47 classes of EMNIST-balanced, derived from NIST SD19 in another selection (so not "
                "comparable with published numbers), 28×28 grey, 93,775 train and 15,630 test",
        shape=(1, 28, 28), n_classes=47, n_train=93_775, n_test=15_630, class_names=_EMNIST_NAMES,
        obtain="it is derived and not published; put its parquet shards (train-*.parquet, test-*.parquet) into "
               "{directory}, or take emnist-balanced",
    ),
    "cifar10": SourceEntry(
        summary="CIFAR-10, photographs, 32×32 colour, 10 classes, 50,000 train and 10,000 test",
        shape=(3, 32, 32), n_classes=10, n_train=50_000, n_test=10_000, class_names=_CIFAR10_NAMES,
        hub=HubLocation("uoft-cs/cifar10", image="img"), obtain=_FROM_HUB.format(hub="uoft-cs/cifar10"),
    ),
    "cifar100": SourceEntry(
        summary="CIFAR-100, photographs, 32×32 colour, 100 fine classes, 50,000 train and 10,000 test",
        shape=(3, 32, 32), n_classes=100, n_train=50_000, n_test=10_000,
        hub=HubLocation("uoft-cs/cifar100", image="img", label="fine_label"),
        obtain=_FROM_HUB.format(hub="uoft-cs/cifar100"),
    ),
    "svhn": SourceEntry(
        summary="SVHN, house numbers cropped to digits, 32×32 colour, 10 classes, 73,257 train and 26,032 test",
        shape=(3, 32, 32), n_classes=10, n_train=73_257, n_test=26_032, class_names=_DIGIT_NAMES,
        hub=HubLocation("ufldl-stanford/svhn", "cropped_digits"),
        obtain=_FROM_HUB.format(hub="ufldl-stanford/svhn (directory cropped_digits)"),
    ),
    "tinyimagenet": SourceEntry(
        summary="TinyImageNet, photographs, 64×64 colour, 200 classes, 100,000 train and 10,000 test (its "
                "validation split, since its test split has no labels)",
        shape=(3, 64, 64), n_classes=200, n_train=100_000, n_test=10_000,
        hub=HubLocation("zh-plus/tiny-imagenet", test="valid"),
        obtain=_FROM_HUB.format(hub="zh-plus/tiny-imagenet")
               + ", or what is in tiny-imagenet-200.zip of http://cs231n.stanford.edu",
    ),
}  # fmt: skip
"""Name -> what it is."""


def load_source(name: PathLike, data_dir: PathLike | None = None) -> Source:
    """Load a data set.

    Parameters
    ----------
    name
        A name in `SOURCES`, or a data set of one's own: the path of a directory, or the name of one in the data
        directory. The layouts are described in `cosmosfl.data.layouts`.
    data_dir
        The data directory; without it the environment variable ``COSMOSFL_DATA`` says where it is.

    Raises
    ------
    ValueError
        If the name is not known (the message says the nearest), or the data are damaged (it says which file).
    FileNotFoundError
        If the data set is not there; the message says what was looked for, where, and how to get it.
    ImportError
        If reading it needs a library that is not installed; the message says which.
    """
    entry = SOURCES.get(os.fspath(name))
    if entry is None:
        directory = _own_directory(os.fspath(name), data_dir)
        return _load_directory(directory, directory.resolve().name, None)
    if entry.builtin is not None:
        return entry.builtin()
    return _load_known(os.fspath(name), entry, _data_directory(data_dir))


def locate_source(name: str, data_dir: PathLike | None = None) -> str | None:
    """Say where `load_source` takes a data set of `SOURCES` from without a download; None if from nowhere."""
    entry = SOURCES[name]
    if entry.builtin is not None:
        return "built in"
    for directory in _directories(name, entry, _data_directory(data_dir)):
        if directory.is_dir():
            return str(directory)
    if entry.hub is not None and is_cached(name, _hub_key(entry.hub), _HUB_STATE):
        return f"cache, from {entry.hub.id}"
    return None


def source_from_arrays(
    name: str,
    train_inputs: Any,
    train_labels: npt.ArrayLike,
    test_inputs: Any,
    test_labels: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
) -> Source:
    """Make a source of images in memory.

    Parameters
    ----------
    name
        What to call it in results.
    train_inputs, test_inputs
        Arrays (n, height, width), (n, height, width, 1 or 3) or (n, 1 or 3, height, width), or lists of PIL
        images. Values are whole numbers in 0..255, or floating-point numbers in [0, 1], which are multiplied by
        255.
    train_labels, test_labels
        Whole numbers 0..C-1 or words, (n,).
    class_names
        One name per class. Without it words are sorted, and numbers are their own names.

    Raises
    ------
    ValueError
        If shapes or values are others; the message says of which argument.
    """
    inputs = {"train": as_images(train_inputs, "train_inputs"), "test": as_images(test_inputs, "test_inputs")}
    train = _labels_of(train_labels, len(inputs["train"]), "train_labels")
    test = _labels_of(test_labels, len(inputs["test"]), "test_labels")
    train_indices, test_indices, names = index_labels(train, test, class_names)
    _check_shapes(name, inputs["train"].shape[1:], inputs["test"].shape[1:])
    return Source(name, inputs["train"], train_indices, inputs["test"], test_indices, names)


def source_from_datasets(
    train_dataset: Any,
    test_dataset: Any,
    *,
    name: str = "custom",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Make a source of two objects `datasets.Dataset` of Hugging Face.

    What lies on disk there is decoded once and kept in the cache; what is in memory is decoded into memory.

    Parameters
    ----------
    name
        What to call it in results.
    image_column, label_column
        Which columns to use. Without them, the only one with the feature `Image` and the only one with the
        feature `ClassLabel`, or those that are called ``image`` or ``img`` and ``label``.

    Raises
    ------
    TypeError
        If they are something else, such as a `DatasetDict`.
    ValueError
        If a column is missing or cannot be told, or an image or a label is wrong; the message says which row.
    """
    datasets = optional("datasets")
    for argument, dataset in (("train_dataset", train_dataset), ("test_dataset", test_dataset)):
        if not isinstance(dataset, datasets.Dataset):
            raise TypeError(f"{argument}: {type(dataset).__name__}; expected a datasets.Dataset, one split")
    image = image_column or column_with(train_dataset, datasets.Image, Expected.image_columns, "image_column")
    label = label_column or column_with(train_dataset, datasets.ClassLabel, Expected.label_columns, "label_column")
    for argument, dataset in (("train_dataset", train_dataset), ("test_dataset", test_dataset)):
        for column in (image, label):
            if column not in dataset.column_names:
                raise ValueError(f"{argument}: columns {', '.join(dataset.column_names)}; expected {column!r}")
    if not isinstance(train_dataset.features[image], datasets.Image):
        arrays = [
            dataset.select_columns([column]).with_format("numpy")[:][column]
            for dataset in (train_dataset, test_dataset)
            for column in (image, label)
        ]
        train_inputs, train_labels, test_inputs, test_labels = arrays
        names = label_names(train_dataset, test_dataset, label)
        return source_from_arrays(name, train_inputs, train_labels, test_inputs, test_labels, names)

    def build() -> Mapping[str, Blocks]:
        return _blocks(read_datasets(train_dataset, test_dataset, image, label, None), name, None, name)

    if not (train_dataset.cache_files and test_dataset.cache_files):
        return _source(name, in_memory(build()))
    key = ("datasets", [*train_dataset.cache_files, *test_dataset.cache_files], image, label)
    state = hashlib.blake2b(f"{train_dataset._fingerprint} {test_dataset._fingerprint}".encode(), digest_size=8)
    return _source(name, cached(name, key, state.hexdigest(), _ARRAYS, build))


def _hub_key(hub: HubLocation) -> tuple[object, ...]:
    return ("hub", hub)


def _load_hub(name: str, entry: SourceEntry, hub: HubLocation) -> Source:
    def build() -> Mapping[str, Blocks]:
        train, test = download(hub)
        contents = read_datasets(train, test, hub.image, hub.label, entry.shape[0])
        return _blocks(contents, name, entry, hub.id)

    return _source(name, cached(name, _hub_key(hub), _HUB_STATE, _ARRAYS, build))


def _data_directory(data_dir: PathLike | None) -> Path | None:
    chosen = data_dir if data_dir is not None else os.environ.get("COSMOSFL_DATA")
    if not chosen:
        return None
    path = Path(chosen).expanduser()
    if not path.is_dir():
        who = "data directory" if data_dir is not None else "COSMOSFL_DATA"
        raise FileNotFoundError(f"{who}: {path} is not a directory")
    return path


def _own_directory(name: str, data_dir: PathLike | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"dataset: {path} is a file; expected a directory")
    if path.is_absolute() or len(path.parts) > 1 or name.startswith((".", "~")):
        raise FileNotFoundError(f"dataset: there is no directory {path}")
    data = _data_directory(data_dir)
    if data is not None and (data / name).is_dir():
        return data / name
    raise ValueError(f"{unknown('dataset', name, SOURCES)} (or give the path of a directory)")


def _directories(name: str, entry: SourceEntry, data: Path | None) -> list[Path]:
    """Where a known data set may lie, first choice first."""
    local = [data / name] if data is not None else []
    return local + [Path(directory) for directory in entry.system]


def _load_known(name: str, entry: SourceEntry, data: Path | None) -> Source:
    places = _directories(name, entry, data)
    for directory in places:
        if directory.is_dir():
            return _load_directory(directory, name, entry)
    looked = [f"{directory}: there is no such directory" for directory in places]
    if data is None:
        looked.insert(0, "data directory: none given, neither by --data-dir nor by the variable COSMOSFL_DATA")
    if entry.hub is not None:
        try:
            return _load_hub(name, entry, entry.hub)
        except NotReachedError as error:
            looked.append(f"Hugging Face hub, {entry.hub.id}: {error}")
    where = data / name if data is not None else Path("DIR") / name
    then = "" if data is not None else "; then pass --data-dir DIR or set COSMOSFL_DATA=DIR"
    listing = "\n".join(f"  - {line}" for line in looked)
    obtain = entry.obtain.format(directory=where)
    raise FileNotFoundError(f"dataset {name!r} was not found. Looked for:\n{listing}\nTo get it: {obtain}{then}")


def _load_directory(directory: Path, name: str, entry: SourceEntry | None) -> Source:
    root = directory.resolve()
    if entry is not None and entry.hub is not None and entry.hub.config and (root / entry.hub.config).is_dir():
        root /= entry.hub.config  # a clone of the repository on the hub
    expected = entry.expected if entry is not None else Expected()
    layout = find_layout(root, expected)

    def build() -> Mapping[str, Blocks]:
        return _blocks(layout.read(expected), name, entry, str(root))

    key = (root, name if entry is not None else None, expected)
    names = (*_ARRAYS, _FEATURES) if isinstance(layout, TableLayout) else _ARRAYS
    return _source(name, cached(name, key, fingerprint(layout.files), names, build))


def _blocks(contents: Contents, name: str, entry: SourceEntry | None, where: str) -> Mapping[str, Blocks]:
    """Give the classes numbers, check the data set, and prepare what the cache keeps of it."""
    train, test = contents.train, contents.test
    names = contents.class_names
    if names is None and entry is not None and entry.class_names is not None:
        words = set(train.labels.values.tolist()) if train.labels.values.dtype.kind == "U" else set()
        names = entry.class_names if words <= set(entry.class_names) else None
    train_labels, test_labels, names = index_labels(train.labels, test.labels, names)
    _check_shapes(where, train.shape, test.shape)
    if entry is not None:
        found = train.shape, len(names), len(train_labels), len(test_labels)
        _check_known(name, entry, where, found)
    features = contents.feature_names
    return {
        **({} if features is None else {_FEATURES: Blocks.of(np.array(features, dtype=np.str_))}),
        "train_inputs": Blocks((len(train_labels), *train.shape), train.dtype, train.blocks()),
        "train_labels": Blocks.of(train_labels),
        "test_inputs": Blocks((len(test_labels), *test.shape), test.dtype, test.blocks()),
        "test_labels": Blocks.of(test_labels),
        "class_names": Blocks.of(np.array(names, dtype=np.str_)),
    }


def _source(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Source:
    return Source(
        name,
        arrays["train_inputs"],
        np.array(arrays["train_labels"], np.int64),
        arrays["test_inputs"],
        np.array(arrays["test_labels"], np.int64),
        tuple(arrays["class_names"].tolist()),
        tuple(arrays[_FEATURES].tolist()) if _FEATURES in arrays else None,
    )


def _check_shapes(name: str, train: Sequence[int], test: Sequence[int]) -> None:
    if tuple(train) != tuple(test):
        raise ValueError(
            f"{name}: training inputs of shape {tuple(train)}, test inputs {tuple(test)}; expected one shape"
        )


def _check_known(name: str, entry: SourceEntry, where: str, found: tuple[object, ...]) -> None:
    """Refuse other data under the name of a known data set, since results carry that name."""
    wanted = entry.shape, entry.n_classes, entry.n_train, entry.n_test
    kinds = "images of shape", "number of classes", "number of training samples", "number of test samples"
    for kind, is_, should in zip(kinds, found, wanted, strict=True):
        if is_ != should:
            raise ValueError(
                f"{where}: {kind} {is_}; expected {should} in {name!r}; load data of your own by "
                "their path or under another name"
            )


def _labels_of(labels: npt.ArrayLike, count: int, name: str) -> Labels:
    array = np.asarray(labels)
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.tolist()):
        array = array.astype(np.str_)
    if array.dtype.kind != "U" or array.shape != (count,):
        array = check_labels(array, count, name)
    return Labels(name, array)
