"""What a run will cost on this machine, estimated from a few timed steps before anything is spent.

A round of a client is training on n private samples for E epochs, prediction of the m public samples, and training on
those for D epochs; a round of the server is training on them for S epochs and prediction, for each of K clusters. So

    seconds = rounds · (Σ_clients ((E·n + D·m)·t_train + m·t_predict) / workers
                        + K·m·(S·t_train + t_predict) / min(workers, K))

where the t, seconds per sample, are measured here, for each kind of model, on samples of the federation itself; a
method that trains on something else says so (`Method.training_samples`). Where COSMOS ends jointly, the D·m of a torch
model's last distillation become `cosmosfl.TorchLearner.joint_samples`. Tests are predictions too: of each client's
model at two moments, and of every cluster model. The baseline is the E·n alone. Not counted: the start of processes,
the search for neighbours with which a recipe of COSMOS begins, and what a centralized reference does at its server
beyond one model.
"""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cosmosfl.config import ExperimentConfig
from cosmosfl.data.sets import InputArray
from cosmosfl.engine.pool import n_workers
from cosmosfl.experiment import Federation
from cosmosfl.learners import TorchLearner
from cosmosfl.learners.refit import RefitLearner
from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.methods.local import Local
from cosmosfl.methods.predictions import LARGE, PredictionMethod
from cosmosfl.protocol import Client, Learner, Method
from cosmosfl.threads import Threads

PROBE = 64
"""Samples that a timed step of a model trained in epochs is made on, unless its batches are larger."""
PROBE_REFIT = 1000
"""Of a model that is fitted anew each time: these take long to begin."""
PATIENCE = 1.0
"""Seconds after which a step is not repeated any more."""


@dataclass(frozen=True)
class Speed:
    """Seconds per sample of one kind of model, and the bytes of its state."""

    train: float
    predict: float
    state_bytes: int
    in_epochs: bool


@dataclass(frozen=True)
class Cost:
    """An estimate. Seconds of wall-clock time; bytes.

    Attributes
    ----------
    clients, server, baseline
        Seconds of the clients' rounds, of the server's models, and of the clients alone.
    workers
        Processes that share the work.
    clusters
        K that was assumed.
    uplink, downlink
        Bytes per client and round.
    exchanges
        Messages each way in all: clients times rounds.
    memory
        Largest resident set of all processes together.
    disk
        Client states.
    speeds
        By kind of model: how many clients have it, and how fast it is.
    """

    clients: float
    server: float
    baseline: float
    workers: int
    clusters: int
    uplink: int
    downlink: int
    exchanges: int
    memory: int
    disk: int
    speeds: dict[str, tuple[int, Speed]]

    @property
    def seconds(self) -> float:
        """All of the time."""
        return self.clients + self.server + self.baseline


def estimate(config: ExperimentConfig, federation: Federation) -> Cost:
    """Time a few steps of every kind of model of a federation, and work out what the run will cost."""
    method, clients, m = config.method, federation.clients, len(federation.public)
    method = method.prepare(clients)
    kinds = Counter(repr(client.learner) for client in clients)
    speeds = {}
    with Threads(config.threads):
        for client in clients:
            if (kind := repr(client.learner)) not in speeds:
                speeds[kind] = measure(client.learner, client.private.inputs, federation.n_classes)
        teacher = getattr(method, "teacher", None)
        if teacher is not None:
            speeds["server"] = measure(teacher, federation.public.inputs, federation.n_classes)
    rounds, alone = config.rounds + 1, Local(local_epochs=method.local_epochs)
    S = getattr(method, "server_epochs", 0)
    K = getattr(method, "n_clusters", None) or config.partition.options().get("groups", 1)
    workers = n_workers(config.workers, len(clients))
    tests = sum(len(client.test) for client in clients if client.test is not None)
    own = sum(_round(speeds[repr(c.learner)], c, method, m) for c in clients)
    at_the_end = 0.0
    if isinstance(method, Cosmos) and method.ends_jointly:
        D = method.distill_epochs
        at_the_end = sum(
            (c.learner.joint_samples(len(c.private), m, D) - D * m) * speeds[repr(c.learner)].train
            for c in clients
            if isinstance(c.learner, TorchLearner)
        )
    server = 0.0
    if "server" in speeds:
        speed = speeds["server"]
        server = K * (S * m * speed.train + (m + tests) * speed.predict)
    baseline = sum(_round(speeds[repr(c.learner)], c, alone, m) for c in clients)
    with_baseline = config.local_baseline and method.name != Local.name and tests
    weights = max(speeds[kind].state_bytes for kind in kinds)
    message = method.message_bytes(m, federation.n_classes, weights)
    answer = method.of_predictions_alone().message_bytes(m, federation.n_classes, weights)
    kept = len(clients) * message // 2 if isinstance(method, PredictionMethod) else 0  # in half precision
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(
        clients=(rounds * own + at_the_end) / workers,
        server=rounds * server / min(workers, K),
        baseline=rounds * baseline / workers if with_baseline else 0.0,
        workers=workers,
        clusters=K if "server" in speeds else 0,
        uplink=message,
        downlink=answer,
        exchanges=rounds * len(clients),
        memory=resident * (workers + 1 if workers > 1 else 1) + min(LARGE, kept),
        disk=sum(speeds[repr(c.learner)].state_bytes for c in clients),
        speeds={kind: (kinds[kind] or K, speed) for kind, speed in speeds.items()},
    )


def _round(speed: Speed, client: Client, method: Method, m: int) -> float:
    """Return the seconds of a client's round."""
    n, tests = len(client.private), len(client.test) if client.test is not None else 0
    public = m if isinstance(method, PredictionMethod) else 0
    trained = method.training_samples(n, m)
    if not speed.in_epochs:  # fitted anew on all of it, at both moments
        trained = (n + public) * (2 if public else 1)
    return trained * speed.train + (public + (2 if public else 1) * tests) * speed.predict


def measure(learner: Learner, inputs: InputArray, n_classes: int) -> Speed:
    """Time a copy of a learner on some of these inputs, with labels in turn."""
    learner = copy.deepcopy(learner)
    in_epochs = not isinstance(learner, RefitLearner)
    n = max(PROBE, 2 * getattr(learner, "batch_size", 0)) if in_epochs else PROBE_REFIT
    part = inputs[np.arange(n) % len(inputs)]
    labels = (np.arange(len(part)) % n_classes).astype(np.int64)

    def train() -> None:
        learner.fit(part, labels, n_classes=n_classes, epochs=1, rng=np.random.default_rng(0))

    def predict() -> None:
        learner.predict_proba(part)

    training, prediction = _typical(train), _typical(predict)
    return Speed(
        train=training / len(part),
        predict=prediction / len(part),
        state_bytes=sum(np.asarray(value).nbytes for value in learner.state().values()),
        in_epochs=in_epochs,
    )


def _typical(step: Callable[[], None]) -> float:
    """Return the median time of up to four calls after the first, which is often slow."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < PATIENCE):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
