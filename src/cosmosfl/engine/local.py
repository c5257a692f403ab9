"""The loop in one process."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from cosmosfl.data.sets import PublicSet
from cosmosfl.evaluation.metrics import Measurement, score
from cosmosfl.events import Callback, ClientDone, Event, PhaseStarted, Started, Traffic
from cosmosfl.methods.local import Local
from cosmosfl.protocol import Client, ClientId, ClientSide, Method, ServerSide, Task
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


class LocalEngine:
    """Runs a method on this machine, one client after the other.

    Parameters
    ----------
    callbacks
        Called with every event.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = callbacks

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
        log = _Log(self.callbacks)
        tested = [c for c in clients if c.test is not None]
        with_baseline = local_baseline and method.name != Local.name and bool(tested)
        log(Started(method.name, rounds, tuple(c.id for c in clients), len(tested) if with_baseline else 0))
        if with_baseline:
            log(PhaseStarted(0, "baseline"))
            baseline = _Log([lambda event: log(event) if _of_baseline(event) else None])
            _loop(Local(local_epochs=method.local_epochs), tested, public, task, rounds, baseline)
        start = time.perf_counter()
        sides, server = _loop(method, clients, public, task, rounds, log)
        return Run(
            config={"method": {"name": method.name, **method.model_dump()}, "rounds": rounds, "seed": seed},
            method=method.name,
            rounds=rounds,
            seed=seed,
            n_classes=task.n_classes,
            models={side.id: side.learner for side in sides},
            cluster_models=dict(enumerate(server.cluster_models)),
            clustering=server.clustering,
            history=log.history,
            wall_seconds=time.perf_counter() - start,
        )


def _loop(
    method: Method,
    clients: Sequence[Client],
    public: PublicSet,
    task: Task,
    rounds: int,
    log: _Log,
) -> tuple[list[ClientSide[Any, Any]], ServerSide[Any, Any]]:
    own = [client.with_learner(copy.deepcopy(client.learner)) for client in clients]
    sides = [method.client_side(client, public, task) for client in own]
    server = method.server_side(public, task)
    downlinks: Mapping[ClientId, Any] = server.open([side.id for side in sides])
    opening = {id: message.nbytes for id, message in downlinks.items()}
    for round in range(rounds + 1):
        log(PhaseStarted(round, "clients"))
        uplinks = {}
        for side in sides:
            with _named(side.id, round):
                uplinks[side.id] = side.step(downlinks[side.id])
            log.take(side.measurements)
            log(ClientDone(round, side.id))
        log(PhaseStarted(round, "server"))
        known, refused = server.clustering, len(server.rejections)
        downlinks = server.step(uplinks)
        for rejection in server.rejections[refused:]:
            log(rejection)
        if server.clustering is not None and server.clustering is not known:
            log(server.clustering)
        for id, uplink in uplinks.items():
            log(Traffic(round, id, uplink.nbytes, downlinks[id].nbytes + opening.pop(id, 0)))
        log.take(_measure_cluster_models(server, clients, round))
    log(PhaseStarted(rounds, "final"))
    for side in sides:
        with _named(side.id, rounds):
            side.finish(downlinks[side.id])
        log.take(side.measurements)
        log(ClientDone(rounds, side.id))
    return sides, server


def _measure_cluster_models(server: ServerSide[Any, Any], clients: Sequence[Client], round: int) -> list[Measurement]:
    """Measure each client's own cluster model, and the best of all for its test set (which nobody can deploy)."""
    if not server.cluster_models or server.clustering is None:
        return []
    own = {id: k for k, members in enumerate(server.clustering.clusters) for id in members}
    result = []
    for client in clients:
        if client.test is None:
            continue
        scores = [score(m.predict_proba(client.test.inputs), client.test.labels) for m in server.cluster_models]
        if client.id in own:
            k = own[client.id]
            result.append(Measurement(round, "cluster", client.id, *scores[k], model=k))
        best = max(range(len(scores)), key=lambda k: (scores[k].top1, -k))
        result.append(Measurement(round, "oracle", client.id, *scores[best], model=best))
    return result


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

    def take(self, measurements: list[Measurement]) -> None:
        for measurement in measurements:
            self(measurement)
        measurements.clear()


@dataclass
class _named:  # noqa: N801 (reads as a word at its use)
    """Adds to an error whose it is."""

    client: ClientId
    round: int

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"in round {self.round}, at client {self.client!r}")
