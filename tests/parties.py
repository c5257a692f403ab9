"""The Flower app of test_federation.py: copied to where Flower's processes find it, and imported by the tests.

It imports what a party needs and no more, for each message is a new process. With ``trouble`` in the run configuration
one party sends nonsense, another stops in the middle of its first round until it is killed, and so does the server
between two rounds.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

import cosmosfl as cf
from cosmosfl.flower import MethodStrategy, client_app, server_app

N_CLASSES = 4
NAMES = ("client-0", "client-1", "client-2")
LIAR, VICTIM = NAMES[2], "client-3"
STOPPED = "stopped"
"""Name of the file that says that a process waits for being killed."""


def blobs(n: int, classes: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n samples of Gaussian classes around the corners of a square."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    corners = np.array([[2, 2], [-2, 2], [-2, -2], [2, -2]])
    return (corners[labels] + 0.7 * rng.standard_normal((n, 2))).astype(np.float32), labels


PUBLIC = blobs(60, (0, 1, 2, 3), 99)[0]


def data(name: str, part: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a party's private set (0) or test set (1); parties hold two of the classes each, in turn."""
    number = int(name.removeprefix("client-"))
    return blobs((12, 30)[part], ((0, 1), (2, 3))[number % 2], 2 * number + part)


def learner(name: str) -> cf.Learner:
    """Return a party's model: three libraries."""
    if name == NAMES[0]:
        return cf.TorchLearner("mlp")
    if name == NAMES[1]:
        from sklearn.ensemble import RandomForestClassifier

        return cf.SklearnLearner(RandomForestClassifier(5))
    return cf.BoostingLearner("xgboost", n_estimators=5)


class Centroids:
    """A model of one's own, with numpy alone: the nearer the mean of a class, the more likely it is."""

    def __init__(self) -> None:
        self.means = np.zeros((0, 0))

    def fit(self, inputs, labels, *, n_classes, epochs, rng):
        self.distill(inputs, np.eye(n_classes)[labels], epochs=epochs, rng=rng)

    def distill(self, inputs, probabilities, *, epochs, rng):
        weights = probabilities.sum(axis=0)[:, None] + 1e-9
        self.means = probabilities.T @ inputs / weights

    def predict_proba(self, inputs):
        near = np.exp(-np.linalg.norm(inputs[:, None] - self.means, axis=2))
        return (near / near.sum(axis=1, keepdims=True)).astype(np.float32)

    def state(self):
        return {"means": self.means}

    def restore(self, state):
        self.means = state["means"]


def until_killed(marker: Path) -> None:
    """Say with a file that this process is where it is to be killed, and wait; the next one that gets here goes on."""
    if not marker.exists():
        marker.touch()
        time.sleep(600)


class Stopping(Centroids):
    """Stops in the middle of its first training."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def fit(self, inputs, labels, **options):
        until_killed(self.marker)
        super().fit(inputs, labels, **options)


class StoppingStrategy(MethodStrategy):
    """Stops before it sends the messages of round 1."""

    def configure_train(self, server_round, *rest):
        if server_round == 1:
            until_killed(self.directory.with_name(STOPPED))
        return super().configure_train(server_round, *rest)


def own_learner(context) -> cf.Learner:
    name = context.node_config["name"]
    if not context.run_config["trouble"]:
        return learner(name)
    return Stopping(Path(context.node_config["state-dir"], STOPPED)) if name == VICTIM else Centroids()


party = client_app(
    learner=own_learner,
    data=lambda context: data(context.node_config["name"], 0),
    test=lambda context: data(context.node_config["name"], 1),
    public=PUBLIC,
    share_metrics=True,
    share_log_ratios=True,
)
undisturbed = server_app(public=PUBLIC, n_classes=N_CLASSES, rounds=1)
client = ClientApp()
server = ServerApp()


@server.main()
def main(grid, context):
    config = context.run_config
    if not config["trouble"]:
        return undisturbed(grid, context)
    method = cf.Cosmos(teacher=Centroids())
    strategy = StoppingStrategy(
        method, PUBLIC, n_classes=N_CLASSES, directory=config["directory"], min_clients=config["min-clients"]
    )
    return strategy.start(grid, num_rounds=config["rounds"])


def spoiled(reply):
    bad = {
        0: np.full((len(PUBLIC), N_CLASSES), np.nan, np.float32),
        1: np.random.default_rng(0).random(25_000_000).astype(np.float32),
    }
    round = reply.content["about"].get("round")
    if round in bad and "arrays" in reply.content:
        reply.content["arrays"] = ArrayRecord({"probabilities": Array(bad[round])})
    return reply


def answer(message, context):
    reply = party(message, context)
    return spoiled(reply) if context.run_config["trouble"] and context.node_config["name"] == LIAR else reply


client.query("hello")(answer)
client.train()(answer)
