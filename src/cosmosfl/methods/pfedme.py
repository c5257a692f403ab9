"""pFedMe: personalisation with Moreau envelopes (Dinh et al. 2020, arXiv 2006.08848).

The global model w minimises the mean of ``min_θ f_i(θ) + λ/2 · ‖θ - w‖²``; the θ of that inner problem is client i's
personal model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from typing import ClassVar

import numpy as np
import torch
from pydantic import PositiveInt

from cosmosfl.data.sets import PublicSet
from cosmosfl.distillation import batches
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.methods.weights import (
    GlobalWeights,
    LocalWeights,
    Positive,
    WeightClient,
    WeightMethod,
    WeightServer,
    parameters,
    proximal,
)
from cosmosfl.protocol import Client, Task


class PFedMe(WeightMethod):
    """Algorithm 1 of the paper.

    In every round θ and the client's copy of w start from the received w. For each mini-batch, K steps of
    ``θ ← θ - η_p · (∇f(θ) + λ · (θ - w))``, then one of ``w ← w - ηλ · (w - θ)``. The server takes
    ``w ← (1 - β) · w + β · mean``.

    Both steps are plain gradient descent with these rates, whatever the learner's optimiser and learning rate; batch
    size, augmentation and precision are the learner's. The mean is the plain one of the paper's algorithm and
    objective (the authors' code weights it by samples). θ goes on from batch to batch within a round, as in their code.
    A round costs `inner_steps` times the compute of FedAvg.

    The client deploys θ, as it is after its training; the answer of the server does not change it.

    Two defaults are not the paper's. Its λ = 15 and η = 0.005 are for 800 rounds of 20 mini-batches: the smaller of η
    and 1 / λ is what takes the place of the learning rate of w, and in ten rounds w hardly leaves its random start
    (emnist47, 10 clients, 7 rounds, on a held-out part of their training sets: 14%, where training alone gives 71% and
    these defaults 73%).

    Parameters
    ----------
    local_epochs
        Passes over the private set in each round, unless `batches` is given.
    batches
        R, mini-batches in each round; the paper has 20. By default as many as `local_epochs` passes have, so that
        this method sees as much data as any other.
    inner_steps
        K, steps of θ on each mini-batch.
    lam
        λ: how near θ stays to w.
    learning_rate
        η, of w. At ``1 / λ`` w goes all the way to θ.
    personal_learning_rate
        η_p, of θ.
    beta
        β, how far the server moves from the old w to the mean: 1 takes the mean, above 1 goes beyond it.
    """

    name: ClassVar[str] = "pfedme"
    summary: ClassVar[str] = "personal models from a Moreau envelope around a global one"
    # the clients' own learning rate has no effect
    tunable: ClassVar[tuple[str, ...]] = ("method.learning_rate", "method.personal_learning_rate")

    batches: PositiveInt | None = None
    inner_steps: PositiveInt = 5
    lam: Positive = 1.0
    learning_rate: Positive = 0.5
    personal_learning_rate: Positive = 0.09
    beta: Positive = 1.0

    def training_samples(self, private: int, public: int) -> int:
        """Return those of all inner steps, unless `batches` is given, whose size the learner knows."""
        return self.inner_steps * self.local_epochs * private

    def client_side(self, client: Client, public: PublicSet, task: Task) -> PFedMeClient:
        """Return what `client` does."""
        return PFedMeClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> PFedMeServer:
        """Return what the server does."""
        return PFedMeServer(public, task)


class PFedMeClient(WeightClient):
    """Solves for its personal model θ, which is `learner`, and lets w follow."""

    method: PFedMe

    def step(self, message: GlobalWeights) -> LocalWeights:
        """Alternate between θ and w over mini-batches; return w."""
        method = self.method
        round = self.take(message)
        received = parameters(self.learner.module)
        w = parameters(self.learner.module)
        inner = _with_sgd(self.learner, method.personal_learning_rate)
        rng = self.rng("client fit", round)
        for index in self.mini_batches(rng):
            inner.fit(
                self.private.inputs[index],
                self.private.labels[index],
                n_classes=self.task.n_classes,
                epochs=method.inner_steps,  # each is one step: the mini-batch is all the data
                rng=rng,
                penalty=proximal(method.lam, w),
            )
            for name, theta in parameters(inner.module).items():
                w[name] -= method.learning_rate * method.lam * (w[name] - theta)
        self.measure(round, "client_after_fit", "client")
        # The server's (1 - β) · w + β · mean is the mean of what each client can say itself, who knows the old w.
        sent = {name: (1 - method.beta) * received[name] + method.beta * moved for name, moved in w.items()}
        weights = self.learner.weights() | {name: tensor.cpu().numpy() for name, tensor in sent.items()}
        return LocalWeights(round, weights, len(self.private))

    def mini_batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the indices of each mini-batch of a round: pass after pass over the private set, shuffled."""
        passes: Iterable[None] = repeat(None, self.method.local_epochs) if self.method.batches is None else repeat(None)
        n, size = len(self.private), self.learner.batch_size
        every = chain.from_iterable(batches(n, size, rng) for _ in passes)
        return (index.numpy() for index in islice(every, self.method.batches))


def _with_sgd(learner: TorchLearner, learning_rate: float) -> TorchLearner:
    """Return a learner that trains the same module by plain gradient descent."""
    twin = copy.copy(learner)
    twin.optimizer = lambda parameters, rate: torch.optim.SGD(parameters, lr=rate)
    twin.learning_rate = learning_rate
    return twin


class PFedMeServer(WeightServer):
    """Averages what the clients send, each counting the same."""

    def importance(self, message: LocalWeights) -> float:
        """Return 1."""
        return 1.0
