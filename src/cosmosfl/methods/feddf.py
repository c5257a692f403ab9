"""FedDF: FedAvg, then distillation of the clients' ensemble at the server (Lin et al. 2020, arXiv 2006.07242)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import NonNegativeInt, PrivateAttr

from cosmosfl.data.sets import FloatArray, InputArray, PublicSet
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.methods.door import accepted
from cosmosfl.methods.fedavg import FedAvgClient
from cosmosfl.methods.fedmd import softmax
from cosmosfl.methods.stored import StoredWeights
from cosmosfl.methods.weights import (
    GlobalWeights,
    LocalWeights,
    WeightMethod,
    Weights,
    WeightServer,
    initial_model,
    same_architecture,
)
from cosmosfl.protocol import Client, ClientId, InvalidMessageError, Rejection, Task
from cosmosfl.randomness import stream


@dataclass(frozen=True)
class Architecture:
    """Clients whose weights can be averaged, and the learner of the first of them as it is before the run."""

    learner: TorchLearner
    clients: tuple[ClientId, ...]


class FedDF(WeightMethod):
    """Average the weights; then let the average learn, on the public set, what all clients together predict.

    The teacher is the softmax of the mean of the clients' logits, each client counting the same; the average itself is
    weighted by samples, as in FedAvg. There may be several architectures: the weights of each are averaged on their
    own, and every average learns from the ensemble of all clients (the paper's Algorithm 3). That is how knowledge
    passes from one architecture to another.

    The server trains as the clients' learner distils: with its optimiser, its learning rate and temperature for
    distillation, its batch size (those of the first client with the architecture). The paper has Adam at 1e-3 with
    cosine annealing, batches of 128, at most 10,000 steps, and stops when labelled validation data show no progress.
    The server here has no labels, so a number of epochs takes the place of that.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round.
    server_epochs
        Epochs of each average on the public set in each round; 0 is FedAvg.
    """

    name: ClassVar[str] = "feddf"
    summary: ClassVar[str] = "FedAvg, and the average learns what all clients together predict"

    server_epochs: NonNegativeInt = 5

    _architectures: tuple[Architecture, ...] = PrivateAttr(default=())

    def prepare(self, clients: Sequence[Client]) -> Self:
        """Return this method, knowing who has which architecture.

        Raises
        ------
        NotApplicableError
            If a client has no torch model, or clients of one architecture start from different weights.
        """
        groups: list[list[Client]] = []
        for client in clients:
            super().prepare([client])
            for group in groups:
                if same_architecture(_torch(group[0]), _torch(client)):
                    group.append(client)
                    break
            else:
                groups.append([client])
        for group in groups:
            super().prepare(group)
        prepared = self.model_copy()
        prepared._architectures = tuple(Architecture(_torch(g[0]), tuple(client.id for client in g)) for g in groups)
        return prepared

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedAvgClient:
        """Return what `client` does: the same as in FedAvg."""
        return FedAvgClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> FedDFServer:
        """Return what the server does."""
        return FedDFServer(self, public, task)


def _torch(client: Client) -> TorchLearner:
    assert isinstance(client.learner, TorchLearner)
    return client.learner


class FedDFServer(WeightServer):
    """Averages and distils. Attributes: `groups`, the clients of each architecture with their model."""

    def __init__(self, method: FedDF, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        self.groups = [Group(architecture, public, task, self.rejections) for architecture in method._architectures]
        self.own = {id: group for group in self.groups for id in group.clients}

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Average, let every average learn from the ensemble, return to each client that of its architecture."""
        total = np.zeros((len(self.public), self.task.n_classes))
        with StoredWeights() as stored:
            for client, message, logits in self.judged(uplinks):
                total += logits
                stored.add(client, message)
            for group in self.groups:
                members = [client for client in stored if client in group.clients]
                group.model.load_weights(stored.mean(members) if members else group.weights)
            teacher = softmax(total / len(stored))
        lessons = [
            Lesson(
                group.model,
                self.public.inputs,
                teacher,
                self.method.server_epochs,
                stream(self.task.seed, "server", group.clients[0], self.round),
            )
            for group in self.groups
        ]
        answers: dict[ClientId, GlobalWeights] = {}
        for group, model in zip(self.groups, self.map(teach, lessons), strict=True):
            answers |= dict.fromkeys(group.clients, group.end_round(model))
        self.round += 1
        return answers

    def judged(
        self, uplinks: Iterable[tuple[ClientId, LocalWeights]]
    ) -> Iterator[tuple[ClientId, LocalWeights, FloatArray]]:
        """Yield the messages that are like their client's architecture, with what they predict; record the others.

        Raises
        ------
        InvalidMessageError
            At the end, if there was none.
        """
        nobody = True
        for sender, uplink in uplinks:
            try:
                for client, (message, logits) in self.own[sender].judged([(sender, uplink)]):
                    nobody = False
                    yield client, message, logits
            except InvalidMessageError:
                continue  # it is recorded
        if nobody:
            reasons = "; ".join(rejection.reason for rejection in self.rejections if rejection.round == self.round)
            raise InvalidMessageError(f"round {self.round}: no message was accepted; {reasons}")


class Group(WeightServer):
    """The clients with one architecture: their model, and the door for what they send.

    Attributes
    ----------
    model
        The average, distilled. At the door, it is what was sent.
    weights
        Those of the model at the end of the last round; at first the initial ones.
    """

    def __init__(self, architecture: Architecture, public: PublicSet, task: Task, rejections: list[Rejection]) -> None:
        super().__init__(public, task)
        self.clients = architecture.clients
        self.rejections = rejections
        self.model = initial_model(architecture.learner, public, task)
        self.weights: Weights = self.model.weights()

    def judged(
        self, uplinks: Iterable[tuple[ClientId, LocalWeights]]
    ) -> Iterator[tuple[ClientId, tuple[LocalWeights, FloatArray]]]:
        """Yield the messages that are like the model, with the logits (m, C) that they give on the public set."""

        def predicted(message: LocalWeights, source: str) -> tuple[LocalWeights, FloatArray]:
            self.model.load_weights(message.weights)
            logits = public_logits(self.model, self.public.inputs)
            if not np.isfinite(logits).all():
                raise InvalidMessageError(f"{source} has logits that are NaN or infinity on the public set")
            return message, logits

        return accepted(self, self.accepted(uplinks), predicted, "model")

    def end_round(self, model: TorchLearner) -> GlobalWeights:
        """Keep the model of a round; return the answer to the clients."""
        self.model, self.weights = model, model.weights()
        answer = GlobalWeights(self.round, self.weights)
        self.round += 1
        return answer


@dataclass(frozen=True)
class Lesson:
    """What one average is to learn: all that a worker has to know of it."""

    model: TorchLearner
    inputs: InputArray
    teacher: FloatArray
    epochs: int
    rng: np.random.Generator


def teach(lesson: Lesson) -> TorchLearner:
    """Train an average on the public set and return it."""
    lesson.model.distill(lesson.inputs, lesson.teacher, epochs=lesson.epochs, rng=lesson.rng)
    return lesson.model


def public_logits(learner: TorchLearner, inputs: InputArray, *, batch_size: int = 1024) -> FloatArray:
    """Return a learner's logits (n, C), float32."""
    with torch.inference_mode():
        parts = [
            learner.logits(learner.module, learner.tensor(inputs[start : start + batch_size])).cpu()
            for start in range(0, len(inputs), batch_size)
        ]
    logits: FloatArray = torch.cat(parts).numpy()
    return logits
