"""FedMD: federated learning via model distillation (Li & Wang 2019, arXiv 1910.03581).

Every client trains on its private set. Then, in every round, the clients predict a fresh part of the public set, the
server returns their mean, and each client first *digests* it (the same part, with the mean as soft labels) and then
*revisits* its private set.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from cosmosfl.clustering import MeanAccumulator
from cosmosfl.data.sets import FloatArray, InputArray, IntArray, PublicSet
from cosmosfl.methods.predictions import (
    PredictionClient,
    PredictionMethod,
    PredictionServer,
    PseudoLabels,
    TeacherLabels,
)
from cosmosfl.protocol import Client, ClientId, Task
from cosmosfl.randomness import stream

LEAST_PROBABILITY = 1e-6
"""Floor under probabilities before their logarithm is taken: a forest's zero counts for much, but not for infinity."""


class ConsensusMethod(PredictionMethod):
    """A method in which all clients get the same labels, on a fresh part of the public set in every round.

    Parameters
    ----------
    subset
        Public samples in a round: their number (all, if there are fewer), or a fraction of the set as a float.
    local_epochs, distill_epochs
        Epochs of a client on its private set, and on the part with the server's labels, in each round.
    """

    subset: Annotated[int, Field(strict=True, ge=1)] | Annotated[float, Field(strict=True, gt=0, le=1)] = 5000

    def drawn(self, public: PublicSet, task: Task, round: int) -> IntArray:
        """Return the indices of the public samples of a round, in ascending order.

        They follow from the seed of the run and the round, so that they need not be sent.
        """
        m = len(public)
        rng = stream(task.seed, "public subset", round)
        return np.sort(rng.choice(m, size=self.size_of_part(m), replace=False))

    def size_of_part(self, public: int) -> int:
        """Return the number of samples in a round, of a public set of this size."""
        wanted = self.subset if isinstance(self.subset, int) else max(1, int(np.rint(self.subset * public)))
        return min(wanted, public)

    def training_samples(self, private: int, public: int) -> int:
        """Return those of the private set and of the part of the public set."""
        return super().training_samples(private, self.size_of_part(public))

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return those of probabilities on the part of the public set."""
        return super().message_bytes(self.size_of_part(public), n_classes, weights)

    @abstractmethod
    def consensus(self, predictions: Iterable[FloatArray]) -> FloatArray:
        """Return the labels (s, C) that everyone gets, from the clients' predictions (s, C), which come one by one."""

    def server_side(self, public: PublicSet, task: Task) -> ConsensusServer:
        """Return what the server does."""
        return ConsensusServer(self, public, task)


class ConsensusClient(PredictionClient):
    """Predicts and distils the part of the public set that the round is about."""

    def __init__(self, method: ConsensusMethod, client: Client, public: PublicSet, task: Task) -> None:
        super().__init__(method, client, public, task)
        self.drawn = method.drawn

    def exchanged(self, round: int) -> InputArray:
        """Return the public inputs of this round."""
        inputs: InputArray = self.public.inputs[self.drawn(self.public, self.task, round)]
        return inputs


class ConsensusServer(PredictionServer):
    """Returns the consensus to everyone."""

    def __init__(self, method: ConsensusMethod, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        self.rows = len(method.drawn(public, task, 0))

    def step(self, uplinks: Iterable[tuple[ClientId, PseudoLabels]]) -> Mapping[ClientId, TeacherLabels]:
        """Return the consensus of those that were accepted."""
        consensus = self.method.consensus(probabilities for _, probabilities in self.accepted(uplinks))
        answer = TeacherLabels(self.round, consensus)
        self.round += 1
        return dict.fromkeys(self.clients, answer)


class FedMD(ConsensusMethod):
    """Exchange the mean of all predictions on a fresh part of the public set; digest it, then revisit the private set.

    The defaults are the paper's, which runs 20 rounds. Its server takes the mean of logits, and its clients fit that
    under the mean absolute error. Here learners of any kind have probabilities rather than logits, and each has its
    own way to distil them; for torch models it is the Kullback-Leibler divergence. So the default is the mean of
    probabilities; the softmax of the mean of logits is ``mean="geometric"``. Training on a labelled public set
    beforehand is left out: there are no labels.

    A round ends with the revisit, as in the paper, and that is the model to deploy; clients digest and revisit once in
    each of the ``rounds`` after the first training, and what is exchanged in the last one goes unused. But a revisit
    of few samples undoes much of what was digested. On scikit-learn's digits, ``deploy="digested"`` was better by 13 to
    17 points where clients had like data, and worse by 5 to 21 where two groups had classes of their own.

    Parameters
    ----------
    subset
        Public samples in a round: their number (all, if there are fewer), or a fraction of the set as a float.
    mean
        ``"arithmetic"``, or ``"geometric"``, brought back to sum to one.
    deploy
        Which model a client ends with: ``"revisited"``, or ``"digested"``, the same after another digestion.
    local_epochs
        Epochs of a revisit, and of the first training.
    distill_epochs
        Epochs of a digestion.
    """

    name: ClassVar[str] = "fedmd"
    summary: ClassVar[str] = "the mean of all predictions on a fresh part of the public set"

    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    deploy: Literal["revisited", "digested"] = "revisited"
    local_epochs: PositiveInt = 4
    distill_epochs: NonNegativeInt = 1

    def client_side(self, client: Client, public: PublicSet, task: Task) -> ConsensusClient:
        """Return what `client` does."""
        side = RevisitingClient if self.deploy == "revisited" else ConsensusClient
        return side(self, client, public, task)

    def consensus(self, predictions: Iterable[FloatArray]) -> FloatArray:
        """Return the plain mean: no client counts more than another, however much data it has."""
        return geometric_mean(predictions) if self.mean == "geometric" else arithmetic_mean(predictions)


class RevisitingClient(ConsensusClient):
    """Digests, revisits, predicts; whatever it ends with has revisited."""

    def step(self, message: TeacherLabels) -> PseudoLabels:
        """Digest the last consensus on the part that it is about, revisit the private set, predict the next part."""
        round = message.round
        if message.probabilities is not None:
            self.learn(message)
            round += 1
        self.fit(round, self.method.local_epochs)
        self.measure(round, "client_after_fit", "client")
        return PseudoLabels(round, self.predict(self.exchanged(round)))

    def finish(self, message: TeacherLabels) -> None:
        """Do nothing: a digestion would need another revisit, and the client would be trained more than others are."""


def arithmetic_mean(predictions: Iterable[FloatArray]) -> FloatArray:
    """Return the mean (s, C) of probabilities (s, C)."""
    mean = MeanAccumulator()
    for probabilities in predictions:
        mean.add(probabilities)
    return mean.result()


def geometric_mean(predictions: Iterable[FloatArray]) -> FloatArray:
    """Return the geometric mean (s, C) of probabilities (s, C), with rows that sum to one.

    That is the softmax of the mean of the logits, whatever constant was added to a sample's logits.
    """
    total, count = np.zeros(()), 0
    for probabilities in predictions:
        total = total + np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))
        count += 1
    return softmax(total / count)


def softmax(logits: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Return probabilities (s, C), float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: FloatArray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities
