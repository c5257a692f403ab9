"""The server's side of a federation that may last for days: who takes part, what round it is, what is on disk.

Nothing here knows of Flower; `cosmosfl.flower.strategy` carries the messages. The directory is that of a run
(`cosmosfl.store`), with ``checkpoint.safetensors`` beside it, which is written after every round and holds all that the
next one needs. So a server that was killed begins again with the round that it was in.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import PublicSet
from cosmosfl.engine.rounds import server_round
from cosmosfl.engine.states import read_state, write_state
from cosmosfl.events import Event
from cosmosfl.protocol import (
    ClientId,
    Clustering,
    InvalidMessageError,
    Message,
    Method,
    Rejection,
    Task,
    message_types,
    pack_json,
    unpack_json,
)
from cosmosfl.run import Run
from cosmosfl.store import RunDirectory, RunDirectoryError

CHECKPOINT = "checkpoint.safetensors"
Node = int


class FederationError(RuntimeError):
    """A federation that cannot go on, and how it can be taken up again."""


@dataclass(frozen=True)
class Agreement:
    """What a federation is about. Who takes a directory up again has to mean the same one."""

    method: Method
    task: Task
    public: PublicSet
    rounds: int

    def described(self) -> dict[str, Any]:
        """Return it in values that can be compared after they were in a file."""
        parameters = json.loads(self.method.model_dump_json())
        return {
            "method": {"name": self.method.name, **parameters},
            "rounds": self.rounds,
            "seed": self.task.seed,
            "n_classes": self.task.n_classes,
            "public": self.public.digest,
            "engine": "flower",
        }


class Session:
    """A federation between its rounds.

    Attributes
    ----------
    agreement
        What it is about.
    federation
        32 hexadecimal digits that tell it from any other.
    round
        The round that is to come; ``agreement.rounds + 1`` when only the last message is left.
    clients
        Node -> client, for all that ever took part.
    downlinks
        The next message to each client.
    directory
        Of the run.
    resumed
        Whether it was taken up from a checkpoint.
    """

    def __init__(self, agreement: Agreement, directory: str | Path, callbacks: list[Callable[[Event], None]]) -> None:
        path = Path(directory)
        self.agreement = agreement
        self.server = agreement.method.server_side(agreement.public, agreement.task)
        self.callbacks = callbacks
        self.clients: dict[Node, ClientId] = {}
        self.downlinks: dict[ClientId, Message] = {}
        self.opening: dict[ClientId, int] = {}
        self.refused: dict[ClientId, str] = {}
        self.round = 0
        self.history: list[Event] = []
        self.seconds = 0.0
        self.federation = uuid.uuid4().hex
        self.resumed = (path / CHECKPOINT).is_file()
        self._started = time.perf_counter()
        if self.resumed:
            self.directory = RunDirectory(path)
            self._restore()
        else:
            self.directory = RunDirectory.create(path, agreement.described())
            self._save()

    # --- who takes part -----------------------------------------------------------------------------------------------

    def admit(self, node: Node, name: str) -> ClientId:
        """Take a node in under its name; one that comes when others have begun is told what it missed.

        Raises
        ------
        InvalidMessageError
            If another node has this name: a client is its node, whatever it calls itself.
        """
        if node in self.clients:
            return self.clients[node]
        if not name or len(name) > 100 or not name.isprintable():
            raise InvalidMessageError(f"node {node}: name: {name[:100]!r}; expected 1 to 100 printable characters")
        for other, taken in self.clients.items():
            if taken == name:
                raise InvalidMessageError(f"node {node}: the name {name!r} is that of node {other}; expected another")
        if self.downlinks:
            self._tell(name, self.server.join(name))
        self.clients[node] = name
        return name

    def begin(self) -> None:
        """Make the first message to everybody who is there."""
        for id, message in self.server.open(sorted(self.clients.values())).items():
            self._tell(id, message)
        self._save()

    def _tell(self, client: ClientId, message: Message) -> None:
        self.downlinks[client] = message
        self.opening[client] = message.nbytes

    # --- what happens -------------------------------------------------------------------------------------------------

    def log(self, event: Event) -> None:
        """Keep an event, in the directory too."""
        self.history.append(event)
        self.directory.record(event)
        for callback in self.callbacks:
            callback(event)

    def reject(self, client: ClientId, reason: str) -> None:
        """Record that a client's message was not accepted; the client is told with its next message."""
        self.log(Rejection(self.round, client, reason))
        self.refused[client] = reason

    def advance(self, answers: Mapping[ClientId, Message]) -> None:
        """Let the server take a round's answers, and write all that the next round needs.

        Raises
        ------
        FederationError
            If it accepted none of them. The round has not happened then.
        """

        def log(event: Event) -> None:
            if isinstance(event, Rejection):
                self.refused[event.client] = event.reason
            self.log(event)

        uplinks = ((id, answers[id]) for id in sorted(answers))
        try:
            downlinks = server_round(self.server, self.round, uplinks, self.opening, log)
        except InvalidMessageError as error:
            raise FederationError(f"{error}; {self.how_to_go_on()}") from error
        self.downlinks = dict(downlinks)
        self.round += 1
        self._save()

    def how_to_go_on(self) -> str:
        """Return what the operator can do."""
        return (
            f"start the server app again with the same directory, {self.directory.path}, to repeat round {self.round}"
        )

    def finish(self) -> Path:
        """Write summary, cluster models and report; return the path of the report."""
        agreement = self.agreement
        elsewhere: dict[ClientId | int, str] = dict.fromkeys(self.clients.values(), "it never left its party")
        run = Run(
            config=agreement.described(),
            method=agreement.method.name,
            rounds=agreement.rounds,
            seed=agreement.task.seed,
            n_classes=agreement.task.n_classes,
            models={},
            cluster_models=dict(enumerate(self.server.cluster_models)),
            clustering=self.server.clustering,
            history=self.history,
            wall_seconds=self._seconds(),
            not_loaded=elsewhere,
        )
        return run.finish(self.directory)

    # --- the checkpoint -----------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return self.seconds + time.perf_counter() - self._started

    def _save(self) -> None:
        messages: list[Message] = []
        index: dict[ClientId, int] = {}
        for client, message in self.downlinks.items():  # members of a cluster have one message in common
            places = [n for n, other in enumerate(messages) if other is message]
            if not places:
                places = [len(messages)]
                messages.append(message)
            index[client] = places[0]
        arrays: dict[str, npt.NDArray[Any]] = {}
        numbers = []
        for n, message in enumerate(messages):
            values = {field.name: getattr(message, field.name) for field in fields(message)}
            arrays |= {f"message.{n}.{k}": v for k, v in values.items() if isinstance(v, np.ndarray)}
            numbers.append({k: v for k, v in values.items() if not isinstance(v, np.ndarray)})
        about = {
            "agreement": self.agreement.described(),
            "federation": self.federation,
            "round": self.round,
            "clients": [[node, client] for node, client in self.clients.items()],
            "messages": numbers,
            "downlinks": index,
            "opening": self.opening,
            "refused": self.refused,
            "seconds": self._seconds(),
            "events": sum(not isinstance(event, Clustering) for event in self.history),  # of metrics.jsonl
        }
        server = {f"server.{key}": value for key, value in self.server.state().items()}
        write_state(self.directory.path / CHECKPOINT, {"about": pack_json(about), **server, **arrays})

    def _restore(self) -> None:
        path = self.directory.path
        state = read_state(path / CHECKPOINT)
        about = unpack_json(state["about"])
        before, now = about["agreement"], self.agreement.described()
        if changed := sorted(key for key in {*before, *now} if before.get(key) != now.get(key)):
            key = changed[0]
            raise RunDirectoryError(
                f"{path} holds a federation with another {', '.join(changed)} ({key}: {before.get(key)!r}, now "
                f"{now.get(key)!r}); choose another directory, or start it as it was"
            )
        if (path / "summary.json").is_file():
            raise RunDirectoryError(f"{path} holds a federation that is finished; choose another directory")
        self.federation, self.round = about["federation"], about["round"]
        self.clients = dict(about["clients"])
        self.opening, self.refused, self.seconds = about["opening"], about["refused"], about["seconds"]
        down, _ = message_types(type(self.agreement.method))
        messages = []
        for n, numbers in enumerate(about["messages"]):
            prefix = f"message.{n}."
            arrays = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
            messages.append(down(**numbers, **arrays))
        self.downlinks = {client: messages[n] for client, n in about["downlinks"].items()}
        self.server.restore({k.removeprefix("server."): v for k, v in state.items() if k.startswith("server.")})
        self.history = [*self.directory.forget_after(about["events"])]
        if self.server.clustering is not None:
            self.history.append(self.server.clustering)
