"""FedRep: a shared body under heads of one's own (Collins et al. 2021, arXiv 2102.07078)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedavg import FedAvg, FedAvgClient
from cosmosfl.protocol import Client, Task


class FedRep(FedAvg):
    """In every round each client trains its own head first, on the body as it came, then the body under that head.

    Bodies are averaged; heads stay where they are, and go on from round to round. The head is the last layer
    (`cosmosfl.methods.weights.head_of`).

    Parameters
    ----------
    local_epochs
        Epochs of the body on the private set in each round. The paper has 1 or 5, depending on the data set; here it is
        the budget that all methods share, so that no body learns for fewer epochs than another.
    head_epochs
        Epochs of the head in each round, before those. They come on top; with the body frozen they are cheaper.
    """

    name: ClassVar[str] = "fedrep"
    summary: ClassVar[str] = "the mean of all bodies; heads stay with the clients"

    head_epochs: PositiveInt = 10

    def training_samples(self, private: int, public: int) -> int:
        """Return those of the body and of the head."""
        return (self.local_epochs + self.head_epochs) * private

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedRepClient:
        """Return what `client` does."""
        return FedRepClient(self, client, public, task)


class FedRepClient(FedAvgClient):
    """Trains its head, then the body."""

    method: FedRep

    def is_shared(self, name: str) -> bool:
        """Share the body."""
        return name not in self.head

    def train(self, round: int) -> None:
        """Train the head with the body frozen, then the body with the head frozen."""
        self.fit(round, self.method.head_epochs, purpose="client fit head", trainable=self.head.__contains__)
        self.fit(round, self.method.local_epochs, trainable=self.is_shared)
