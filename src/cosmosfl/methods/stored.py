"""The weights of a round's clients, in files, for servers that need them more than once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from cosmosfl.methods.weights import LocalWeights, Weights, mean_weights
from cosmosfl.protocol import ClientId


class StoredWeights(Mapping[ClientId, Weights]):
    """What clients sent, by client, read again when it is asked for: memory does not grow with their number.

    Use it in a ``with`` statement, at the end of which the files go.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="cosmosfl-weights-")
        self._samples: dict[ClientId, int] = {}
        self._paths: dict[ClientId, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._directory.cleanup()

    def add(self, client: ClientId, message: LocalWeights) -> None:
        """Keep what a client sent."""
        path = Path(self._directory.name) / f"{len(self._paths)}.safetensors"  # a client's id may be no file name
        save_file({name: np.asarray(array, order="C") for name, array in message.weights.items()}, path)
        self._paths[client], self._samples[client] = path, message.samples

    def mean(self, clients: Iterable[ClientId]) -> dict[str, npt.NDArray[Any]]:
        """Return the mean over some clients, weighted by their samples."""
        return mean_weights((self[client], self._samples[client]) for client in clients)

    def __getitem__(self, client: ClientId) -> Weights:
        weights: Weights = load_file(self._paths[client])
        return weights

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
