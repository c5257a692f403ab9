"""FedAvg: the mean of locally trained weights (McMahan et al. 2017, arXiv 1602.05629)."""

from __future__ import annotations

from typing import ClassVar

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.weights import GlobalWeights, LocalWeights, WeightClient, WeightMethod
from cosmosfl.protocol import Client, Task


class FedAvg(WeightMethod):
    """Every client trains the global model on its private set; the server takes the mean, weighted by samples.

    All clients take part in every round, and all start from the same weights, as the paper found necessary. Running
    means of batch normalisation are averaged like parameters. The optimiser is the learner's and is made anew in each
    round; the paper's is SGD.

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


class FedAvgClient(WeightClient):
    """Trains the global model. Methods that differ in how, or in what of it they share, override just that."""

    def step(self, message: GlobalWeights) -> LocalWeights:
        """Take over the global model, train it, return it."""
        if message.weights is not None and self.test is not None:
            self.finish(message)  # what would be deployed now, for the measurement only
        round = self.take(message)
        self.train(round)
        self.measure(round, "client_after_fit")
        return LocalWeights(round, self.outgoing(), len(self.private))

    def train(self, round: int) -> None:
        """Train on the private set."""
        self.fit(round, self.method.local_epochs)

    def finish(self, message: GlobalWeights) -> None:
        """Take over the global model: it is what the client would deploy."""
        self.take(message)
        self.measure(message.round, "client")
