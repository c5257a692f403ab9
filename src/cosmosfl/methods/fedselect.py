"""FedSelect: every client finds out which of its weights to keep to itself (Tamirisa et al. 2024, arXiv 2404.02478).

At first all weights are shared. Every few rounds, those entries that moved most become personal; the server averages
each entry over the clients that still share it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt
from torch import nn

from cosmosfl.data.sets import PublicSet
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.methods.door import accepted
from cosmosfl.methods.weights import (
    GlobalWeights,
    LocalWeights,
    WeightClient,
    WeightMethod,
    Weights,
    WeightServer,
)
from cosmosfl.protocol import Client, ClientId, InvalidMessageError, Task

Fraction = Annotated[float, Field(ge=0, le=1)]
Mask = npt.NDArray[np.bool_]

_PERSONAL, _BEFORE = "personal.", "before."


@dataclass(frozen=True, eq=False)
class SharedEntries(LocalWeights):
    """Client to server. `weights` are, of each parameter, only the entries that the client shares, (k,), in C order.

    `shared` says which those are, a bit for each entry (`numpy.packbits`), 1 where it is shared.
    """

    shared: Weights


class FedSelect(WeightMethod):
    """Average each entry over the clients that share it, while every client makes more and more entries personal.

    In every epoch a client passes over its private set twice: first for its personal entries, with the others held,
    then for those that it shares. (While none is personal there is only the second pass, as in FedAvg.) So an epoch
    costs twice the compute of FedAvg's, though each entry is trained in only one of the passes.

    Every `period` rounds, the fraction `rate` of the shared entries of each parameter that moved most since the last
    selection (at first: since the initial weights) becomes personal. They are selected by where training has brought
    them, and begin as personal ones from the mean that comes back.

    Where the paper leaves a choice, it was made as in the authors' code: selection goes parameter by parameter, for the
    first time after round `period` (the fourth by default, as the first is 0); the mean counts every client that shares
    an entry the same; running means of batch normalisation are personal from the start; and the client deploys its
    model as it is after training, so that what comes back in the last round goes unused. Other than there, `limit` is
    never exceeded, biases can become personal too (scikit-learn's digits see no difference), and the learner's
    optimiser takes the place of plain SGD: one for the personal entries and one for the shared, made anew in each
    round. (One for each pass did a little worse on digits.)

    The server sends the means of all entries to all clients, who take what they share; so its answer stays as large as
    a model, while what the clients send gets smaller.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round, of two passes each.
    rate
        Fraction of the shared entries that a selection makes personal.
    period
        Rounds from one selection to the next.
    limit
        Largest fraction of personal entries.
    """

    name: ClassVar[str] = "fedselect"
    summary: ClassVar[str] = "weights that move most become personal; the others are averaged over those who share them"

    rate: Fraction = 0.25
    period: PositiveInt = 3
    limit: Fraction = 0.8

    def training_samples(self, private: int, public: int) -> int:
        """Return those of two passes an epoch, as it is once there are personal entries."""
        return 2 * self.local_epochs * private

    def message_bytes(self, public: int, n_classes: int, weights: int) -> int:
        """Return those of a model that is shared as a whole, and of a bit for each of its entries."""
        return weights + weights // 32

    def selects_after(self, round: int) -> bool:
        """Say whether clients select when this round is over."""
        return round > 0 and round % self.period == 0

    def client_side(self, client: Client, public: PublicSet, task: Task) -> FedSelectClient:
        """Return what `client` does."""
        return FedSelectClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> FedSelectServer:
        """Return what the server does."""
        return FedSelectServer(public, task)


class FedSelectClient(WeightClient):
    """Trains personal and shared entries in turn.

    Its `memory` holds, for each parameter, which entries are personal and what all were at the last selection.
    """

    method: FedSelect

    def step(self, message: GlobalWeights) -> SharedEntries:
        """Take over the means, select if it is time to, train, return what is shared."""
        round = self.begin(message)
        self.train(round)
        # The answer to this round changes only what the next one begins with.
        self.measure(round, "client_after_fit", "client")
        personal, weights = self.personal(), self.learner.weights()
        return SharedEntries(
            round,
            {name: weights[name][~mask] for name, mask in personal.items()},
            len(self.private),
            {name: np.packbits(~mask) for name, mask in personal.items()},
        )

    def begin(self, message: GlobalWeights) -> int:
        """Take over the means of what was shared, then select if it is time to; return the round that begins."""
        self.build(self.learner)
        trained = self.learner.weights()
        if message.weights is None:
            nothing = {name: np.zeros(tuple(p.shape), bool) for name, p in self.learner.module.named_parameters()}
            self.remember(nothing, trained)
            return message.round
        personal, weights = self.personal(), dict(trained)
        for name, mask in personal.items():
            means = message.weights[name][: mask.size].reshape(mask.shape)
            weights[name] = np.where(mask | np.isnan(means), weights[name], means)
        self.learner.load_weights(weights)
        if self.method.selects_after(message.round):
            moved = {name: np.abs(trained[name] - self.memory[_BEFORE + name]) for name in personal}
            rate, limit = self.method.rate, self.method.limit
            self.remember({name: select(moved[name], mask, rate, limit) for name, mask in personal.items()}, trained)
        return message.round + 1

    def personal(self) -> dict[str, Mask]:
        """Return which entries are personal, by parameter."""
        return {key.removeprefix(_PERSONAL): mask for key, mask in self.memory.items() if key.startswith(_PERSONAL)}

    def remember(self, personal: Mapping[str, Mask], weights: Weights) -> None:
        """Keep a selection, and the weights that it was made from."""
        self.memory = {_PERSONAL + name: mask for name, mask in personal.items()}
        self.memory |= {_BEFORE + name: weights[name] for name in personal}

    def train(self, round: int) -> None:
        """Train on the private set: in every epoch first the personal entries, then the shared ones."""
        personal = self.personal()
        if not any(mask.any() for mask in personal.values()):
            self.fit(round, self.method.local_epochs)
            return
        halves = {"personal": personal, "shared": {name: ~mask for name, mask in personal.items()}}
        learners = {half: _with_one_optimizer(self.learner) for half in halves}
        for epoch in range(self.method.local_epochs):
            for half, entries in halves.items():
                with only(entries, self.learner.module):
                    self.fit(round, 1, learner=learners[half], purpose=f"client fit {half} {epoch}")


@contextmanager
def only(entries: Mapping[str, Mask], module: nn.Module) -> Iterator[None]:
    """Let training move no entries of a module's parameters but these."""
    held = {
        name: (parameter, torch.from_numpy(~entries[name]).to(parameter.device), parameter.detach().clone())
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }
    handles = [
        parameter.register_hook((~mask).mul)  # type: ignore[no-untyped-call]
        for parameter, mask, _ in held.values()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():  # an optimiser may move what has no gradient, by decay of weights for example
        for parameter, mask, before in held.values():
            parameter.copy_(torch.where(mask, before, parameter))


def _with_one_optimizer(learner: TorchLearner) -> TorchLearner:
    """Return a learner that trains the same module, and in all calls of `fit` with the optimiser of the first."""
    twin = copy.copy(learner)
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        if not made:
            made.append(learner.make_optimizer(parameters, learning_rate))
        return made[0]

    twin.optimizer = optimizer
    return twin


def select(moved: npt.NDArray[np.floating], personal: Mask, rate: float, limit: float) -> Mask:
    """Return which entries of a parameter are personal from now on.

    Parameters
    ----------
    moved
        By how much each entry moved.
    personal
        Which entries are personal already; they stay so.
    rate, limit
        As `FedSelect` has them.
    """
    result = personal.flatten()
    shared = np.flatnonzero(~result)
    room = int(limit * result.size) - int(result.sum())
    n = max(0, min(round(rate * len(shared)), room))
    most = np.argsort(-moved.ravel()[shared], kind="stable")[:n]
    result[shared[most]] = True
    return result.reshape(personal.shape)


class FedSelectServer(WeightServer):
    """Averages every entry over the clients that share it, each counting the same.

    Its `weights` are the means of all entries of each parameter, (n,), NaN where nobody shares them; at the end are 0
    to 7 more of these.
    """

    def step(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Mapping[ClientId, GlobalWeights]:
        """Return the means to everyone."""
        sums: dict[str, npt.NDArray[np.float64]] = {}
        counts: dict[str, npt.NDArray[np.int64]] = {}
        kinds: dict[str, np.dtype[Any]] = {}
        for _, message in self.accepted(uplinks):
            for name, values in message.weights.items():
                entries = unpack(message.shared[name])
                sums.setdefault(name, np.zeros(len(entries)))[entries] += values
                counts.setdefault(name, np.zeros(len(entries), np.int64))[entries] += 1
                kinds[name] = values.dtype
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
            self.weights = {name: (total / counts[name]).astype(kinds[name]) for name, total in sums.items()}
        answer = GlobalWeights(self.round, self.weights)
        self.round += 1
        return dict.fromkeys(self.clients, answer)

    def accepted(self, uplinks: Iterable[tuple[ClientId, LocalWeights]]) -> Iterable[tuple[ClientId, SharedEntries]]:
        """Yield the messages that are finite, of this round and like those before in names, sizes and types.

        Raises
        ------
        InvalidMessageError
            At the end, if there was none.
        """
        agreed = (
            None if self.weights is None else {name: (mean.size, mean.dtype) for name, mean in self.weights.items()}
        )

        def check(message: LocalWeights, source: str) -> SharedEntries:
            nonlocal agreed
            message, layout = _checked(message, source)
            if agreed is not None and layout != agreed:
                name = min(name for name in layout.keys() | agreed.keys() if layout.get(name) != agreed.get(name))
                found, expected = (_described(entry.get(name)) for entry in (layout, agreed))
                raise InvalidMessageError(f"{source}: {name}: {found}; expected {expected}")
            agreed = layout
            return message

        return accepted(self, uplinks, check, "weights")


Layout = dict[str, tuple[int, np.dtype[Any]]]


def _checked(message: LocalWeights, source: str) -> tuple[SharedEntries, Layout]:
    """Return a message that fits together, and the number of entries (with padding) and the type of each parameter."""
    if not isinstance(message, SharedEntries):
        raise InvalidMessageError(f"{source}: {type(message).__name__}; expected SharedEntries")
    if message.weights.keys() != message.shared.keys():
        raise InvalidMessageError(f"{source}: 'weights' and 'shared' have different names")
    layout: Layout = {}
    for name, bits in message.shared.items():
        values = message.weights[name]
        if not (isinstance(bits, np.ndarray) and bits.dtype == np.uint8 and bits.ndim == 1):
            raise InvalidMessageError(f"{source}: {name}: 'shared' is not a row of bits (uint8)")
        if not (isinstance(values, np.ndarray) and values.dtype.kind == "f"):
            found = getattr(values, "dtype", type(values).__name__)
            raise InvalidMessageError(f"{source}: {name}: {found}; expected floating point")
        shared = unpack(bits)
        if values.shape != (shared.sum(),):
            raise InvalidMessageError(f"{source}: {name}: shape {values.shape}; expected ({shared.sum()},) as shared")
        if not np.isfinite(values).all():
            raise InvalidMessageError(f"{source}: NaN or infinity in {name}")
        layout[name] = shared.size, values.dtype
    return message, layout


def _described(entry: tuple[int, np.dtype[Any]] | None) -> str:
    return "nothing" if entry is None else f"{entry[1]} for {entry[0]} entries"


def unpack(bits: npt.NDArray[np.uint8]) -> Mask:
    """Return which entries are shared; at the end are 0 to 7 more than there are, which are not."""
    return np.unpackbits(bits).astype(bool)
