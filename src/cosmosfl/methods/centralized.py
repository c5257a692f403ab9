"""Centralized training: the reference that has all private data in one place, which no federation may have."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from pydantic import PrivateAttr

from cosmosfl.data.sets import PrivateSet, PublicSet
from cosmosfl.methods.local import Nothing
from cosmosfl.protocol import (
    TRAINING_PREFIX,
    Client,
    ClientId,
    ClientSide,
    Learner,
    Message,
    Method,
    ServerSide,
    State,
    Task,
)
from cosmosfl.randomness import stream


@dataclass(frozen=True, eq=False)
class PooledModel(Message):
    """Server to client. State of the model of the client's kind after `round`; None in the message that opens a run.

    It counts as no bytes: the data were not where they would have to be sent from, so there is no traffic to compare.
    """

    round: int
    state: State | None

    @property
    def nbytes(self) -> int:
        """0."""
        return 0


class Centralized(Method):
    """Train on the union of all private sets: a reference, no federation, and no client's data are private.

    Every client ends with what a model like its own learns from everybody's data. One is trained for each kind of model
    that there is among the clients, and starts where that of the first of them (by id) would start alone. Kinds differ
    in the architecture or any other setting; a learner that cannot be pickled is a kind of its own.

    Parameters
    ----------
    local_epochs
        Epochs on the union in each round.
    """

    name: ClassVar[str] = "centralized"
    summary: ClassVar[str] = "a reference, no federation: models trained on the union of all private sets"

    _pool: Pool | None = PrivateAttr(None)

    def prepare(self, clients: Sequence[Client]) -> Self:
        """Return this method with all private sets, which only it is told of."""
        ready = self.model_copy()
        ready._pool = Pool.of(clients)
        return ready

    def client_side(self, client: Client, public: PublicSet, task: Task) -> CentralizedClient:
        """Return what `client` does: nothing but to be measured."""
        return CentralizedClient(client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> CentralizedServer:
        """Return what trains; `prepare` comes first."""
        if self._pool is None:
            raise ValueError("centralized: the private sets are not known; call prepare(clients) first")
        return CentralizedServer(self, self._pool, public, task)


@dataclass(frozen=True)
class Pool:
    """The union of the private sets, and the kinds of models.

    Attributes
    ----------
    union
        Samples of all clients, in the order of their ids.
    learners
        One of each kind, by the id of the first client that has it.
    kinds
        For each client, the key of its kind in `learners`.
    """

    union: PrivateSet
    learners: dict[ClientId, Learner]
    kinds: dict[ClientId, ClientId]

    @classmethod
    def of(cls, clients: Sequence[Client]) -> Pool:
        """Pool the private sets of these clients."""
        ordered = sorted(clients, key=lambda client: client.id)
        first: dict[bytes, ClientId] = {}
        kinds = {client.id: first.setdefault(_fingerprint(client), client.id) for client in ordered}
        return cls(
            PrivateSet(
                np.concatenate([client.private.inputs for client in ordered]),
                np.concatenate([client.private.labels for client in ordered]),
            ),
            {client.id: client.learner for client in ordered if kinds[client.id] == client.id},
            kinds,
        )


def _fingerprint(client: Client) -> bytes:
    """Return what is the same for learners that were made alike."""
    try:
        return pickle.dumps(client.learner)
    except (pickle.PicklingError, TypeError, AttributeError):  # it holds a lambda, or something else without a name
        return client.id.encode()


class CentralizedClient(ClientSide[PooledModel, Nothing]):
    """Takes over the model of its kind."""

    def step(self, message: PooledModel) -> Nothing:
        """Take it over, and measure it."""
        self.finish(message)
        return Nothing()

    def finish(self, message: PooledModel) -> None:
        """Take it over, and measure it; there is one moment only in a round."""
        if message.state is not None:
            self.learner.restore(message.state)
            self.measure(message.round, "client_after_fit", "client")


class CentralizedServer(ServerSide[PooledModel, Nothing]):
    """Trains one model of each kind on the union."""

    def __init__(self, method: Centralized, pool: Pool, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        self.pool = pool
        self.learners = {key: copy.deepcopy(learner) for key, learner in pool.learners.items()}

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, PooledModel]:
        """Wake everyone."""
        return dict.fromkeys(clients, PooledModel(self.round, None))

    def step(self, uplinks: Iterable[tuple[ClientId, Nothing]]) -> Mapping[ClientId, PooledModel]:
        """Go on training; return to each client the model of its kind."""
        clients = [client for client, _ in uplinks]
        task, union, epochs = self.task, self.pool.union, self.method.local_epochs
        jobs = [
            PooledTraining(learner, union, task.n_classes, epochs, stream(task.seed, "client fit", key, self.round))
            for key, learner in self.learners.items()
        ]
        self.learners = dict(zip(self.learners, self.map(train, jobs), strict=True))
        states = {
            key: {k: v for k, v in learner.state().items() if not k.startswith(TRAINING_PREFIX)}
            for key, learner in self.learners.items()
        }
        round, self.round = self.round, self.round + 1
        return {client: PooledModel(round, states[self.pool.kinds[client]]) for client in clients}


@dataclass(frozen=True)
class PooledTraining:
    """One model's training in one round: all that a worker has to know of it."""

    learner: Learner
    union: PrivateSet
    n_classes: int
    epochs: int
    rng: np.random.Generator


def train(job: PooledTraining) -> Learner:
    """Train the learner on the union, and return it."""
    job.learner.fit(job.union.inputs, job.union.labels, n_classes=job.n_classes, epochs=job.epochs, rng=job.rng)
    return job.learner
