"""The three kinds of data set of a federation, as three types.

They are separate types on purpose: a `PublicSet` has no place for labels, so no method can read one, and what is
measured on an `EvaluationSet` cannot be mistaken for training data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
InputArray = npt.NDArray[Any]


def check_inputs(inputs: npt.ArrayLike, name: str) -> InputArray:
    """Return `inputs` as an array of shape (n, ...): uint8 as it is, everything else as float32.

    Raises
    ------
    ValueError
        If there are fewer than two dimensions, values that are not finite, or something other than numbers.
    """
    try:
        array = np.asarray(inputs)
    except ValueError as error:
        raise ValueError(
            f"{name}: rows of different lengths; expected an array of shape (n, features) or "
            "(n, channels, height, width)"
        ) from error
    if array.dtype != np.uint8:
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name}: dtype {array.dtype}; expected numbers")
        array = np.asarray(array, dtype=np.float32)
    if array.ndim < 2:
        raise ValueError(f"{name}: shape {array.shape}; expected (n, features) or (n, channels, height, width)")
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).sum())
        raise ValueError(f"{name}: {bad} of {len(array)} samples hold NaN or infinity; expected finite values")
    return array


def check_labels(labels: npt.ArrayLike, n_samples: int, name: str) -> IntArray:
    """Return `labels` as int64 of shape (n_samples,), or say what is wrong with them."""
    array = np.asarray(labels)
    if array.shape != (n_samples,):
        raise ValueError(f"{name}: shape {array.shape}; expected ({n_samples},), one label per sample")
    whole = array.dtype.kind in "iu" or (array.dtype.kind == "f" and np.array_equal(array, np.floor(array)))
    if array.size and not whole:
        raise ValueError(f"{name}: dtype {array.dtype}; expected whole numbers 0..C-1")
    if array.size and array.min() < 0:
        raise ValueError(f"{name}: smallest label {array.min()}; expected whole numbers 0..C-1")
    return array.astype(np.int64)


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Inputs (n, ...) with hard labels (n,) in 0..C-1; at least one sample.

    Raises
    ------
    ValueError
        If the shapes disagree, the set is empty, a value is not finite or a label is not a whole number >= 0.
    """

    inputs: InputArray
    labels: IntArray

    def __post_init__(self) -> None:
        kind = type(self).__name__
        inputs = check_inputs(self.inputs, f"{kind} inputs")
        if len(inputs) == 0:
            raise ValueError(f"{kind}: 0 samples; expected at least 1")
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "labels", check_labels(self.labels, len(inputs), f"{kind} labels"))

    def __len__(self) -> int:
        return len(self.labels)


class PrivateSet(LabelledSet):
    """A client's own labelled data. It never leaves the client."""


class EvaluationSet(LabelledSet):
    """Labelled data that is only ever measured on."""


@dataclass(frozen=True, eq=False)
class PublicSet:
    """Unlabelled inputs (m, ...) that every party holds. There is no field for labels.

    Raises
    ------
    ValueError
        If there are fewer than two samples or a value is not finite.
    """

    inputs: InputArray

    def __post_init__(self) -> None:
        inputs = check_inputs(self.inputs, "public set")
        if len(inputs) < 2:
            raise ValueError(
                f"public set: {len(inputs)} samples; expected at least 2, since clients are compared "
                "by their predictions on it"
            )
        object.__setattr__(self, "inputs", inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, dtype and content: what parties compare to know that they hold the same set."""
        header = f"{self.inputs.shape}{self.inputs.dtype.str}".encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.inputs).tobytes()).hexdigest()
