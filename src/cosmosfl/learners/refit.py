"""Learners that cannot go on training and are refitted from scratch instead.

A random forest has no notion of "a few more epochs". To keep what it learned, it remembers the last private and the
last public set that it was given and is refitted on both: hard private labels and soft public ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import FloatArray, InputArray, IntArray
from cosmosfl.protocol import TRAINING_PREFIX, NotFittedError, State

LEAST_WEIGHT = 1e-2
"""(sample, class) pairs with a smaller probability are left out of the training set."""


def weighted_pairs(probabilities: FloatArray) -> tuple[IntArray, IntArray, npt.NDArray[np.float64]]:
    """Turn soft labels (n, C) into (sample index, class, weight) pairs with the same expected loss.

    Weights of one sample sum to one. Pairs below `LEAST_WEIGHT` are dropped, but each sample keeps its largest.
    """
    keep = probabilities >= LEAST_WEIGHT
    keep[np.arange(len(probabilities)), probabilities.argmax(axis=1)] = True
    weights = np.where(keep, probabilities, 0).astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    samples, classes = np.nonzero(keep)
    return samples, classes, weights[samples, classes]


def resampled_pairs(probabilities: FloatArray, draws: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Draw `draws` hard labels for each row of the soft labels (n, C): (sample index, class) pairs."""
    cumulative = probabilities.astype(np.float64).cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    points = rng.random((len(probabilities), draws))
    classes = (points[:, :, None] >= cumulative[:, None, :]).sum(axis=2)
    return np.repeat(np.arange(len(probabilities)), draws), classes.ravel()


class RefitLearner(ABC):
    """The part that scikit-learn and boosting models share: memory, soft labels, all C columns.

    Parameters
    ----------
    private_weight
        Weight of one private sample against one public sample in a refit.
    draws
        Hard labels drawn per soft label, where the model does not take sample weights.
    """

    def __init__(self, *, private_weight: float = 1.0, draws: int = 4) -> None:
        if not private_weight > 0:
            raise ValueError(f"private_weight: {private_weight!r}; expected a number above 0")
        if draws < 1:
            raise ValueError(f"draws: {draws!r}; expected at least 1")
        self.private_weight = private_weight
        self.draws = draws
        self._n_classes = 0
        self._classes: IntArray | None = None
        self._model: Any = None
        self._packed: bytes | None = None  # the model as bytes, where it is not unpacked yet: often it never has to be
        self._memory: dict[str, npt.NDArray[Any]] = {}

    @abstractmethod
    def _takes_weights(self) -> bool:
        """Whether the model can be trained on weighted samples."""

    @abstractmethod
    def _train(
        self,
        inputs: FloatArray,
        labels: IntArray,
        weights: npt.NDArray[np.float64] | None,
        rng: np.random.Generator,
    ) -> Any:
        """Return a new model trained on inputs (n, d) and labels 0..k-1, of which there are at least two."""

    @abstractmethod
    def _probabilities(self, model: Any, inputs: FloatArray) -> FloatArray:
        """Return (n, k) for the k classes that the model was trained on."""

    @abstractmethod
    def _to_bytes(self, model: Any) -> bytes: ...

    @abstractmethod
    def _from_bytes(self, data: bytes) -> Any: ...

    def fit(
        self, inputs: InputArray, labels: IntArray, *, n_classes: int, epochs: int, rng: np.random.Generator
    ) -> None:
        """Refit on these private samples and on the public ones of the last `distill`. `epochs` is ignored."""
        self._n_classes = n_classes
        self._memory |= {"private_inputs": inputs, "private_labels": labels}
        self._refit(rng)

    def distill(self, inputs: InputArray, probabilities: FloatArray, *, epochs: int, rng: np.random.Generator) -> None:
        """Refit on these public samples and on the private ones of the last `fit`. `epochs` is ignored."""
        self._n_classes = probabilities.shape[1]
        self._memory |= {"public_inputs": inputs, "public_probabilities": probabilities}
        self._refit(rng)

    def predict_proba(self, inputs: InputArray) -> FloatArray:
        """Return class probabilities (n, C), float32; classes that were never seen get zero."""
        classes = self._learned()
        result = np.zeros((len(inputs), self._n_classes), np.float32)
        if len(classes) == 1:
            result[:, classes[0]] = 1
        elif len(inputs):
            result[:, classes] = self._probabilities(self._unpacked(), _flat(inputs))
        return result

    def state(self) -> State:
        """Return the model as bytes and, under ``training.``, the samples that the next refit needs."""
        classes = self._learned()
        model = b"" if len(classes) == 1 else self._packed or self._to_bytes(self._model)
        return {
            "model": np.frombuffer(model, np.uint8),
            "classes": classes,
            "n_classes": np.array(self._n_classes),
            **{TRAINING_PREFIX + k: v for k, v in self._memory.items()},
        }

    def restore(self, state: State) -> None:
        """Become the learner that returned `state`, which has to come from this party (see `cosmosfl.load`)."""
        self._model, self._packed = None, state["model"].tobytes() or None
        self._classes = state["classes"].astype(np.int64)
        self._n_classes = int(state["n_classes"])
        self._memory = {k.removeprefix(TRAINING_PREFIX): v for k, v in state.items() if k.startswith(TRAINING_PREFIX)}

    def _unpacked(self) -> Any:
        if self._packed is not None:
            self._model, self._packed = self._from_bytes(self._packed), None
        return self._model

    def _learned(self) -> IntArray:
        if self._classes is None:
            raise NotFittedError(f"{self!r} has not learned anything yet; call fit or distill first")
        return self._classes

    def _refit(self, rng: np.random.Generator) -> None:
        inputs, labels, weights = [], [], []
        if "private_labels" in self._memory:
            inputs.append(_flat(self._memory["private_inputs"]))
            labels.append(cast(IntArray, self._memory["private_labels"]))
            weights.append(np.full(len(labels[0]), self.private_weight))
        if "public_probabilities" in self._memory:
            public = _flat(self._memory["public_inputs"])
            soft = cast(FloatArray, self._memory["public_probabilities"])
            if self._takes_weights():
                samples, classes, weight = weighted_pairs(soft)
            else:
                samples, classes = resampled_pairs(soft, self.draws, rng)
                weight = np.full(len(samples), 1 / self.draws)
            inputs.append(public[samples])
            labels.append(classes)
            weights.append(weight)
        x, y, w = np.concatenate(inputs), np.concatenate(labels), np.concatenate(weights)
        if not self._takes_weights():
            x, y = _repeat_by_weight(x, y, w)
        self._classes, encoded = np.unique(y, return_inverse=True)
        self._model = self._packed = None  # one class needs no model
        if len(self._classes) > 1:
            self._model = self._train(x, encoded, w if self._takes_weights() else None, rng)


def _repeat_by_weight(x: FloatArray, y: IntArray, w: npt.NDArray[np.float64]) -> tuple[FloatArray, IntArray]:
    """Repeat samples so that their numbers are near the ratio of their weights; none is lost."""
    times = np.maximum(1, np.rint(w / w.min()).astype(int))
    return np.repeat(x, times, axis=0), np.repeat(y, times)


def _flat(inputs: InputArray) -> FloatArray:
    flat = inputs.reshape(len(inputs), -1)
    return flat.astype(np.float32) / 127.5 - 1 if flat.dtype == np.uint8 else flat.astype(np.float32, copy=False)
