"""FedCT: federated co-training with hard labels (Abourayya et al. 2023, arXiv 2310.05696).

The clients train on their private sets. Every b rounds they send the class that they predict for each public sample,
and the server returns the class that most of them chose. From then on the clients train on their private sets and the
public set with these labels together, as if all labels were true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.door import accepted
from cosmosfl.protocol import Client, ClientId, ClientSide, InvalidMessageError, Message, Method, ServerSide, Task

Classes = npt.NDArray[np.unsignedinteger[Any]]
"""A class for each public sample, (m,), in the smallest type that has room for C: that number says there is none."""


@dataclass(frozen=True, eq=False)
class ConsensusLabels(Message):
    """Server to client. The clients' consensus, to train on from this `round` on; None leaves everything as it is."""

    round: int
    labels: Classes | None


@dataclass(frozen=True, eq=False)
class HardLabels(Message):
    """Client to server. The class of each public sample, in this `round`; None in rounds without an exchange."""

    round: int
    labels: Classes | None


class FedCT(Method):
    """Train on private data and on public data with the label that most clients voted for.

    As training is joint, the model after it is the one to deploy. What is exchanged after the last round goes unused.
    Not even a model's confidence is sent, and a sample costs one byte, or two from 256 classes on.

    Parameters
    ----------
    period
        b, the number of rounds from one vote to the next.
    quorum
        Fraction of the votes that a class needs at least, in [0, 1]; samples where none has it are left out. 0 is the
        paper's vote, which always has a winner.
    local_epochs
        Epochs on the private and the labelled public samples together, in each round.
    """

    name: ClassVar[str] = "fedct"
    summary: ClassVar[str] = "clients vote on hard labels of the public set, and train on them as on their own"

    period: PositiveInt = 1
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.0

    def training_samples(self, private: int, public: int) -> int:
        """Return those of both sets, as far as the vote has a winner everywhere."""
        return self.local_epochs * (private + public)

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return one or two for a public sample, in a round with a vote."""
        return public * np.min_scalar_type(n_classes).itemsize

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedCTClient:
        """Return what `client` does."""
        return FedCTClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> FedCTServer:
        """Return what the server does."""
        return FedCTServer(self, public, task)

    def exchanges_in(self, round: int) -> bool:
        """Say whether labels are sent at the end of this round."""
        return (round + 1) % self.period == 0


class FedCTClient(ClientSide[ConsensusLabels, HardLabels]):
    """Trains on what it holds and what was agreed on. Its memory holds the labels of the last vote."""

    def __init__(self, method: FedCT, client: Client, public: PublicSet, task: Task) -> None:
        super().__init__(client, public, task)
        self.method = method

    def step(self, message: ConsensusLabels) -> HardLabels:
        """Take over the labels, train, vote."""
        round, C = message.round, self.task.n_classes
        if message.labels is not None:
            self.memory["consensus"] = check_classes(
                message.labels, len(self.public), C + 1, "server: labels of the consensus"
            )
        self.co_train(round)
        self.measure(round, "client_after_fit", "client")
        if not self.method.exchanges_in(round):
            return HardLabels(round, None)
        labels = self.predict(self.public.inputs).argmax(axis=1)
        return HardLabels(round, labels.astype(np.min_scalar_type(C)))

    def co_train(self, round: int) -> None:
        """Train on the private set and, once there was a vote, the public samples that have a label."""
        inputs, labels = self.private.inputs, self.private.labels
        if (consensus := self.memory.get("consensus")) is not None:
            agreed = np.flatnonzero(consensus < self.task.n_classes)
            inputs = np.concatenate([inputs, self.public.inputs[agreed]])
            labels = np.concatenate([labels, consensus[agreed].astype(np.int64)])
        self.learner.fit(
            inputs,
            labels,
            n_classes=self.task.n_classes,
            epochs=self.method.local_epochs,
            rng=self.rng("client fit", round),
        )


class FedCTServer(ServerSide[ConsensusLabels, HardLabels]):
    """Counts votes."""

    def __init__(self, method: FedCT, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, ConsensusLabels]:
        """Let everyone train alone."""
        self.clients = tuple(clients)
        return dict.fromkeys(self.clients, ConsensusLabels(self.round, None))

    def join(self, client: ClientId) -> ConsensusLabels:
        """Let in a client that comes later: it trains alone until the next vote."""
        self.clients = (*self.clients, client)
        return ConsensusLabels(self.round, None)

    def step(self, uplinks: Iterable[tuple[ClientId, HardLabels]]) -> Mapping[ClientId, ConsensusLabels]:
        """Return the consensus to everyone, or let them go on with the last one."""
        m, C = len(self.public), self.task.n_classes
        voting = self.method.exchanges_in(self.round)

        def check(message: HardLabels, source: str) -> Classes | None:
            return check_classes(message.labels, m, C, source) if voting else None

        votes = np.zeros((m, C), np.int32)
        for _, labels in accepted(self, uplinks, check, "labels"):
            if labels is not None:
                votes[np.arange(m), labels] += 1
        self.round += 1
        answer = ConsensusLabels(self.round, consensus_of(votes, self.method.quorum) if voting else None)
        return dict.fromkeys(self.clients, answer)


def consensus_of(votes: npt.NDArray[np.integer[Any]], quorum: float) -> Classes:
    """Return the winner of each vote, (m,), from the number of votes for each class, (m, C).

    The class with most votes wins (ties: the lowest). Where it has less than the fraction `quorum` of all votes, the
    result is C.
    """
    m, C = votes.shape
    winners = votes.argmax(axis=1)
    enough = votes[np.arange(m), winners] >= quorum * votes.sum(axis=1) - 1e-9  # 0.28 * 25 is above 7
    consensus: Classes = np.where(enough, winners, C).astype(np.min_scalar_type(C))
    return consensus


def check_classes(labels: object, m: int, limit: int, source: str) -> Classes:
    """Check hard labels at the door.

    Raises
    ------
    InvalidMessageError
        If they are not unsigned whole numbers below `limit`, of shape (m,).
    """
    if not isinstance(labels, np.ndarray):
        raise InvalidMessageError(f"{source}: {type(labels).__name__}; expected an array ({m},)")
    if labels.shape != (m,):
        raise InvalidMessageError(f"{source}: shape {labels.shape}; expected ({m},), one class per public sample")
    if labels.dtype.kind != "u":
        raise InvalidMessageError(f"{source}: dtype {labels.dtype}; expected unsigned whole numbers")
    if labels.max() >= limit:
        raise InvalidMessageError(f"{source}: class {labels.max()}; expected 0..{limit - 1}")
    return labels
