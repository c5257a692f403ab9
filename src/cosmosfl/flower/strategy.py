"""A method of this library as a strategy of Flower: messages, deadlines, and what to do with bad answers."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from logging import INFO, WARNING
from pathlib import Path
from typing import Literal

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.app import Message as FlowerMessage
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from cosmosfl.data.sets import PublicSet
from cosmosfl.engine.pool import Pool, n_workers
from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.events import Event
from cosmosfl.flower import wire
from cosmosfl.flower.client import LAST, STEP
from cosmosfl.flower.session import Agreement, FederationError, Node, Session
from cosmosfl.methods import check_exchanges_predictions
from cosmosfl.methods.local import Nothing
from cosmosfl.protocol import ClientId, InvalidMessageError, Message, Method, Task, message_types

POLL = 1.0
"""Seconds between two looks for answers."""
ASK_AGAIN = 120.0
"""Seconds in which a node is to say who it is, and after which one that did not is asked again."""


class MethodStrategy(Strategy):
    """Any method of `cosmosfl.METHODS` that exchanges predictions, as a strategy of Flower.

    It runs the same server side, and `cosmosfl.flower.client_app` the same client side, as an engine in one process
    does; with the same names, seed and data the results are the same. Messages are personal, so of Flower's own loop
    only the parts are used: `start` asks nodes that it does not know who they are, sends each client its message, waits
    until all have answered or the deadline has passed, and lets the server work, until all rounds are done.

    Parameters
    ----------
    method
        What to run.
    public
        The public set; the parties have to hold the same one.
    n_classes
        C; labels are 0..C-1.
    directory
        Of the run: summary, cluster models, report, and a checkpoint after every round. A directory that holds an
        unfinished federation is taken up where it was.
    seed
        The one seed.
    min_clients
        Parties to wait for before the first round.
    quorum
        Fraction of the parties, among those that a round's messages went to, that has to answer it.
    wait
        Seconds to wait for parties at the beginning, and for a quorum of them to be there before a later round.
    workers, threads
        Processes that train cluster models side by side, or ``"auto"``, and threads of each, as in an engine.
    callbacks
        Called with every event, such as `cosmosfl.events.Measurement`.

    Raises
    ------
    NotApplicableError
        If the method exchanges weights.
    ValueError
        If a number is out of its range.
    """

    def __init__(
        self,
        method: Method,
        public: PublicSet | npt.ArrayLike,
        *,
        n_classes: int,
        directory: str | Path,
        seed: int = 0,
        min_clients: int = 2,
        quorum: float = 0.5,
        wait: float = 600.0,
        workers: int | Literal["auto"] = 1,
        threads: int = 1,
        callbacks: Iterable[Callable[[Event], None]] = (),
    ) -> None:
        check_exchanges_predictions(method)
        if n_classes < 2:
            raise ValueError(f"n_classes: {n_classes}; expected at least 2")
        if min_clients < 1:
            raise ValueError(f"min_clients: {min_clients}; expected at least 1")
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum: {quorum}; expected a fraction above 0, at most 1")
        self.method = method
        self.public = public if isinstance(public, PublicSet) else PublicSet(public)  # type: ignore[arg-type]
        self.task = Task(n_classes, seed)
        self.directory = Path(directory)
        self.min_clients = min_clients
        self.quorum = quorum
        self.wait = wait
        self.workers = workers
        self.threads = threads
        self.callbacks = list(callbacks)
        self.session: Session | None = None
        self._sent: dict[str, Node] = {}
        self._late: dict[str, tuple[Node, int]] = {}
        self._asked: dict[Node, float] = {}
        self._down, self._up = message_types(type(method))
        self._limit = 2 * method.message_bytes(len(self.public), n_classes, 0) + 2**20

    def summary(self) -> None:
        """Log what runs."""
        log(INFO, "%s: %s", self.method.name, self.method)
        log(INFO, "At least %s clients to begin with, answers of %.0f %% to go on", self.min_clients, 100 * self.quorum)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation to its end.

        Parameters
        ----------
        grid
            Flower's connection to the nodes.
        num_rounds
            Rounds after the first training.
        timeout
            Deadline of a round, in seconds.
        initial_arrays, train_config, evaluate_config, evaluate_fn
            Of strategies that send one model to everybody; there is none here, so they have to be left out.

        Returns
        -------
        flwr.serverapp.strategy.Result
            Mean accuracies by round, if parties share theirs. The rest is in the directory.

        Raises
        ------
        FederationError
            If there are too few parties or answers; started again, it goes on from the round that it was in.
        """
        for name, value in (
            ("initial_arrays", initial_arrays),
            ("train_config", train_config),
            ("evaluate_config", evaluate_config),
            ("evaluate_fn", evaluate_fn),
        ):
            if value:
                raise ValueError(f"{name}: expected none; in {self.method.name!r} no model is sent")
        self.session = session = Session(
            Agreement(self.method, self.task, self.public, num_rounds), self.directory, self.callbacks
        )
        self.summary()
        if session.resumed:
            log(INFO, "Taken up from %s: round %s of %s is next", self.directory, session.round, num_rounds)
        if not session.downlinks:
            self._gather(grid, self.min_clients, timeout)
            session.begin()
        with Pool(n_workers(self.workers, os.cpu_count() or 1), self.threads) as pool:
            session.server.map = pool.map
            return self._run(grid, session, timeout)

    def _run(self, grid: Grid, session: Session, timeout: float) -> Result:
        result = Result()
        nothing = ArrayRecord()
        rounds = session.agreement.rounds
        while session.round <= rounds:
            log(INFO, "[ROUND %s of %s]", session.round, rounds)
            self._gather(grid, self._needed(len(session.clients)), timeout)
            round = session.round
            replies = self._exchange(grid, self.configure_train(round, nothing, ConfigRecord(), grid), timeout)
            _, metrics = self.aggregate_train(round, replies)
            if metrics is not None:
                result.train_metrics_clientapp[round] = metrics
        log(INFO, "[LAST MESSAGE]")
        replies = self._exchange(grid, self.configure_evaluate(session.round, nothing, ConfigRecord(), grid), timeout)
        if (metrics := self.aggregate_evaluate(session.round, replies)) is not None:
            result.evaluate_metrics_clientapp[session.round] = metrics
        log(INFO, "Report: %s", session.finish())
        return result

    # --- the four parts of a strategy ---------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Return the message of this round to each client that is there."""
        return self._messages(grid, STEP)

    def aggregate_train(
        self, server_round: int, replies: Iterable[FlowerMessage]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the server take the answers; return the means of what the clients measured.

        Raises
        ------
        FederationError
            If fewer than the quorum can be read, or none is accepted.
        """
        session, needed = self._session, self._needed(len(self._sent))
        metrics = Means()
        answers = dict(self._read(replies, metrics))
        if len(answers) < needed:
            raise FederationError(
                f"round {session.round}: {len(answers)} of {len(self._sent)} clients gave an answer that can be used; "
                f"the quorum is {needed}; {session.how_to_go_on()}"
            )
        session.advance(answers)
        return None, metrics.record()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[FlowerMessage]:
        """Return the last message to each client that is there; before the last round there is none."""
        if self._session.round <= self._session.agreement.rounds:
            return []
        return self._messages(grid, LAST)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[FlowerMessage]) -> MetricRecord | None:
        """Take what the clients measured at the end; return the means."""
        metrics = Means()
        for client, _ in self._read(replies, metrics):
            log(INFO, "Client %r has its model", client)
        return metrics.record()

    # --- who is there -------------------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        assert self.session is not None, "start comes first"
        return self.session

    def _needed(self, asked: int) -> int:
        return max(1, math.ceil(self.quorum * asked - 1e-9))

    def _present(self, grid: Grid) -> list[Node]:
        """Return the nodes that are there and taken in, by the names of their clients."""
        clients = self._session.clients
        return sorted((node for node in grid.get_node_ids() if node in clients), key=lambda node: clients[node])

    def _gather(self, grid: Grid, needed: int, timeout: float) -> None:
        """Take in who comes, until there are enough."""
        end = time.monotonic() + self.wait
        while True:
            self._introduce(grid, timeout)
            if (here := len(self._present(grid))) >= needed:
                return
            if time.monotonic() > end:
                raise FederationError(
                    f"round {self._session.round}: {here} clients after {self.wait:.0f} s; expected {needed}; "
                    f"{self._session.how_to_go_on()}"
                )
            time.sleep(POLL)

    def _introduce(self, grid: Grid, timeout: float) -> None:
        """Ask the nodes that are new who they are; this is also where public sets are compared."""
        session, now = self._session, time.monotonic()
        new = [n for n in grid.get_node_ids() if n not in session.clients and now >= self._asked.get(n, now)]
        self._asked |= dict.fromkeys(new, now + ASK_AGAIN)
        content = wire.encode(None, self._terms())
        hellos = [FlowerMessage(content, node, "query.hello") for node in new]
        for reply in self._exchange(grid, hellos, min(timeout, ASK_AGAIN)) if hellos else ():
            node = self._sent[reply.metadata.reply_to_message_id]
            try:
                name = wire.text(self._about(reply, f"node {node}"), "name", f"node {node}")
                client = session.admit(node, name)
            except InvalidMessageError as error:
                session.reject(f"node {node}", str(error))
                log(WARNING, "%s", error)
            else:
                log(INFO, "Client %r is node %s", client, node)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _terms(self) -> dict[str, wire.Scalar]:
        session = self._session
        return {
            "federation": session.federation,
            "method": self.method.name,
            "parameters": self.method.model_dump_json(),
            "n_classes": self.task.n_classes,
            "seed": self.task.seed,
            "public": self.public.digest,
            "rounds": session.agreement.rounds,
        }

    def _messages(self, grid: Grid, kind: str) -> Iterable[FlowerMessage]:
        session = self._session
        terms = {**self._terms(), "round": session.round, "kind": kind}
        for node in self._present(grid):
            client = session.clients[node]
            if (message := session.downlinks.get(client)) is not None:
                about = {**terms, "client": client, "rejected": session.refused.pop(client, "")}
                yield FlowerMessage(wire.encode(message, about), node, "train", group_id=str(session.round))

    def _about(self, reply: FlowerMessage, source: str) -> dict[str, wire.Scalar]:
        """Return what a reply says of itself.

        Raises
        ------
        InvalidMessageError
            If it is an error, a refusal or of another federation.
        """
        if reply.has_error():
            raise InvalidMessageError(f"{source}: {reply.error.reason or f'error {reply.error.code}'}")
        about = wire.about(reply.content, source)
        if (refusal := about.get("refusal")) is not None:
            raise InvalidMessageError(f"{source}: {str(refusal)[:500]}")
        if about.get("federation") != self._session.federation:
            raise InvalidMessageError(f"{source}: an answer to another federation")
        return about

    def _read(self, replies: Iterable[FlowerMessage], metrics: Means) -> Iterator[tuple[ClientId, Message]]:
        """Yield the answers to this round that can be read; record the others."""
        session = self._session
        of = {session.clients[self._sent[reply.metadata.reply_to_message_id]]: reply for reply in replies}
        for client, reply in sorted(of.items()):  # what is recorded does not depend on who was faster
            source = f"client {client!r}"
            try:
                about = self._about(reply, source)
                if wire.whole(about, "round", source) != session.round:
                    raise InvalidMessageError(f"{source}: an answer to round {about['round']}, not {session.round}")
                measured = wire.measurements(reply.content, client, session.round)
                answer: Message = Nothing()
                if session.round <= session.agreement.rounds:
                    answer = wire.decode(reply.content, self._up, source, self._limit)
            except InvalidMessageError as error:
                session.reject(client, str(error))
                log(WARNING, "%s", error)
                continue
            for measurement in measured:
                session.log(measurement)
                metrics.add(measurement)
            yield client, answer

    def _exchange(self, grid: Grid, messages: Iterable[FlowerMessage], timeout: float) -> list[FlowerMessage]:
        """Send messages, wait for the answers until the deadline, and return them.

        Answers to messages of earlier rounds that come meanwhile are recorded and dropped.
        """
        session = self._session
        self._sent = {}
        for message in messages:  # one at a time: together they could be too large for one request
            for id in grid.push_messages([message]):
                if id is not None:
                    self._sent[id] = message.metadata.dst_node_id
        replies: list[FlowerMessage] = []
        waiting = set(self._sent)
        end = time.monotonic() + timeout
        while waiting and time.monotonic() < end:
            for reply in grid.pull_messages([*waiting, *self._late]):
                id = reply.metadata.reply_to_message_id
                if id in waiting:
                    waiting.discard(id)
                    replies.append(reply)
                elif id in self._late:
                    node, round = self._late.pop(id)
                    if not reply.has_error():
                        client = session.clients.get(node, f"node {node}")
                        session.reject(client, f"client {client!r}: an answer to round {round} came too late; dropped")
            if waiting:
                time.sleep(POLL)
        for id in waiting:
            node = self._sent[id]
            client = session.clients.get(node, f"node {node}")
            log(WARNING, "Client %r: no answer within %.0f s", client, timeout)
            self._late[id] = (node, session.round)
        order = {id: n for n, id in enumerate(self._sent)}
        return sorted(replies, key=lambda reply: order[reply.metadata.reply_to_message_id])


class Means:
    """Means over clients of what they measured."""

    def __init__(self) -> None:
        self._top1: dict[str, list[float]] = {}

    def add(self, measurement: Measurement) -> None:
        """Count a measurement in."""
        self._top1.setdefault(measurement.moment, []).append(measurement.top1)

    def record(self) -> MetricRecord | None:
        """Return the mean top-1 accuracy in percent, by moment; None if there is none."""
        if not self._top1:
            return None
        return MetricRecord({f"{moment}_top1": sum(values) / len(values) for moment, values in self._top1.items()})
