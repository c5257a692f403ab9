"""FLIS: clusters by what the clients' models infer, FedAvg in each (Morafah et al. 2023, arXiv 2208.09754)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveInt

from cosmosfl.clustering import Metric
from cosmosfl.data.sets import FloatArray, PublicSet
from cosmosfl.methods.door import accepted
from cosmosfl.methods.fedavg import FedAvgClient
from cosmosfl.methods.predictions import Predictions, clusters_of
from cosmosfl.methods.stored import StoredWeights
from cosmosfl.methods.weights import GlobalWeights, LocalWeights, WeightMethod, WeightServer
from cosmosfl.protocol import Client, ClientId, Task, check_probabilities
from cosmosfl.randomness import stream


class FLIS(WeightMethod):
    """In every round: cluster the clients by their models' predictions on public samples, and average in each cluster.

    The clients send weights; the predictions are the server's doing. What is compared is then what models do and not
    how they do it: two models that differ in the order of their hidden units are the same.

    Similar, to the authors, are two models with the same most probable class on many samples: their scripts ask for 0.4
    to 0.45 of them, which is ``distance="disagreement"`` with a threshold of 0.6 to 0.55. One of their two variants
    averages over the neighbourhood of each client within the threshold, anew in every round, and clients then take that
    average which does best on data of theirs (in the authors' code, on their test sets); the other does so with
    neighbourhoods found once, before the first round. Here it is every round, and greedy elimination makes clusters of
    the neighbourhoods, which do not overlap, so that a client needs no more than the average of its own.

    The default distance is theirs taken of probabilities, for which automatic thresholds were no worse on
    scikit-learn's digits. Where each client draws its classes from a Dirichlet distribution there are no groups to be
    found, and the threshold has to be tuned.

    A client whose message was not accepted gets the mean of all.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round.
    threshold
        The largest distance of a client from the centre of its cluster, or ``"auto"`` to choose it anew in every round
        (`cosmosfl.clustering.auto_threshold`).
    distance
        How clients are compared (`cosmosfl.clustering.pairwise_distances`).
    public_samples
        Public samples to predict; all, if there are fewer. They are drawn once. The authors have 2,500.
    """

    name: ClassVar[str] = "flis"
    summary: ClassVar[str] = "clusters by what the clients' models predict on public samples, and FedAvg in each"

    threshold: NonNegativeFloat | Literal["auto"] = "auto"
    distance: Metric = "cosine"
    public_samples: PositiveInt = 2500

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedAvgClient:
        """Return what `client` does: the same as in FedAvg."""
        return FedAvgClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> FLISServer:
        """Return what the server does."""
        return FLISServer(self, public, task)


class FLISServer(WeightServer):
    """Predicts with every client's model, clusters, averages.

    Attributes
    ----------
    weights
        The initial weights, which what comes has to be like. There is no global model.
    inputs
        The public samples that are predicted.
    """

    def __init__(self, method: FLIS, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        self.model = method.initial_model(public, task)
        self.weights = self.model.weights()
        drawn = stream(task.seed, "public samples").permutation(len(public))[: method.public_samples]
        self.inputs = public.inputs[np.sort(drawn)]

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Cluster; return to each client the mean of its cluster."""
        predictions = Predictions((len(self.inputs), self.task.n_classes))
        with StoredWeights() as stored:
            for client, (message, probabilities) in self.judged(uplinks):
                predictions.add(client, probabilities)
                stored.add(client, message)
            self.clustering = clusters_of(predictions, self.method.distance, self.method.threshold)
            answers: dict[ClientId, GlobalWeights] = {}
            for members in self.clustering.clusters:
                answers |= dict.fromkeys(members, GlobalWeights(self.round, stored.mean(members)))
            if others := [client for client in self.clients if client not in answers]:
                answers |= dict.fromkeys(others, GlobalWeights(self.round, stored.mean(stored)))
        self.round += 1
        return answers

    def judged(
        self, uplinks: Iterable[tuple[ClientId, LocalWeights]]
    ) -> Iterator[tuple[ClientId, tuple[LocalWeights, FloatArray]]]:
        """Yield the accepted messages with what their models predict (m, C); record the others, see `accepted`."""
        shape = (len(self.inputs), self.task.n_classes)

        def predicted(message: LocalWeights, source: str) -> tuple[LocalWeights, FloatArray]:
            self.model.load_weights(message.weights)
            return message, check_probabilities(self.model.predict_proba(self.inputs), shape=shape, source=source)

        return accepted(self, self.accepted(uplinks), predicted, "model")
