"""pFedHN: a hypernetwork makes every client's weights (Shamsian et al. 2021, arXiv 2103.04628).

The server holds a network h with parameters φ and for every client i an embedding v_i. Client i's model is
``θ_i = h(v_i; φ)``: what is alike in the clients is in φ, what is different in a few numbers each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedavg import FedAvgClient
from cosmosfl.methods.stored import StoredWeights
from cosmosfl.methods.weights import (
    GlobalWeights,
    LocalWeights,
    Positive,
    WeightMethod,
    Weights,
    WeightServer,
    parameters,
)
from cosmosfl.protocol import Client, ClientId, Task
from cosmosfl.randomness import draw_seed, stream

HIDDEN_SIZE, HIDDEN_LAYERS = 100, 3
MOMENTUM, CLIP_NORM = 0.9, 50.0


class PFedHN(WeightMethod):
    """In every round each client trains ``θ_i = h(v_i; φ)`` to θ̃_i and returns it; the server learns from the change.

    φ and v_i move by ``(∂θ_i / ∂(φ, v_i))ᵀ · Δ`` with ``Δ = θ_i - θ̃_i``, one client a step, by SGD with momentum 0.9
    and the norm of the gradient clipped at 50. h has the form of the authors' code, three hidden layers of 100 and one
    linear map from there to all parameters of the model. Clients never hold φ or an embedding, and deploy h(v_i) as it
    comes.

    In the paper one client at a time gets its weights, and the server makes its step before the next one does, for
    5,000 steps. Here all clients of a round begin together, there are few rounds, and three things are different:

    - The θ_i of Δ is the current h(v_i), not what was sent: the steps that were made in between, for other clients,
      have moved it. In the paper both are the same. Each step is then one of least squares towards θ̃_i; with Δ as it
      was when it was sent, the steps of a round add up and go too far.
    - The server takes the answers of a round several times (`passes`), at a lower rate. With one pass h
      stays behind; at the paper's rate the clients that come last move it away from the others.
    - At the beginning h gives every client the initial weights that all methods start from (its last layer has these
      as bias, and zeros as weights), so these need not be sent. The authors begin with noise, of a scale that has
      nothing to do with the model's.

    Only parameters go through h. Buffers, such as the running means of batch normalisation, stay with each client.

    h has 101 parameters for each of the model's, and the server keeps two more numbers for each of those, momentum and
    gradient: 1.2 kB a parameter, 190 MB for the 156,000 of ``cnn-s`` on 28×28 pixels with 47 classes, and 3.4 GB
    for 2.8 million. A step goes through all of that. What the clients return is kept in files for the passes.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round, the budget that all methods share; the paper has 50 mini-batches.
    inner_learning_rate
        Of the clients' training, by SGD with momentum 0.9 whatever the learner's optimiser and learning rate. The
        paper's is 0.005.
    learning_rate
        Of φ and the embeddings. The paper's is 0.01.
    passes
        Steps of the server for each answer, in as many turns through all clients; the paper has 1.
    embedding_size
        Of v_i; by default the authors' ``⌊1 + N / 4⌋`` for N clients.
    """

    name: ClassVar[str] = "pfedhn"
    summary: ClassVar[str] = "a hypernetwork at the server makes a model for each client"
    # The clients' own learning rate has no effect, and the server's has its best value at another factor.
    tunable: ClassVar[tuple[str, ...]] = ("method.inner_learning_rate",)

    inner_learning_rate: Positive = 0.02
    learning_rate: Positive = 0.005
    passes: PositiveInt = 10
    embedding_size: PositiveInt | None = None

    def client_side(self, client: Client, public: PublicSet, task: Task) -> PFedHNClient:
        """Return what `client` does."""
        return PFedHNClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> PFedHNServer:
        """Return what the server does."""
        return PFedHNServer(self, public, task)


class PFedHNClient(FedAvgClient):
    """Trains what it received; what it deploys is what it received."""

    method: PFedHN

    def is_shared(self, name: str) -> bool:
        """Share the parameters; buffers stay."""
        return name in dict(self.learner.module.named_parameters())

    def train(self, round: int) -> None:
        """Train on the private set by SGD at the inner rate."""
        inner = copy.copy(self.learner)  # of the same module
        inner.optimizer, inner.learning_rate = "sgd", self.method.inner_learning_rate
        self.fit(round, self.method.local_epochs, learner=inner)


class HyperNetwork(nn.Module):
    """h and the embeddings: maps the number of a client to a model's parameters, one after another (m,).

    Parameters
    ----------
    n_clients, embedding_size
        N clients, and the size of v_i.
    initial
        Parameters (m,) that all clients begin with.
    """

    def __init__(self, n_clients: int, embedding_size: int, initial: Tensor) -> None:
        super().__init__()
        self.outer: Tensor
        self.embeddings = nn.Embedding(n_clients, embedding_size)
        layers: list[nn.Module] = [nn.Linear(embedding_size, HIDDEN_SIZE)]
        for _ in range(HIDDEN_LAYERS):
            layers += [nn.ReLU(), nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)]
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(HIDDEN_SIZE, len(initial))
        with torch.no_grad():
            self.output.weight.zero_()
            self.output.bias.copy_(initial)
        self.register_buffer("outer", torch.empty_like(self.output.weight.detach()))

    def forward(self, client: int) -> Tensor:
        """Return θ of a client."""
        theta: Tensor = self.output(self.features(self.embeddings.weight[client]))
        return theta

    def backward(self, client: int, returned: Tensor) -> None:
        """Set the gradients to the vector-Jacobian product of θ, a client's, with Δ = θ - returned (m,).

        It is what autograd would say, at half the time: the gradient of the last layer is nearly all there is, and is
        written to the same memory in each step.
        """
        self.zero_grad()
        features = self.features(self.embeddings.weight[client])
        with torch.no_grad():
            delta = self.output(features) - returned
            self.output.weight.grad = torch.outer(delta, features, out=self.outer)
            self.output.bias.grad = delta
        features.backward(delta @ self.output.weight.detach())


class PFedHNServer(WeightServer):
    """Makes the clients' weights, and learns from what becomes of them.

    Attributes
    ----------
    weights
        The initial parameters, which what comes has to be like. There is no global model.
    network
        The hypernetwork, once the clients are known.
    """

    weights: Weights

    def __init__(self, method: PFedHN, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.method = method
        model = method.initial_model(public, task)
        self.device = model.device
        self.weights = {name: tensor.cpu().numpy() for name, tensor in parameters(model.module).items()}

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, GlobalWeights]:
        """Make the hypernetwork; let everyone begin with the shared initial weights, which it gives to all."""
        size = self.method.embedding_size or 1 + len(clients) // 4
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(stream(self.task.seed, "hypernetwork")))
            self.network = HyperNetwork(len(clients), size, self.flat(self.weights).cpu()).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=self.method.learning_rate, momentum=MOMENTUM, fused=True
        )
        return super().open(clients)

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Learn from every answer in turn, several times; return to each client, heard or not, what h makes for it."""
        with StoredWeights() as stored:
            for client, message in self.accepted(uplinks):
                stored.add(client, message)
            for _ in range(self.method.passes):
                for client, weights in stored.items():
                    self.learn(self.clients.index(client), self.flat(weights))
        answers = {client: GlobalWeights(self.round, self.made(n)) for n, client in enumerate(self.clients)}
        self.round += 1
        return answers

    def learn(self, client: int, returned: Tensor) -> None:
        """Make one step for a client that returned these parameters (m,)."""
        self.network.backward(client, returned)
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.step()

    def made(self, client: int) -> Weights:
        """Return what h makes for a client, by name."""
        with torch.no_grad():
            theta = self.network(client).cpu()
        parts = theta.split([array.size for array in self.weights.values()])
        return {
            name: part.reshape(array.shape).numpy().astype(array.dtype, copy=False)
            for (name, array), part in zip(self.weights.items(), parts, strict=True)
        }

    def flat(self, weights: Weights) -> Tensor:
        """Return parameters one after another (m,), on the device of the hypernetwork."""
        return torch.cat([torch.from_numpy(weights[name]).reshape(-1) for name in self.weights]).float().to(self.device)
