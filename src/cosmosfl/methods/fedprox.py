"""FedProx: FedAvg with a proximal term in the local loss (Li et al. 2020, arXiv 1812.06127)."""

from __future__ import annotations

from typing import ClassVar

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedavg import FedAvg, FedAvgClient
from cosmosfl.methods.weights import Strength, parameters, proximal
from cosmosfl.protocol import Client, Task


class FedProx(FedAvg):
    """FedAvg whose clients are held near the global model: the local loss is ``F(w) + μ/2 · ‖w - w_global‖²``.

    The paper tunes μ for each data set, over 0.001, 0.01, 0.1 and 1. Its clients may do different amounts of work; here
    all do the same.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round.
    mu
        μ; 0 is FedAvg.
    """

    name: ClassVar[str] = "fedprox"
    summary: ClassVar[str] = "FedAvg whose clients are held near the global model"

    mu: Strength = 0.01

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedProxClient:
        """Return what `client` does."""
        return FedProxClient(self, client, public, task)


class FedProxClient(FedAvgClient):
    """Trains the global model without going far from it."""

    method: FedProx

    def train(self, round: int) -> None:
        """Train on the private set, with the proximal term."""
        received = parameters(self.learner.module)
        self.fit(round, self.method.local_epochs, penalty=proximal(self.method.mu, received))
