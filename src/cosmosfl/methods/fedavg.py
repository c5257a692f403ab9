"""FedAvg: the mean of locally trained weights (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from typing import ClassVar

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.weights import GlobalWeights, LocalWeights, WeightClient, WeightMethod, WeightServer
from cosmosfl.protocol import Client, Task


class FedAvg(WeightMethod):
    """Every client trains the global model on its private set; the server takes the mean, weighted by samples.

    Parameters
    ----------
    local_epochs
        E, epochs on the private set in each round.
    """

    name: ClassVar[str] = "fedavg"
    summary: ClassVar[str] = "the mean of locally trained weights"

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedAvgClient:
        """Return what `client` does."""
        return FedAvgClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> WeightServer:
        """Return what the server does."""
        return WeightServer(public, task)


class FedAvgClient(WeightClient):
    """Trains the global model."""

    def step(self, message: GlobalWeights) -> LocalWeights:
        """Take over the global model, train it, return it."""
        if message.weights is not None:
            self.finish(message)
        round = self.take(message)
        self.fit(round, self.method.local_epochs)
        self.measure(round, "client_after_fit")
        return LocalWeights(round, self.learner.weights(), len(self.private))

    def finish(self, message: GlobalWeights) -> None:
        """Take over the global model: it is what the client would deploy."""
        self.take(message)
        self.measure(message.round, "client")
