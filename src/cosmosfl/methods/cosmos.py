"""COSMOS: clustered server models, pseudo-labels only (Rachmut et al. 2026, arXiv 2605.11165).

Round 0: every client trains on its private set and sends its predictions on the public set; the server clusters the
clients by them, trains a model of its own for each cluster on the members' mean prediction, and sends that model's
predictions back; the clients learn from them. Every later round: clients train on their private sets, send their
predictions, the server's models go on learning, and so do the clients.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from cosmosfl.clustering import (
    Aggregation,
    MeanAccumulator,
    Metric,
    aggregate,
    pairwise_distances,
)
from cosmosfl.data.sets import FloatArray, PublicSet
from cosmosfl.methods.predictions import (
    PredictionMethod,
    Predictions,
    PredictionServer,
    PseudoLabels,
    TeacherLabels,
    clusters_of,
)
from cosmosfl.protocol import ClientId, Learner, Task, check_probabilities
from cosmosfl.randomness import stream


class Cosmos(PredictionMethod):
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

    def server_side(self, public: PublicSet, task: Task) -> CosmosServer:
        """Return what the server does."""
        return CosmosServer(self, public, task)


class CosmosServer(PredictionServer):
    """Clusters the clients once, then trains one model per cluster in every round."""

    def __init__(self, method: Cosmos, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method

    def step(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> Mapping[ClientId, TeacherLabels]:
        """Cluster (in the first round), train the cluster models, return Q_k to each member."""
        if self.clustering is None:
            predictions = self.gathered(uplinks)
            method = self.method
            self.clustering = clusters_of(predictions, method.distance, method.threshold, method.n_clusters)
            self.cluster_models = [copy.deepcopy(self.new_cluster_model()) for _ in self.clustering.clusters]
            targets = self._compared(predictions)
        elif self.method.aggregation == "mean":
            targets = self._accumulated(uplinks)
        else:
            targets = self._compared(self.gathered(uplinks))
        lessons = [
            Lesson(
                self.cluster_models[k],
                self.public,
                target,
                self.method.server_epochs,
                stream(self.task.seed, "server", self.clustering.clusters[k][0], self.round),
                f"cluster model {k}",
            )
            for k, target in targets.items()
        ]
        downlinks: dict[ClientId, TeacherLabels] = {}
        for k, (model, labels) in zip(targets, self.map(teach, lessons), strict=True):
            self.cluster_models[k] = model
            downlinks |= dict.fromkeys(self.clustering.clusters[k], TeacherLabels(self.round, labels))
        self.round += 1
        return {**self.asked_again(), **downlinks}

    def _compared(self, predictions: Predictions) -> dict[int, FloatArray]:
        """Return the target of each cluster from all predictions at once."""
        assert self.clustering is not None
        P, row = predictions.array(), {id: n for n, id in enumerate(predictions.clients)}
        targets = {}
        for k, members in enumerate(self.clustering.clusters):
            if present := [row.pop(id) for id in members if id in row]:
                targets[k] = aggregate(P[present], self.method.aggregation)
        for client, n in row.items():
            self._place(client, P[n].astype(np.float32), targets)
        return targets

    def _accumulated(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> dict[int, FloatArray]:
        """Return the mean of each cluster's members, with one client's predictions in memory at a time."""
        assert self.clustering is not None
        own = {id: k for k, members in enumerate(self.clustering.clusters) for id in members}
        means: dict[int, MeanAccumulator] = defaultdict(MeanAccumulator)
        newcomers = {}
        for client, probabilities in self.accepted(uplinks):
            if client in own:
                means[own[client]].add(probabilities)
            else:
                newcomers[client] = probabilities
        targets = {k: mean.result() for k, mean in sorted(means.items())}
        for client, probabilities in newcomers.items():
            self._place(client, probabilities, targets)
        return targets

    def _place(self, client: ClientId, probabilities: FloatArray, targets: dict[int, FloatArray]) -> None:
        """Put a client that the clusters do not know into the nearest one, or a new one where none is within B0."""
        assert self.clustering is not None
        known = list(targets)
        distances = pairwise_distances(np.stack([probabilities, *targets.values()]), self.method.distance)[0, 1:]
        clusters = list(self.clustering.clusters)
        if known and distances.min() <= self.clustering.threshold:
            k = known[int(distances.argmin())]
            clusters[k] = (*clusters[k], client)
        else:
            targets[len(clusters)] = probabilities
            clusters.append((client,))
            self.cluster_models.append(copy.deepcopy(self.new_cluster_model()))
        self.clustering = replace(self.clustering, clusters=tuple(clusters))

    def new_cluster_model(self) -> Learner:
        """Return the model that every cluster starts from."""
        if self.method.teacher is not None:
            return self.method.teacher
        from cosmosfl.learners import TorchLearner  # and torch, which a party without it need not load

        return TorchLearner("cnn-s" if self.public.inputs.ndim == 4 else "mlp")


@dataclass(frozen=True)
class Lesson:
    """What one cluster model is to learn: all that a worker has to know of it."""

    model: Learner
    public: PublicSet
    target: FloatArray
    epochs: int
    rng: np.random.Generator
    name: str


def teach(lesson: Lesson) -> tuple[Learner, FloatArray]:
    """Train a cluster model on the public set; return it with its predictions Q_k (m, C) there."""
    model, inputs = lesson.model, lesson.public.inputs
    model.distill(inputs, lesson.target, epochs=lesson.epochs, rng=lesson.rng)
    labels = check_probabilities(
        model.predict_proba(inputs), shape=lesson.target.shape, source=f"{lesson.name}: predict_proba"
    )
    return model, labels
