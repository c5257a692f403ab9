"""Ditto: a personal model beside the global one, pulled towards it (Li et al. 2021, arXiv 2012.04221)."""

from __future__ import annotations

import copy
from typing import ClassVar

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.weights import (
    GlobalWeights,
    LocalWeights,
    Strength,
    WeightClient,
    WeightMethod,
    parameters,
    proximal,
)
from cosmosfl.protocol import Client, Task


class Ditto(WeightMethod):
    """FedAvg for a global model w; and at every client a personal model v: ``v ← v - η · (∇F(v) + λ · (v - w))``.

    w is what the client received in this round (not what it made of it), v begins as the initial w and never leaves
    the client. v goes as many steps as a client alone would, on the same batches, so that λ = 0 is local training; w
    goes as many again. A round costs twice the compute of FedAvg.

    The term is part of the loss, whatever the learner's optimiser makes of its gradient. With plain SGD, λ times the
    learning rate has to be below 2.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round, of w and of v.
    lam
        λ, the strength of the pull; 0 is local training. The paper tunes it for each data set.
    """

    name: ClassVar[str] = "ditto"
    summary: ClassVar[str] = "FedAvg, and personal models that are pulled towards it"

    lam: Strength = 1.0

    def training_samples(self, private: int, public: int) -> int:
        """Return those of the global and of the personal model."""
        return 2 * self.local_epochs * private

    def client_side(self, client: Client, public: PublicSet, task: Task) -> DittoClient:
        """Return what `client` does."""
        return DittoClient(self, client, public, task)


class DittoClient(WeightClient):
    """Trains a copy of the global model to send, and its own model v, which is `learner`."""

    method: Ditto

    def step(self, message: GlobalWeights) -> LocalWeights:
        """Train the received w for the others, and v for the client; return w."""
        shared = copy.deepcopy(self.learner)
        round = self.take(message, shared)
        received = parameters(shared.module)
        self.fit(round, self.method.local_epochs, learner=shared)
        self.build(self.learner)
        self.fit(round, self.method.local_epochs, penalty=proximal(self.method.lam, received))
        # The answer to this round's w will not change v, so this is also what the client would deploy after it.
        self.measure(round, "client_after_fit", "client")
        return LocalWeights(round, shared.weights(), len(self.private))
