"""What methods that exchange weights share: two messages, the client's start, the server's mean."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from cosmosfl.data.sets import PublicSet
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.methods.door import accepted
from cosmosfl.protocol import (
    Client,
    ClientId,
    ClientSide,
    InvalidMessageError,
    Message,
    Method,
    NotApplicableError,
    NotFittedError,
    ServerSide,
    Task,
)
from cosmosfl.randomness import stream

Weights = Mapping[str, npt.NDArray[Any]]
"""Parameters and buffers of a module, by name."""
Penalty = Callable[[nn.Module], Tensor]
"""penalty(module) -> a scalar, added to the loss of every batch"""
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A hyper-parameter: how much a term of the loss weighs; 0 leaves it out."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A hyper-parameter: a rate or a strength that cannot be 0."""


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

    _learner: TorchLearner | None = PrivateAttr(default=None)

    def prepare(self, clients: Sequence[Client]) -> Self:
        """Return this method, knowing the clients' model; it has to be of one architecture and one initialisation.

        Raises
        ------
        NotApplicableError
            If not.
        """
        first = clients[0]
        for client in clients:
            learner, reference = client.learner, first.learner
            if not isinstance(learner, TorchLearner):
                raise NotApplicableError(
                    f"method {self.name!r} shares weights: client {client.id!r} has a {type(learner).__name__}; "
                    "expected a torch model at every client"
                )
            assert isinstance(reference, TorchLearner)
            if not same_architecture(reference, learner):
                raise NotApplicableError(
                    f"method {self.name!r} shares weights: client {first.id!r} has {reference!r} and client "
                    f"{client.id!r} has {learner!r}; expected one architecture (the same name, the same factory "
                    "object, or modules with parameters of the same names and shapes)"
                )
            if not _same_start(reference, learner):
                raise NotApplicableError(
                    f"method {self.name!r} shares weights: the models of clients {first.id!r} and {client.id!r} start "
                    "from different weights; expected a name or a factory, to be initialised alike, or modules with "
                    "the same weights"
                )
        assert isinstance(first.learner, TorchLearner)
        prepared = self.model_copy()
        prepared._learner = copy.deepcopy(first.learner)
        return prepared

    def initial_model(self, public: PublicSet, task: Task) -> TorchLearner:
        """Return what every client starts from, for a server that needs a model of its own; `prepare` comes first."""
        assert self._learner is not None, "prepare comes first"
        return initial_model(self._learner, public, task)

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return those of the model."""
        return weights

    def server_side(self, public: PublicSet, task: Task) -> WeightServer:
        """Return what the server does."""
        return WeightServer(public, task)


def initial_model(learner: TorchLearner, public: PublicSet, task: Task) -> TorchLearner:
    """Return a copy of a client's learner with the weights that clients start from (`WeightClient.build`)."""
    model = copy.deepcopy(learner)
    model.build(public.inputs.shape[1:], task.n_classes, stream(task.seed, "shared initialisation"))
    return model


def _given_module(learner: TorchLearner) -> nn.Module | None:
    """Return the module that a learner starts from, if it is there already."""
    try:
        return learner.module
    except NotFittedError:
        return learner.model if isinstance(learner.model, nn.Module) else None


def same_architecture(a: TorchLearner, b: TorchLearner) -> bool:
    """Say whether the weights of two learners can be averaged: one name or factory, or the same names and shapes."""
    modules = _given_module(a), _given_module(b)
    if modules[0] is None or modules[1] is None:
        return a.model == b.model
    shapes = [{name: array.shape for name, array in module.state_dict().items()} for module in modules if module]
    return shapes[0] == shapes[1]


def _same_start(a: TorchLearner, b: TorchLearner) -> bool:
    modules = _given_module(a), _given_module(b)
    if modules[0] is None or modules[1] is None:
        return modules[0] is modules[1]  # both are still to be initialised
    ours, theirs = (module.state_dict() for module in modules if module)
    return all(torch.equal(array.cpu(), theirs[name].cpu()) for name, array in ours.items())


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

    def take(self, message: GlobalWeights, learner: TorchLearner | None = None) -> int:
        """Load the global weights into a learner, by default the client's own; return the round that begins."""
        learner = learner or self.learner
        self.build(learner)
        if message.weights is None:
            return message.round
        learner.load_weights(message.weights)
        return message.round + 1

    def fit(
        self,
        round: int,
        epochs: int,
        *,
        learner: TorchLearner | None = None,
        purpose: str = "client fit",
        penalty: Penalty | None = None,
        trainable: Callable[[str], bool] | None = None,
    ) -> None:
        """Train on the private set.

        Parameters
        ----------
        learner
            By default the client's own.
        purpose
            Names the random stream: what has the same purpose in the same round sees the same batches.
        penalty, trainable
            As `TorchLearner.fit` takes them.
        """
        (learner or self.learner).fit(
            self.private.inputs,
            self.private.labels,
            n_classes=self.task.n_classes,
            epochs=epochs,
            rng=self.rng(purpose, round),
            penalty=penalty,
            trainable=trainable,
        )

    def is_shared(self, name: str) -> bool:
        """Say whether the parameter or buffer of this name leaves the client: all do, unless a method differs."""
        return True

    def outgoing(self) -> dict[str, npt.NDArray[Any]]:
        """Return those of the learner's weights that leave the client."""
        return {name: array for name, array in self.learner.weights().items() if self.is_shared(name)}

    @cached_property
    def head(self) -> frozenset[str]:
        """Names of the parameters of the head, for methods that treat it and the rest, the body, differently.

        Raises
        ------
        NotApplicableError
            If there is nothing else.
        """
        head, module = head_of(self.learner.module), self.learner.module
        if head.issuperset(name for name, _ in module.named_parameters()):
            raise NotApplicableError(
                f"method {self.method.name!r} shares the body of a model, all but its last layer: {self.learner!r} "
                "has one layer only; expected at least two"
            )
        return head


class WeightServer(ServerSide[GlobalWeights, LocalWeights]):
    """Averages what the clients send. Attributes: `weights`, the global model after the last round."""

    def __init__(self, public: PublicSet, task: Task) -> None:
        super().__init__(public, task)
        self.weights: Weights | None = None

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, GlobalWeights]:
        """Let everyone begin with the shared initial weights."""
        self.clients = tuple(clients)
        return dict.fromkeys(clients, GlobalWeights(0, None))

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Return the mean to everyone."""
        self.weights = mean_weights((m.weights, self.importance(m)) for _, m in self.accepted(uplinks))
        answer = GlobalWeights(self.round, self.weights)
        self.round += 1
        return dict.fromkeys(self.clients, answer)

    def importance(self, message: LocalWeights) -> float:
        """Return how much a client counts in the mean: as much as it has samples."""
        return message.samples

    def accepted(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Iterable[tuple[ClientId, LocalWeights]]:
        """Yield the messages that are finite, of this round and like those before in names, shapes and types.

        Those before are the global model of the last round, or else the first message. Others are recorded.

        Raises
        ------
        InvalidMessageError
            At the end, if there was none.
        """
        agreed = None if self.weights is None else _layout(self.weights)

        def check(message: LocalWeights, source: str) -> LocalWeights:
            nonlocal agreed
            layout = _checked_layout(message, source)
            if agreed is not None and layout != agreed:
                raise InvalidMessageError(f"{source}: {_difference(layout, agreed)}")
            agreed = layout
            return message

        return accepted(self, uplinks, check, "weights")


Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


def _layout(weights: Weights) -> Layout:
    return {name: (array.shape, array.dtype) for name, array in weights.items()}


def _checked_layout(message: LocalWeights, source: str) -> Layout:
    if not message.samples >= 1:
        raise InvalidMessageError(f"{source}: samples: {message.samples}; expected at least 1")
    for name, array in message.weights.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            found = getattr(array, "dtype", type(array).__name__)
            raise InvalidMessageError(f"{source}: {name}: {found}; expected numbers")
    if bad := [name for name, array in message.weights.items() if not np.isfinite(array).all()]:
        raise InvalidMessageError(f"{source}: NaN or infinity in {', '.join(bad)}")
    return _layout(message.weights)


def _difference(found: Layout, agreed: Layout) -> str:
    name = min(name for name in found.keys() | agreed.keys() if found.get(name) != agreed.get(name))
    return f"{name}: {_described(found.get(name))}; expected {_described(agreed.get(name))}"


def _described(entry: tuple[tuple[int, ...], np.dtype[Any]] | None) -> str:
    return "nothing" if entry is None else f"{entry[1]} of shape {entry[0]}"


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
    means = {name: value / total if kinds[name].kind == "f" else value for name, value in sums.items()}
    # numpy makes scalars of what is computed from arrays without dimensions, such as the counter of batch normalisation
    return {name: np.asarray(value, kinds[name]) for name, value in means.items()}


def head_of(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters of the head: the layer that is defined last and has any of its own."""
    layers = [name for name, layer in module.named_modules() if any(True for _ in layer.parameters(recurse=False))]
    last = layers[-1]
    return frozenset(f"{last}.{name}" if last else name for name, _ in module.get_submodule(last).named_parameters())


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's parameters, without its buffers, by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def proximal(strength: float, anchor: Mapping[str, Tensor]) -> Penalty:
    """Return the penalty ``strength / 2 · ‖w - anchor‖²``, whose gradient is ``strength · (w - anchor)``.

    The squares are summed over all parameters. (A mean would divide the strength by the size of the model.)
    """

    def penalty(module: nn.Module) -> Tensor:
        squares = [(parameter - anchor[name]).square().sum() for name, parameter in module.named_parameters()]
        return strength / 2 * torch.stack(squares).sum()

    return penalty
