"""What methods that exchange weights share: two messages, the client's start, the server's mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from cosmosfl.data.sets import PublicSet
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.protocol import (
    Client,
    ClientId,
    ClientSide,
    InvalidMessageError,
    Message,
    Method,
    NotApplicableError,
    Rejection,
    ServerSide,
    Task,
)
from cosmosfl.randomness import stream

Weights = Mapping[str, npt.NDArray[Any]]
"""Parameters and buffers of a module, by name."""


@dataclass(frozen=True, eq=False)
class GlobalWeights(Message):
    """Server to client. The global model of the last `round`; None in the message that opens a run."""

    round: int
    weights: Weights | None


@dataclass(frozen=True, eq=False)
class LocalWeights(Message):
    """Client to server. What the client trained in this `round`, and on how many samples."""

    round: int
    weights: Weights
    samples: int


class WeightMethod(Method):
    """A method that needs one architecture: every client a `TorchLearner` of the same model."""

    def prepare(self, clients: Sequence[Client]) -> Self:
        """Check that the clients' models are of one architecture.

        Raises
        ------
        NotApplicableError
            If not.
        """
        first = clients[0].learner
        for client in clients:
            learner = client.learner
            if not isinstance(learner, TorchLearner):
                raise NotApplicableError(
                    f"method {self.name!r} shares weights: client {client.id!r} has a {type(learner).__name__}; "
                    "expected a torch model at every client"
                )
            assert isinstance(first, TorchLearner)
            if not _same_architecture(first, learner):
                raise NotApplicableError(
                    f"method {self.name!r} shares weights: client {clients[0].id!r} has {first!r} and client "
                    f"{client.id!r} has {learner!r}; expected one architecture"
                )
        return self


def _same_architecture(a: TorchLearner, b: TorchLearner) -> bool:
    if isinstance(a.model, nn.Module) and isinstance(b.model, nn.Module):
        shapes = [{k: v.shape for k, v in learner.model.state_dict().items()} for learner in (a, b)]  # type: ignore[union-attr]
        return shapes[0] == shapes[1]
    return a.model == b.model


class WeightClient(ClientSide[GlobalWeights, LocalWeights]):
    """The client's side of such methods. `learner` is the model that the client would deploy."""

    learner: TorchLearner

    def __init__(self, method: WeightMethod, client: Client, public: PublicSet, task: Task) -> None:
        super().__init__(client, public, task)
        self.method = method

    def build(self, learner: TorchLearner) -> None:
        """Make the learner's module, if there is none yet, with the initial weights that all clients share.

        They are drawn from the seed, so they need not be sent.
        """
        rng = stream(self.task.seed, "shared initialisation")
        learner.build(self.private.inputs.shape[1:], self.task.n_classes, rng)

    def take(self, message: GlobalWeights) -> int:
        """Load the global weights into the learner, and return the round that begins."""
        self.build(self.learner)
        if message.weights is None:
            return message.round
        self.learner.load_weights(message.weights)
        return message.round + 1


class WeightServer(ServerSide[GlobalWeights, LocalWeights]):
    """Averages what the clients send. Attributes: `weights`, the global model after the last round."""

    def __init__(self, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.clients: tuple[ClientId, ...] = ()
        self.weights: Weights | None = None

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, GlobalWeights]:
        """Let everyone begin with the shared initial weights."""
        self.clients = tuple(clients)
        return dict.fromkeys(clients, GlobalWeights(0, None))

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Return the mean to everyone."""
        self.weights = mean_weights((m.weights, m.samples) for _, m in self.accepted(uplinks))
        answer = GlobalWeights(self.round, self.weights)
        self.round += 1
        return dict.fromkeys(self.clients, answer)

    def accepted(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Iterable[tuple[ClientId, LocalWeights]]:
        """Yield the messages that are finite, of this round and like the first in names and shapes; record others.

        Raises
        ------
        InvalidMessageError
            At the end, if there was none.
        """
        shapes: dict[str, tuple[int, ...]] | None = None
        for client, message in uplinks:
            try:
                found = _checked_shapes(message, self.round)
                if shapes is not None and found != shapes:
                    raise InvalidMessageError("names or shapes differ from those of the other clients")
            except InvalidMessageError as error:
                self.rejections.append(Rejection(self.round, client, f"client {client!r}: weights: {error}"))
                continue
            shapes = found
            yield client, message
        if shapes is None:
            raise InvalidMessageError(f"round {self.round}: no message was accepted")


def _checked_shapes(message: LocalWeights, round: int) -> dict[str, tuple[int, ...]]:
    if message.round != round:
        raise InvalidMessageError(f"of round {message.round}; expected {round}")
    if message.samples < 1:
        raise InvalidMessageError(f"samples: {message.samples}; expected at least 1")
    if bad := [name for name, array in message.weights.items() if not np.isfinite(array).all()]:
        raise InvalidMessageError(f"NaN or infinity in {', '.join(bad)}")
    return {name: array.shape for name, array in message.weights.items()}


def mean_weights(members: Iterable[tuple[Weights, float]]) -> dict[str, npt.NDArray[Any]]:
    """Return the mean of weights, each weighted by its number; whole numbers (counters) are those of the largest.

    The members are read once; only the sums are in memory. Sums are in double precision.
    """
    sums: dict[str, npt.NDArray[Any]] = {}
    kinds: dict[str, np.dtype[Any]] = {}
    total = 0.0
    for weights, weight in members:
        total += weight
        for name, array in weights.items():
            kinds[name] = array.dtype
            if array.dtype.kind == "f":
                sums[name] = sums.get(name, 0) + weight * array.astype(np.float64)
            else:
                sums[name] = np.maximum(sums.get(name, array), array)
    return {
        name: (value / total).astype(kinds[name]) if kinds[name].kind == "f" else value for name, value in sums.items()
    }


def head_of(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of the head: the layer that is defined last and has any of its own."""
    layers = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    last = layers[-1]
    return frozenset(f"{last}.{name}" if last else name for name, _ in module.get_submodule(last).named_parameters())
