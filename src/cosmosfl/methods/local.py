"""Every client alone: the reference that a federation has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cosmosfl.data.sets import PublicSet
from cosmosfl.protocol import Client, ClientId, ClientSide, Message, Method, ServerSide, Task


@dataclass(frozen=True, eq=False)
class Nothing(Message):
    """No content: no byte crosses the wire."""


class Local(Method):
    """Train every client on its private set only, for the same number of epochs that a federation would give it.

    Parameters
    ----------
    local_epochs
        Epochs on the private set in each round.
    """

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "every client alone, for the same number of local epochs; nothing is sent"

    def client_side(self, client: Client, public: PublicSet, task: Task) -> LocalClient:
        """Return what `client` does."""
        return LocalClient(self, client, public, task)

    def server_side(self, public: PublicSet, task: Task) -> LocalServer:
        """Return a server that has nothing to do."""
        return LocalServer(public, task)


class LocalClient(ClientSide[Nothing, Nothing]):
    """Trains on its private set."""

    def __init__(self, method: Local, client: Client, public: PublicSet, task: Task) -> None:
        super().__init__(client, public, task)
        self.method = method

    def step(self, message: Nothing) -> Nothing:
        """Train; without a second moment in the round, the model after it is also the one to deploy."""
        round = int(self.memory.get("round", 0))
        self.fit(round, self.method.local_epochs)
        self.measure(round, "local", "client_after_fit", "client")
        self.memory["round"] = np.array(round + 1)
        return Nothing()


class LocalServer(ServerSide[Nothing, Nothing]):
    """Answers nothing."""

    def open(self, clients: Sequence[ClientId]) -> Mapping[ClientId, Nothing]:
        """Let everyone begin."""
        return dict.fromkeys(clients, Nothing())

    def step(self, uplinks: Iterable[tuple[ClientId, Nothing]]) -> Mapping[ClientId, Nothing]:
        """Let everyone go on."""
        return dict(uplinks)
