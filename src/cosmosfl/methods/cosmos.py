"""COSMOS: clustered server models, pseudo-labels only (Rachmut et al. 2026, arXiv 2605.11165).

Round 0: every client trains on its private set and sends its predictions on the public set; the server clusters the
clients by them, trains a model of its own for each cluster on the members' mean prediction, and sends that model's
predictions back; the clients learn from them. Every later round: clients train on their private sets, send their
predictions, the server's models go on learning, and so do the clients.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

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
from cosmosfl.experts import LARGEST, evidence, log_density_ratio, mixture_of_experts, normalised
from cosmosfl.methods.door import accepted
from cosmosfl.methods.predictions import (
    PredictionClient,
    PredictionMethod,
    Predictions,
    PredictionServer,
    PseudoLabels,
    TeacherLabels,
    clusters_of,
)
from cosmosfl.protocol import (
    Client,
    ClientId,
    InvalidMessageError,
    JointLearner,
    Learner,
    Task,
    check_probabilities,
)
from cosmosfl.randomness import stream

Recipe = Literal["paper", "joint", "experts", "experts+joint"]


@dataclass(frozen=True, eq=False)
class CosmosLabels(PseudoLabels):
    """Client to server. P_i, and by recipes with experts the log density ratios (m,) of the public samples.

    Without them a client says nothing of what it knows, and the server takes it so.
    """

    log_ratio: FloatArray | None = None


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
    recipe
        ``"paper"``: as in the paper. Or with one part of ours, or both, which is the default (``docs/recipe.md`` says
        what each is worth):

        - ``"experts"``: a cluster's target on a public sample is the mean of the predictions of *all* clusters,
          weighted by how likely the sample is to be one of theirs (`cosmosfl.experts.mixture_of_experts`). For that
          each client also sends how much likelier every public sample is among its private inputs than among the
          public ones: one more number for each sample, from nearest neighbours
          (`cosmosfl.experts.log_density_ratio`). It tells more about the private inputs than predictions alone, so
          on Flower each party is asked (``share_log_ratios``).
        - ``"joint"``: when it ends, a client that can (`cosmosfl.protocol.JointLearner`: torch models) learns from the
          server's last labels and from its own at once, while its learning rate falls to zero, instead of from the
          server's alone. Models that are refitted learn from both in any case.
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
    recipe: Recipe = "experts+joint"
    server_epochs: PositiveInt = 5

    @property
    def has_experts(self) -> bool:
        """Say whether clients tell how well they know each public sample, and clusters listen to each other."""
        return "experts" in self.recipe

    @property
    def ends_jointly(self) -> bool:
        """Say whether clients end with the labels of the server and their own at once."""
        return "joint" in self.recipe

    def of_predictions_alone(self) -> Self:
        """Return the recipe without experts: what a client does that does not say how well it knows public samples."""
        return self.model_copy(update={"recipe": "joint" if self.ends_jointly else "paper"})

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return those of single-precision probabilities, and of the log density ratios if they are sent."""
        return 4 * public * (n_classes + self.has_experts)

    def client_side(self, client: Client, public: PublicSet, task: Task) -> CosmosClient:
        """Return what `client` does."""
        return CosmosClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> CosmosServer:
        """Return what the server does."""
        return CosmosServer(self, public, task)


class CosmosClient(PredictionClient):
    """Learns from the server's labels, then from its own data, then predicts."""

    method: Cosmos

    def step(self, message: TeacherLabels) -> CosmosLabels:
        """Distil the last round's labels, train on the private set, return P_i and what the recipe adds to it."""
        answer = super().step(message)
        return CosmosLabels(answer.round, answer.probabilities, self.log_ratio() if self.method.has_experts else None)

    def log_ratio(self) -> FloatArray:
        """Return how much likelier each public sample is among the private ones (m,). It is computed once."""
        if "log_ratio" not in self.memory:
            self.memory["log_ratio"] = log_density_ratio(self.private.inputs, self.public.inputs)
        return self.memory["log_ratio"]

    def finish(self, message: TeacherLabels) -> None:
        """Distil the last labels; by the recipe, together with the private ones where the learner knows how."""
        learner, wanted = self.learner, self.method.ends_jointly and self.method.distill_epochs > 0
        if message.probabilities is None or not (wanted and isinstance(learner, JointLearner)):
            super().finish(message)
            return
        learner.fit_jointly(
            self.private.inputs,
            self.private.labels,
            self.public.inputs,
            self.checked(message, len(self.public)),
            n_classes=self.task.n_classes,
            epochs=self.method.distill_epochs,
            rng=self.rng("client joint fit", message.round),
        )
        self.measure(message.round, "client")


class CosmosServer(PredictionServer):
    """Clusters the clients once, then trains one model per cluster in every round."""

    def __init__(self, method: Cosmos, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        self.log_ratios: dict[ClientId, FloatArray] = {}  # of this round

    def step(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> Mapping[ClientId, TeacherLabels]:
        """Cluster (in the first round), train the cluster models, return Q_k to each member."""
        self.log_ratios.clear()
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
        if self.method.has_experts:
            targets = self._shared(targets)
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

    def accepted(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> Iterator[tuple[ClientId, FloatArray]]:
        """Yield the predictions that are what was agreed on; keep the log density ratios that come with them."""
        if not self.method.has_experts:
            yield from super().accepted(uplinks)
            return
        shape = (self.rows, self.task.n_classes)

        def check(message: PseudoLabels, source: str) -> tuple[FloatArray, FloatArray | None]:
            probabilities = check_probabilities(message.probabilities, shape=shape, source=source)
            said = getattr(message, "log_ratio", None)
            return probabilities, None if said is None else check_log_ratio(said, self.rows, source)

        for client, (probabilities, log_ratio) in accepted(self, uplinks, check, "pseudo-labels"):
            if log_ratio is not None:
                self.log_ratios[client] = log_ratio
            yield client, probabilities

    def _shared(self, targets: dict[int, FloatArray]) -> dict[int, FloatArray]:
        """Return the targets in which every cluster listens to the others where they know more."""
        assert self.clustering is not None
        clusters = [self.clustering.clusters[k] for k in targets]
        nothing = np.zeros(len(next(iter(targets.values()))), np.float32)
        said = [[self.log_ratios[id] for id in members if id in self.log_ratios] for members in clusters]
        log_ratios = np.stack([evidence(of_members or [nothing]) for of_members in said])
        mixed = mixture_of_experts(np.stack(list(targets.values())), log_ratios)
        return dict(zip(targets, mixed, strict=True))

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
            self.log_ratios.pop(client, None)  # like its predictions, no part of this round's target
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


def check_log_ratio(log_ratio: object, rows: int, source: str) -> FloatArray:
    """Check log density ratios (rows,) at the door and return them as float32, normalised.

    Raises
    ------
    InvalidMessageError
        On a wrong type, shape or dtype, or values that are not finite or beyond ±`LARGEST`.
    """
    if not isinstance(log_ratio, np.ndarray) or log_ratio.shape != (rows,) or log_ratio.dtype.kind != "f":
        what = f"{log_ratio.dtype} {log_ratio.shape}" if isinstance(log_ratio, np.ndarray) else type(log_ratio).__name__
        raise InvalidMessageError(f"{source}: log density ratios are {what}; expected floating point ({rows},)")
    largest = np.abs(log_ratio).max(initial=0)
    if not largest <= LARGEST:  # which NaN is not, either
        raise InvalidMessageError(
            f"{source}: log density ratios of up to {largest:.4g}; expected finite, at most {LARGEST:g}"
        )
    return normalised(log_ratio)


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
