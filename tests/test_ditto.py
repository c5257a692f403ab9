"""Ditto: what the paper's algorithm promises."""

from __future__ import annotations

import numpy as np
import pytest

import cosmosfl as cf
from cosmosfl.methods.ditto import Ditto
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.randomness import stream
from test_weights import (
    PUBLIC,
    TASK,
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    gradient_descent,
    gradients,
    initial_weights,
    two_layers,
    unequal_clients,
)


def test_the_global_model_is_that_of_fedavg_bit_for_bit():
    """Catches personal models that get into the mean."""
    _, ditto = federate(Ditto(local_epochs=3, lam=2), unequal_clients(), rounds=2)
    _, avg = federate(FedAvg(local_epochs=3), unequal_clients(), rounds=2)
    assert_same(ditto.weights, avg.weights)


def test_without_the_pull_a_personal_model_is_that_of_training_alone_bit_for_bit():
    """Catches a v that starts again from w in every round, and one that is trained for less than the budget."""

    def started() -> cf.TorchLearner:  # Local would start every client from weights of its own
        learner = cf.TorchLearner(two_layers, batch_size=8)
        learner.build((2,), 4, stream(TASK.seed, "shared initialisation"))
        return learner

    ditto = Ditto(local_epochs=3, lam=0).fit(unequal_clients(started), PUBLIC, rounds=2)
    alone = cf.Local(local_epochs=3).fit(unequal_clients(started), PUBLIC, rounds=2)
    for id in "abc":
        assert_same(ditto.model(id).weights(), alone.model(id).weights())


def test_a_step_of_v_is_pulled_to_the_w_that_was_received():
    """Catches a mean over parameters in place of the sum, μ / 2, and a pull to the w that the client has trained."""
    lam, rate = 3.0, 0.1
    clients = unequal_clients()
    history, _ = federate(Ditto(local_epochs=1, lam=lam), clients, rounds=1)
    _, before = federate(Ditto(local_epochs=1, lam=lam), clients)
    for client in clients:
        v = history[0].kept[client.id]
        gradient = gradients(v, client.private.inputs, client.private.labels)
        expected = {name: v[name] - rate * (gradient[name] + lam * (v[name] - before.weights[name])) for name in v}
        assert_close(history[1].kept[client.id], expected)


def test_v_begins_as_the_initial_w():
    clients = unequal_clients(lambda: gradient_descent(learning_rate=1e-12))
    history, _ = federate(Ditto(local_epochs=1), clients)
    assert_close(history[0].kept["a"], initial_weights(), atol=1e-6)


def test_under_a_strong_pull_a_personal_model_becomes_the_global_one():
    """The larger λ, the nearer: at λ · η = 1 each step ends η · ∇F away from w."""

    def distance(lam: float) -> float:
        clients = unequal_clients(lambda: gradient_descent(learning_rate=1e-3))
        history, _ = federate(Ditto(local_epochs=20, lam=lam), clients, rounds=4)
        _, before = federate(Ditto(local_epochs=20, lam=lam), clients, rounds=3)
        return max(
            float(np.abs(history[-1].kept[id][name] - before.weights[name]).max())
            for id in "abc"
            for name in before.weights
        )

    far, near, nearest = distance(0), distance(100), distance(1000)
    assert far > 5 * near > 25 * nearest


def test_on_digits():
    federated, alone = digits_accuracy(Ditto())
    assert federated == pytest.approx(88.2, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
