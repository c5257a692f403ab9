"""The loop on one machine: in this process, or with a pool of workers."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from cosmosfl.data.sets import EvaluationSet, PublicSet
from cosmosfl.engine.pool import Pool, n_workers
from cosmosfl.engine.rounds import server_round
from cosmosfl.engine.states import StateFiles, StoredModels, read_state, write_state
from cosmosfl.evaluation.metrics import Measurement, Score, score
from cosmosfl.events import Callback, ClientDone, Event, PhaseStarted, Started
from cosmosfl.methods.local import Local
from cosmosfl.protocol import Client, ClientId, Learner, Message, Method, ServerSide, Task
from cosmosfl.run import Run


def agree(
    clients: Sequence[Client],
    public: PublicSet | npt.ArrayLike,
    rounds: int,
    seed: int,
    n_classes: int | None,
) -> tuple[PublicSet, Task]:
    """Check that the parties fit together, before anything is trained, and return what they agree on.

    Raises
    ------
    ValueError
        As `Method.fit` says.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"rounds: {rounds!r}; expected a whole number of at least 0")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: {seed!r}; expected a whole number of at least 0")
    if not clients:
        raise ValueError("clients: none; expected at least one")
    seen: set[ClientId] = set()
    for client in clients:
        if client.id in seen:
            raise ValueError(f"client {client.id!r}: there are two clients with this id; expected unique ids")
        seen.add(client.id)
    if not isinstance(public, PublicSet):
        public = PublicSet(public)  # type: ignore[arg-type]
    shape, dtype = public.inputs.shape[1:], public.inputs.dtype
    for client in clients:
        for name, part in (("private set", client.private), ("test set", client.test)):
            if part is not None and (part.inputs.shape[1:] != shape or part.inputs.dtype != dtype):
                raise ValueError(
                    f"client {client.id!r}: {name} has samples of shape {part.inputs.shape[1:]}, {part.inputs.dtype}; "
                    f"expected {shape}, {dtype}, as in the public set"
                )
    largest = max(int(s.labels.max()) for c in clients for s in (c.private, c.test) if s is not None)
    C = largest + 1 if n_classes is None else n_classes
    if C < 2:
        raise ValueError(f"n_classes: {C}; expected at least 2" + ("" if n_classes else " (all labels are 0)"))
    for client in clients:
        for part in (client.private, client.test):
            if part is not None and part.labels.max() >= C:
                raise ValueError(f"client {client.id!r}: label {part.labels.max()}; expected 0..{C - 1}")
    return public, Task(C, seed)


BLOCK = 64
"""Clients among which those that take longest begin first. Answers wait until it is their turn, so not all of them."""


class LocalEngine:
    """Runs a method on this machine.

    Parameters
    ----------
    callbacks
        Called with every event, in this process.
    workers
        Processes that train clients, and cluster models, side by side; ``"auto"`` for one per CPU (one in all with a
        GPU). The result does not depend on it.
    threads
        Threads of each of them. Small models gain nothing from more than one.
    scratch
        Directory for what clients have to keep between rounds; by default where temporary files go. It holds one state
        per client, and is emptied when the `Run` is no longer used.

    Notes
    -----
    At no time is more than one client's model per worker in memory.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback] = (),
        *,
        workers: int | Literal["auto"] = 1,
        threads: int = 1,
        scratch: Path | None = None,
    ) -> None:
        self.callbacks = callbacks
        self.workers = workers
        self.threads = threads
        self.scratch = scratch

    def run(
        self,
        method: Method,
        clients: Sequence[Client],
        public: PublicSet | npt.ArrayLike,
        rounds: int,
        *,
        seed: int = 0,
        n_classes: int | None = None,
        local_baseline: bool = True,
    ) -> Run:
        """Run the federation; see `Method.fit` for parameters, result and errors."""
        public, task = agree(clients, public, rounds, seed, n_classes)
        method = method.prepare(clients)
        log = _Log(self.callbacks)
        tested = [c for c in clients if c.test is not None]
        with_baseline = local_baseline and method.name != Local.name and bool(tested)
        with Pool(n_workers(self.workers, len(clients)), self.threads) as pool:
            log(Started(method.name, rounds, tuple(c.id for c in clients), len(tested) if with_baseline else 0))
            if with_baseline:
                log(PhaseStarted(0, "baseline"))
                baseline = _Log([lambda event: log(event) if _of_baseline(event) else None])
                alone = _Loop(
                    Local(local_epochs=method.local_epochs), tested, public, task, pool, baseline, self.scratch
                )
                alone.run(rounds)
            start = time.perf_counter()
            loop = _Loop(method, clients, public, task, pool, log, self.scratch)
            if with_baseline:
                loop.seconds |= alone.seconds
            server = loop.run(rounds)
            seconds = time.perf_counter() - start
        return Run(
            config={"method": {"name": method.name, **method.model_dump()}, "rounds": rounds, "seed": seed},
            method=method.name,
            rounds=rounds,
            seed=seed,
            n_classes=task.n_classes,
            models=StoredModels(clients, loop.states),
            cluster_models=dict(enumerate(server.cluster_models)),
            clustering=server.clustering,
            history=log.history,
            wall_seconds=seconds,
        )


class _Loop:
    """The loop of one method: messages go down, clients work, messages go up, the server works."""

    def __init__(
        self,
        method: Method,
        clients: Sequence[Client],
        public: PublicSet,
        task: Task,
        pool: Pool,
        log: _Log,
        scratch: Path | None,
    ) -> None:
        self.method = method
        self.clients = {client.id: client for client in clients}
        self.public = public
        self.task = task
        self.pool = pool
        self.log = log
        self.states = StateFiles(list(self.clients), scratch)
        self.seconds: dict[ClientId, float] = {}

    def run(self, rounds: int) -> ServerSide[Any, Any]:
        server = self.method.server_side(self.public, self.task)
        server.map = self.pool.map
        downlinks: Mapping[ClientId, Any] = server.open(list(self.clients))
        opening = {id: message.nbytes for id, message in downlinks.items()}
        for round in range(rounds + 1):
            downlinks = server_round(server, round, self._uplinks(round, downlinks), opening, self.log)
            for measurement in _measure_cluster_models(server, list(self.clients.values()), round):
                self.log(measurement)
        self.log(PhaseStarted(rounds, "final"))
        for _ in self._clients_step(rounds, downlinks, last=True):
            pass
        return server

    def _uplinks(self, round: int, downlinks: Mapping[ClientId, Any]) -> Iterator[tuple[ClientId, Message]]:
        """Yield the clients' answers while they come."""
        self.log(PhaseStarted(round, "clients"))
        for id, uplink in self._clients_step(round, downlinks):
            assert uplink is not None
            yield id, uplink
        self.log(PhaseStarted(round, "server"))

    def _clients_step(
        self, round: int, downlinks: Mapping[ClientId, Any], *, last: bool = False
    ) -> Iterator[tuple[ClientId, Message | None]]:
        """Let every client that got a message work; those that the server has nothing to say to pause."""
        ids = sorted(id for id in self.clients if id in downlinks)  # the server's sums depend on the order
        before, after = self.states.current, self.states.following
        steps = [
            _Step(
                self.method, self.clients[id], self.public, self.task, downlinks[id], round, before(id), after(id), last
            )
            for id in ids
        ]
        names = [f"client {id!r} in round {round}" for id in ids]
        answers = self.pool.imap(_take_step, steps, names, self._longest_first(ids))
        for id, (uplink, measurements, seconds) in zip(ids, answers, strict=True):
            self.states.advance(id)
            self.seconds[id] = seconds
            for measurement in measurements:
                self.log(measurement)
            self.log(ClientDone(round, id))
            yield id, uplink

    def _longest_first(self, ids: Sequence[ClientId]) -> list[int]:
        """Return the order in which to begin: those that took longest the last time, in blocks, so that few wait."""
        order = range(len(ids))
        blocks = [order[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
        return [n for block in blocks for n in sorted(block, key=lambda n: -self.seconds.get(ids[n], 0.0))]


@dataclass(frozen=True)
class _Step:
    """One client's work on one message: all that a worker has to know of it."""

    method: Method
    client: Client
    public: PublicSet
    task: Task
    message: Message
    round: int
    before: Path | None
    after: Path
    last: bool


def _take_step(step: _Step) -> tuple[Message | None, list[Measurement], float]:
    """Make the client side, restore it, let it work, keep its state; return answer, measurements and seconds."""
    start = time.perf_counter()
    client = step.client.with_learner(copy.deepcopy(step.client.learner))
    try:
        side = step.method.client_side(client, step.public, step.task)
        if step.before is not None:
            side.restore(read_state(step.before))
        uplink = None
        if step.last:
            side.finish(step.message)
        else:
            uplink = side.step(step.message)
        write_state(step.after, side.state())
    except Exception as error:
        error.add_note(f"in round {step.round}, at client {client.id!r}")
        raise
    return uplink, side.measurements, time.perf_counter() - start


def _measure_cluster_models(server: ServerSide[Any, Any], clients: Sequence[Client], round: int) -> list[Measurement]:
    """Measure each client's own cluster model, and the best of all for its test set (which nobody can deploy)."""
    tests = [(client.id, client.test) for client in clients if client.test is not None]
    if not server.cluster_models or server.clustering is None or not tests:
        return []
    own = {id: k for k, members in enumerate(server.clustering.clusters) for id in members}
    by_model = server.map(_score_all, [(model, [test for _, test in tests]) for model in server.cluster_models])
    result = []
    for n, (id, _) in enumerate(tests):
        scores = [scores[n] for scores in by_model]
        if id in own:
            k = own[id]
            result.append(Measurement(round, "cluster", id, *scores[k], model=k))
        best = max(range(len(scores)), key=lambda k: (scores[k].top1, -k))
        result.append(Measurement(round, "oracle", id, *scores[best], model=best))
    return result


def _score_all(job: tuple[Learner, Sequence[EvaluationSet]]) -> list[Score]:
    model, tests = job
    return [score(model.predict_proba(test.inputs), test.labels) for test in tests]


def _of_baseline(event: Event) -> bool:
    return isinstance(event, ClientDone) or (isinstance(event, Measurement) and event.moment == "local")


@dataclass
class _Log:
    """Passes events on and keeps those that belong to the result."""

    callbacks: Sequence[Callback]
    history: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Started | PhaseStarted | ClientDone):
            self.history.append(event)
        for callback in self.callbacks:
            callback(event)
