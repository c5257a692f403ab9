"""COSMOS: clustered server models, pseudo-labels only (Rachmut et al. 2026, arXiv 2605.11165).

Round 0: every client trains on its private set and sends its predictions on the public set; the server clusters the
clients by them, trains a model of its own for each cluster on the members' mean prediction, and sends that model's
predictions back; the clients learn from them. Every later round: clients train on their private sets, send their
predictions, the server's models go on learning, and so do the clients.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from cosmosfl.clustering import (
    Aggregation,
    Metric,
    aggregate,
    auto_threshold,
    greedy_clusters,
    pairwise_distances,
    threshold_for,
)
from cosmosfl.data.sets import FloatArray, PublicSet
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.protocol import (
    Client,
    ClientId,
    ClientSide,
    Clustering,
    InvalidMessageError,
    Learner,
    Message,
    Method,
    Rejection,
    ServerSide,
    Task,
    check_probabilities,
)
from cosmosfl.randomness import stream


@dataclass(frozen=True, eq=False)
class TeacherLabels(Message):
    """Server to client. Q_k (m, C) of the client's cluster in this `round`; None in the message that opens a run."""

    round: int
    probabilities: FloatArray | None


@dataclass(frozen=True, eq=False)
class PseudoLabels(Message):
    """Client to server. P_i (m, C): the client's class probabilities on the public set, in this `round`."""

    round: int
    probabilities: FloatArray


class Cosmos(Method):
    """The method's hyper-parameters. ``Cosmos(...).fit(clients, public, rounds)`` runs it.

    Parameters
    ----------
    teacher
        The server's model, copied for each cluster: any learner. By default a small CNN for images and an MLP for
        flat features. (The paper's: ``TorchLearner(vgg16, learning_rate=1e-4, consistency=5)``.)
    threshold
        B0, the largest distance of a member from its cluster's centre, or ``"auto"`` to choose it from the predictions
        (`cosmosfl.clustering.auto_threshold`).
    n_clusters
        Search for a threshold that gives this many clusters instead.
    distance
        How clients are compared (`cosmosfl.clustering.pairwise_distances`); ``"l2"`` is the paper's.
    aggregation
        How members' predictions become the cluster's target; ``"mean"`` is the paper's.
    local_epochs, server_epochs, distill_epochs
        Epochs of a client on its private set, of a cluster model on the public set, and of a client on the public
        set, in each round.
    """

    name: ClassVar[str] = "cosmos"
    summary: ClassVar[str] = "clusters of clients, a server model for each, only predictions on the wire"

    teacher: Learner | None = Field(default=None, exclude=True)
    threshold: NonNegativeFloat | Literal["auto"] = "auto"
    n_clusters: PositiveInt | None = None
    distance: Metric = "cosine"
    aggregation: Aggregation = "mean"
    server_epochs: PositiveInt = 5
    distill_epochs: NonNegativeInt = 5

    def client_side(self, client: Client, public: PublicSet, task: Task) -> CosmosClient:
        """Return what `client` does."""
        return CosmosClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> CosmosServer:
        """Return what the server does."""
        return CosmosServer(self, public, task)


class CosmosClient(ClientSide[TeacherLabels, PseudoLabels]):
    """Learns from the teacher, then from its own data, then predicts."""

    def __init__(self, method: Cosmos, client: Client, public: PublicSet, task: Task) -> None:
        super().__init__(client, public, task)
        self.method = method

    def step(self, message: TeacherLabels) -> PseudoLabels:
        """Distil the last round's teacher labels, train on the private set, return P_i."""
        round = message.round
        if message.probabilities is not None:
            self.finish(message)
            round += 1
        self.fit(round, self.method.local_epochs)
        self.measure(round, "client_after_fit")
        return PseudoLabels(round, self.predict(self.public.inputs))

    def finish(self, message: TeacherLabels) -> None:
        """Distil the teacher labels."""
        if message.probabilities is None:
            return
        shape = (len(self.public), self.task.n_classes)
        labels = check_probabilities(message.probabilities, shape=shape, source="server: teacher labels")
        self.distill(message.round, self.public.inputs, labels, self.method.distill_epochs)
        self.measure(message.round, "client")


class CosmosServer(ServerSide[TeacherLabels, PseudoLabels]):
    """Clusters the clients once, then trains one model per cluster in every round."""

    def __init__(self, method: Cosmos, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, TeacherLabels]:
        """Ask everyone for a first training."""
        return dict.fromkeys(clients, TeacherLabels(0, None))

    def step(self, uplinks: Mapping[ClientId, PseudoLabels]) -> Mapping[ClientId, TeacherLabels]:
        """Cluster (in the first round), train the cluster models, return Q_k to each member."""
        accepted = self.accept(uplinks)
        if self.clustering is None:
            self.clustering = self.cluster(accepted)
            self.cluster_models = [copy.deepcopy(self.teacher()) for _ in self.clustering.clusters]
        downlinks: dict[ClientId, TeacherLabels] = {}
        for k, members in enumerate(self.clustering.clusters):
            present = [accepted[i] for i in members if i in accepted]
            if not present:
                continue
            target = aggregate(present, self.method.aggregation)
            rng = stream(self.task.seed, "server", members[0], self.round)
            self.cluster_models[k].distill(self.public.inputs, target, epochs=self.method.server_epochs, rng=rng)
            answer = TeacherLabels(self.round, self.predict(k))
            downlinks |= dict.fromkeys(members, answer)
        self.round += 1
        return downlinks

    def accept(self, uplinks: Mapping[ClientId, PseudoLabels]) -> dict[ClientId, FloatArray]:
        """Return the predictions that are what was agreed on, by client in sorted order; record the others."""
        shape = (len(self.public), self.task.n_classes)
        accepted = {}
        for client in sorted(uplinks):
            source = f"client {client!r}: pseudo-labels"
            try:
                if uplinks[client].round != self.round:
                    raise InvalidMessageError(f"{source} are of round {uplinks[client].round}; expected {self.round}")
                accepted[client] = check_probabilities(uplinks[client].probabilities, shape=shape, source=source)
            except InvalidMessageError as error:
                self.rejections.append(Rejection(self.round, client, str(error)))
        if not accepted:
            raise InvalidMessageError(
                f"round {self.round}: none of {len(uplinks)} messages was accepted; "
                + "; ".join(r.reason for r in self.rejections if r.round == self.round)
            )
        return accepted

    def cluster(self, predictions: Mapping[ClientId, FloatArray]) -> Clustering:
        """Phase 1, step 2: distances, threshold, greedy elimination."""
        clients = tuple(predictions)
        P = np.stack(list(predictions.values()))
        distances = pairwise_distances(P, self.method.distance)
        if self.method.n_clusters is not None:
            threshold = threshold_for(distances, self.method.n_clusters)
        elif self.method.threshold == "auto":
            threshold = auto_threshold(P, self.method.distance)
        else:
            threshold = self.method.threshold
        clusters = tuple(tuple(clients[i] for i in members) for members in greedy_clusters(distances, threshold))
        return Clustering(clients, distances, self.method.distance, threshold, clusters)

    def teacher(self) -> Learner:
        """Return the model that every cluster starts from."""
        if self.method.teacher is not None:
            return self.method.teacher
        return TorchLearner("cnn-s" if self.public.inputs.ndim == 4 else "mlp")

    def predict(self, k: int) -> FloatArray:
        """Return Q_k (m, C)."""
        shape = (len(self.public), self.task.n_classes)
        probabilities = self.cluster_models[k].predict_proba(self.public.inputs)
        return check_probabilities(probabilities, shape=shape, source=f"cluster model {k}: predict_proba")
