"""Data sets of Hugging Face's `datasets`: from the hub, or as objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cosmosfl.data.images import optional
from cosmosfl.data.splits import BATCH, Contents, EncodedImage, Labels, arrow_images, arrow_labels, decode

_PROBE_SECONDS = 5


class NotReachedError(Exception):
    """Why nothing came from the hub."""


@dataclass(frozen=True)
class HubLocation:
    """Where a data set lies on the Hugging Face hub, and what its columns and test split are called there."""

    id: str
    config: str | None = None
    image: str = "image"
    label: str = "label"
    test: str = "test"


def download(hub: HubLocation) -> tuple[Any, Any]:
    """Return the training and the test split, as `datasets.Dataset`.

    Raises
    ------
    NotReachedError
        If that fails, for whatever reason; without a network after a few seconds.
    """
    try:
        datasets = optional("datasets")
        if not datasets.config.HF_HUB_OFFLINE:
            # Without a network, `load_dataset` tries again for half a minute before it says so.
            optional("huggingface_hub").HfApi().dataset_info(hub.id, timeout=_PROBE_SECONDS)
        splits = datasets.load_dataset(hub.id, hub.config)
        return splits["train"], splits[hub.test]
    except ImportError as error:
        raise NotReachedError(str(error)) from error
    except Exception as error:  # of any of the many libraries below; all end in the same advice
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise NotReachedError(f"{type(error).__name__}: {reason}") from error


def read_datasets(train: Any, test: Any, image: str, label: str, n_channels: int | None) -> Contents:
    """Prepare two objects `datasets.Dataset` with image files in the column `image` to be decoded."""
    if n_channels is None:
        mode = train.features[image].mode
        n_channels = None if mode is None else 1 if mode == "L" else 3
    splits = decode(
        [_DatasetImages(train, "train", image, label)], [_DatasetImages(test, "test", image, label)], n_channels
    )
    return Contents(*splits, label_names(train, test, label))


def label_names(train: Any, test: Any, label: str) -> tuple[str, ...] | None:
    """Return the class names of a column with the feature `ClassLabel`; None if it has another feature.

    Raises
    ------
    ValueError
        If the splits disagree.
    """
    names, others = (getattr(dataset.features[label], "names", None) for dataset in (train, test))
    if names != others:
        raise ValueError(f"column {label!r}: the class names of the training and the test split differ")
    return tuple(str(name) for name in names) if names else None


def column_with(dataset: Any, feature: type, usual: Sequence[str], argument: str) -> str:
    """Return the only column with a `feature`, or else one with a `usual` name.

    Raises
    ------
    ValueError
        If there is none; the message says that `argument` is to name one.
    """
    having = [str(name) for name, kind in dataset.features.items() if isinstance(kind, feature)]
    if len(having) == 1:
        return having[0]
    for name in usual:
        if name in dataset.column_names:
            return name
    columns = ", ".join(dataset.column_names)
    raise ValueError(f"{argument}: cannot be told from the columns {columns}; say which")


class _DatasetImages:
    """One split with a column of image files."""

    def __init__(self, dataset: Any, split: str, image: str, label: str) -> None:
        undecoded = dataset.select_columns([image]).cast_column(image, optional("datasets").Image(decode=False))
        self._images = undecoded.with_format("arrow")
        self._labels = dataset.select_columns([label]).with_format("arrow")
        self._split = split

    def labels(self) -> Labels:
        return arrow_labels(self._labels[:].column(0), f"{self._split} split")

    def images(self) -> Iterator[list[EncodedImage]]:
        row = 0
        for batch in self._images.iter(BATCH):
            names = [f"{self._split} split, row {row + i}" for i in range(len(batch))]
            yield arrow_images(batch.column(0), names, follow_paths=True)
            row += len(batch)
