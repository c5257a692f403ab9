"""pFedCK: personal models that learn beside clustered ones (Zhang and Shi 2024, doi 10.3390/electronics13050857).

Every client has two models of one architecture. The interactive one takes part in the federation, the personal one
never leaves the client; while they train on the private set they learn from each other. The server clusters the clients
by how their interactive models changed, and returns to each the mean change of its cluster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from cosmosfl.data.sets import PublicSet
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.methods.comet import k_means
from cosmosfl.methods.stored import StoredWeights
from cosmosfl.methods.weights import (
    GlobalWeights,
    LocalWeights,
    Positive,
    Strength,
    WeightClient,
    WeightMethod,
    Weights,
    WeightServer,
    head_of,
)
from cosmosfl.protocol import Client, ClientId, Clustering, NotApplicableError, Task
from cosmosfl.randomness import stream

Vector = npt.NDArray[np.float64]

HELD = 2**24
"""Parameters, of as many clients as that makes, that are in memory while changes are compared."""


class PFedCK(WeightMethod):
    """Train a personal and an interactive model together; average the interactive ones within clusters.

    In each round the interactive model begins from the mean of its client's cluster, the personal one from where it
    was; both from the same initial weights. On each batch either model learns the labels and from the other, as that is
    before the step::

        CE + prediction_weight · T² · KL(other's softmax at T || own) + feature_weight · mean (own features - other's)²

    where features are what the last layer gets. Batches, optimiser and learning rate are the learner's, for both. A
    round costs twice the compute of FedAvg. The personal model is the one that is deployed; what comes back after the
    last round goes unused.

    Only the paper's summary was at hand. It has the server cluster in every round, "according to the similarity of the
    amount of parameter variation". Here that is k-means on the directions of what each client made of the parameters
    that it began the round with: lengths would tell who has more samples. The number of clusters is given, as in COMET.
    (Choosing it by the silhouette did better on some splits of scikit-learn's digits, and worse on others.) The mean in
    a cluster is weighted by samples. A client whose message was not accepted gets the mean of all.

    Nor could it be confirmed how the terms of the loss are weighted; above, the weights come on top of a cross-entropy
    of weight 1. On digits, half or twice the weight of predictions, and none or four times that of features, changed
    the accuracy by less than a point.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round, of both models.
    n_clusters
        K; at most the number of clients.
    temperature
        T, of the predictions that the models learn from each other.
    prediction_weight, feature_weight
        How much predictions and features of the other model count. With 0 for both, the personal model is trained
        alone.
    """

    name: ClassVar[str] = "pfedck"
    summary: ClassVar[str] = "personal models learn beside interactive ones, which are averaged in clusters"

    n_clusters: PositiveInt = 2
    temperature: Positive = 2.0
    prediction_weight: Strength = 0.5
    feature_weight: Strength = 0.5

    def prepare(self, clients: Sequence[Client]) -> Self:
        """Check the clients' models, see `WeightMethod.prepare`, and the number of clusters.

        Raises
        ------
        NotApplicableError
            If the models cannot be averaged, or there are fewer clients than clusters.
        """
        if self.n_clusters > len(clients):
            raise NotApplicableError(f"n_clusters: {self.n_clusters}; expected at most {len(clients)}, one per client")
        return super().prepare(clients)

    def training_samples(self, private: int, public: int) -> int:
        """Return those of both models."""
        return 2 * self.local_epochs * private

    def client_side(self, client: Client, public: PublicSet, task: Task) -> PFedCKClient:
        """Return what `client` does."""
        return PFedCKClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> PFedCKServer:
        """Return what the server does."""
        return PFedCKServer(self, public, task)


class PFedCKClient(WeightClient):
    """Trains both models. `learner` is the personal one."""

    method: PFedCK

    def step(self, message: GlobalWeights) -> LocalWeights:
        """Train the personal model, and the received interactive one, together; return the latter."""
        self.build(self.learner)
        interactive = copy.deepcopy(self.learner)
        round = self.take(message, interactive)  # in the first, what both begin from
        self.train(round, interactive)
        # The answer to this round's interactive model will not change the personal one before the next round.
        self.measure(round, "client_after_fit", "client")
        return LocalWeights(round, interactive.weights(), len(self.private))

    def train(self, round: int, interactive: TorchLearner) -> None:
        """Train the personal and the interactive model together on the private set."""
        modules = nn.ModuleList([self.learner.module, interactive.module])
        with inputs_of_heads(modules) as features:

            def loss(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
                logits = [self.learner.logits(module, x) for module in modules]
                smoothing = self.learner.label_smoothing
                own = [F.cross_entropy(of_one, y, label_smoothing=smoothing) for of_one in logits]
                other = [self.lesson(logits[k], logits[1 - k], features[k], features[1 - k]) for k in (0, 1)]
                return torch.stack(own + other).sum()  # no parameter has a part in the terms of the other model

            self.learner.train(
                modules,
                self.private.inputs,
                self.private.labels,
                loss,
                epochs=self.method.local_epochs,
                rng=self.rng("client fit", round),
            )

    def lesson(self, own: Tensor, other: Tensor, own_features: Tensor, other_features: Tensor) -> Tensor:
        """Return what a model's logits (n, C) and features are to learn from the other's, which stay as they are."""
        T = self.method.temperature
        targets = (other.detach() / T).softmax(dim=1)
        predictions = F.kl_div((own / T).log_softmax(dim=1), targets, reduction="batchmean")
        features = F.mse_loss(own_features.float(), other_features.detach().float())
        return self.method.prediction_weight * T**2 * predictions + self.method.feature_weight * features


@contextmanager
def inputs_of_heads(modules: Iterable[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Note what the last layer of each module gets in its latest forward pass, by index."""
    latest: dict[int, Tensor] = {}
    handles = []
    for k, module in enumerate(modules):
        head = module.get_submodule(min(head_of(module)).rpartition(".")[0])

        def note(_: nn.Module, inputs: tuple[Tensor, ...], k: int = k) -> None:
            latest[k] = inputs[0]

        handles.append(head.register_forward_pre_hook(note))
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


class PFedCKServer(WeightServer):
    """Clusters the clients in every round by how their interactive models changed, and averages in each cluster.

    Attributes
    ----------
    weights
        The mean of all clients'; at first the initial weights.
    began
        What each client began the round with.
    """

    def __init__(self, method: PFedCK, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        initial = method.initial_model(public, task)
        self.parameters = [name for name, _ in initial.module.named_parameters()]
        self.weights: Weights = initial.weights()
        self.began: Mapping[ClientId, Weights] = {}

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, GlobalWeights]:
        """Let everyone begin with the shared initial weights."""
        self.began = dict.fromkeys(clients, self.weights)
        return super().open(clients)

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Cluster; return to each client the mean of its cluster."""
        with StoredWeights() as stored:
            for client, message in self.accepted(uplinks):
                stored.add(client, message)
            self.clustering = self.cluster(stored)
            self.weights = stored.mean(stored)
            means = dict.fromkeys(self.clients, self.weights)
            for members in self.clustering.clusters:
                means |= dict.fromkeys(members, stored.mean(members))
        self.began = means
        answers = {client: GlobalWeights(self.round, mean) for client, mean in means.items()}
        self.round += 1
        return answers

    def cluster(self, trained: Mapping[ClientId, Weights]) -> Clustering:
        """Return the clusters that the changes of the clients' models give."""

        def change(client: ClientId) -> Vector:
            after, before = trained[client], self.began[client]
            return np.concatenate([(after[k].astype(np.float64) - before[k]).ravel() for k in self.parameters])

        clients = tuple(trained)
        distances = distances_of_directions(clients, change)
        rng = stream(self.task.seed, "k-means", self.round)
        clusters, radius = k_means(distances, self.method.n_clusters, rng)
        names = tuple(tuple(clients[i] for i in members) for members in clusters)
        return Clustering(clients, distances, "distance between directions of change", radius, names)


def distances_of_directions(clients: Sequence[ClientId], vector: Callable[[ClientId], Vector]) -> Vector:
    """Return the distances (N, N) between the clients' vectors, each divided by its length: ``sqrt(2 - 2 cos)``.

    A vector of zeros has no direction and is left as it is, at distance 1 from all that have one. Vectors are asked for
    more than once, so that not all have to be in memory.
    """
    products = np.zeros((len(clients), len(clients)))
    step = max(1, HELD // len(vector(clients[0])))
    for start in range(0, len(clients), step):
        some = np.stack([vector(client) for client in clients[start : start + step]])
        for k, client in enumerate(clients[start:], start):
            products[start : start + step, k] = products[k, start : start + step] = some @ vector(client)
    lengths = np.sqrt(np.diag(products))
    lengths[lengths == 0] = 1
    products /= lengths[:, None] * lengths
    squares = np.diag(products)
    distances: Vector = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    np.fill_diagonal(distances, 0)
    return distances
