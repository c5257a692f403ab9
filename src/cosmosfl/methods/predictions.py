"""What methods that exchange predictions share: two messages, the client's side, and the server's door."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt

from cosmosfl.clustering import Metric, auto_threshold, greedy_clusters, pairwise_distances, threshold_for
from cosmosfl.data.sets import FloatArray, InputArray, PublicSet
from cosmosfl.methods.door import accepted
from cosmosfl.protocol import (
    Client,
    ClientId,
    ClientSide,
    Clustering,
    Message,
    Method,
    ServerSide,
    Task,
    check_probabilities,
)

LARGE = 2**28
"""Bytes of predictions from which they are kept in a file instead of in memory."""


@dataclass(frozen=True, eq=False)
class TeacherLabels(Message):
    """Server to client. Soft labels (m, C) on the public set, of this `round`; None asks for a first training only.

    In methods that exchange a part of the public set in each round, here and in `PseudoLabels`, m is that of the part.
    """

    round: int
    probabilities: FloatArray | None


@dataclass(frozen=True, eq=False)
class PseudoLabels(Message):
    """Client to server. P_i (m, C): the client's class probabilities on the public set, in this `round`."""

    round: int
    probabilities: FloatArray


class PredictionMethod(Method):
    """Hyper-parameters that methods with an exchange of predictions have in common.

    Parameters
    ----------
    local_epochs, distill_epochs
        Epochs of a client on its private set, and on the public set with the server's labels, in each round.
    """

    distill_epochs: NonNegativeInt = 5

    def training_samples(self, private: int, public: int) -> int:
        """Return those of the private set and of the public set."""
        return self.local_epochs * private + self.distill_epochs * public

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return those of single-precision probabilities."""
        return 4 * public * n_classes

    def client_side(self, client: Client, public: PublicSet, task: Task) -> PredictionClient:
        """Return what `client` does."""
        return PredictionClient(self, client, public, task)


class PredictionClient(ClientSide[TeacherLabels, PseudoLabels]):
    """Learns from the server's labels, then from its own data, then predicts."""

    def __init__(self, method: PredictionMethod, client: Client, public: PublicSet, task: Task) -> None:
        super().__init__(client, public, task)
        self.method = method

    def step(self, message: TeacherLabels) -> PseudoLabels:
        """Distil the last round's labels, train on the private set, return P_i."""
        round = message.round
        if message.probabilities is not None:
            self.learn(message)
            self.measure(round, "client")
            round += 1
        self.fit(round, self.method.local_epochs)
        self.measure(round, "client_after_fit")
        return PseudoLabels(round, self.predict(self.exchanged(round)))

    def finish(self, message: TeacherLabels) -> None:
        """Distil the labels."""
        if message.probabilities is None:
            return
        self.learn(message)
        self.measure(message.round, "client")

    def learn(self, message: TeacherLabels) -> None:
        """Distil the labels, once they are checked."""
        inputs = self.exchanged(message.round)
        self.distill(message.round, inputs, self.checked(message, len(inputs)), self.method.distill_epochs)

    def checked(self, message: TeacherLabels, rows: int) -> FloatArray:
        """Return the labels (rows, C) that the server sent.

        Raises
        ------
        InvalidMessageError
            If they are not probabilities of this shape.
        """
        shape = (rows, self.task.n_classes)
        return check_probabilities(message.probabilities, shape=shape, source="server: teacher labels")

    def exchanged(self, round: int) -> InputArray:
        """Return the public inputs that predictions are exchanged on in this round: here, all."""
        return self.public.inputs


class PredictionServer(ServerSide[TeacherLabels, PseudoLabels]):
    """Opens the exchange and checks what comes. Subclasses write `step`.

    Attributes
    ----------
    rows
        Public samples that predictions are exchanged on in a round: all, unless a subclass takes fewer.
    """

    def __init__(self, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.rows = len(public)

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, TeacherLabels]:
        """Ask everyone for a first training."""
        self.clients = tuple(clients)
        return self.asked_again()

    def join(self, client: ClientId) -> TeacherLabels:
        """Let in a client that comes later: it trains, and from the next round on it learns with the others."""
        self.clients = (*self.clients, client)
        return self.asked_again()[client]

    def asked_again(self) -> dict[ClientId, TeacherLabels]:
        """Return a message that asks for a training and predictions only, for those that there are no labels for."""
        return dict.fromkeys(self.clients, TeacherLabels(self.round, None))

    def accepted(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> Iterator[tuple[ClientId, FloatArray]]:
        """Yield the predictions that are what was agreed on; record the others, see `accepted`."""
        shape = (self.rows, self.task.n_classes)

        def check(message: PseudoLabels, source: str) -> FloatArray:
            return check_probabilities(message.probabilities, shape=shape, source=source)

        return accepted(self, uplinks, check, "pseudo-labels")

    def gathered(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> Predictions:
        """Return all accepted predictions at once, for methods that compare them, in the order of the clients' ids."""
        result = Predictions((self.rows, self.task.n_classes))
        for client, probabilities in self.accepted(uplinks):
            result.add(client, probabilities)
        return result


def clusters_of(
    predictions: Predictions, distance: Metric, threshold: float | Literal["auto"], n_clusters: int | None = None
) -> Clustering:
    """Return the clusters that predictions give: distances, threshold, greedy elimination.

    Parameters
    ----------
    predictions
        Of all clients.
    distance, threshold, n_clusters
        As `cosmosfl.Cosmos` takes them; with `n_clusters` the threshold is searched for.
    """
    clients, P = tuple(predictions.clients), predictions.array()
    distances = pairwise_distances(P, distance)
    if n_clusters is not None:
        threshold = threshold_for(distances, n_clusters)
    elif threshold == "auto":
        threshold = auto_threshold(P, distance)
    clusters = tuple(tuple(clients[i] for i in members) for members in greedy_clusters(distances, threshold))
    return Clustering(clients, distances, distance, threshold, clusters)


class Predictions:
    """Predictions (n, m, C) of many clients in half precision; in a temporary file when they are many.

    Parameters
    ----------
    shape
        (m, C), of one client.

    Attributes
    ----------
    clients
        Ids, in the order of the first axis.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.clients: list[ClientId] = []
        self._shape = shape
        self._parts: list[npt.NDArray[np.float16]] = []
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None

    def add(self, client: ClientId, probabilities: FloatArray) -> None:
        """Keep the predictions of one more client."""
        self.clients.append(client)
        half = probabilities.astype(np.float16)
        if self._file is None and half.nbytes * len(self.clients) > LARGE:
            self._file = tempfile.NamedTemporaryFile(prefix="cosmosfl-predictions-")  # noqa: SIM115 (ends with this object)
            for part in self._parts:
                self._file.write(part.tobytes())
            self._parts.clear()
        if self._file is None:
            self._parts.append(half)
        else:
            self._file.write(half.tobytes())

    def array(self) -> npt.NDArray[np.float16]:
        """Return (n, m, C), read-only if it lies in a file."""
        if self._file is None:
            return np.stack(self._parts)
        self._file.flush()
        return np.memmap(self._file.name, np.float16, mode="r", shape=(len(self.clients), *self._shape))
