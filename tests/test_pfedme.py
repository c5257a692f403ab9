"""pFedMe: what the paper's algorithm promises."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.methods.pfedme import PFedMe
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
    unequal_clients,
)


def by_hand(client, w, method: PFedMe):
    """Algorithm 1 for one client whose mini-batch is its whole private set: return θ and w after R mini-batches."""
    theta = w
    for _ in range(method.local_epochs if method.batches is None else method.batches):
        for _ in range(method.inner_steps):
            gradient = gradients(theta, client.private.inputs, client.private.labels)
            theta = {
                name: theta[name]
                - method.personal_learning_rate * (gradient[name] + method.lam * (theta[name] - w[name]))
                for name in theta
            }
        w = {name: w[name] - method.learning_rate * method.lam * (w[name] - theta[name]) for name in w}
    return theta, w


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_equations_of_the_paper(beta):
    """Catches an inner problem without λ, or around another point than the current w; an outer step without λ; θ that
    starts again at w with each mini-batch, or is sent in place of w; and a server that ignores β.
    """
    method = PFedMe(local_epochs=2, inner_steps=3, lam=4, learning_rate=0.05, personal_learning_rate=0.1, beta=beta)
    clients = unequal_clients()
    w = initial_weights()
    history, server = federate(method, clients, rounds=1)
    for round in history:
        moved = []
        for client in clients:
            theta, local = by_hand(client, w, method)
            assert_close(round.kept[client.id], theta)
            moved.append(local)
        mean = {name: np.mean([local[name] for local in moved], axis=0) for name in w}
        w = {name: (1 - beta) * w[name] + beta * mean[name] for name in w}
    assert_close(server.weights, w)


def test_by_default_the_global_model_moves():
    """Catches β = 0, with which published libraries never leave the initial weights."""
    history, server = federate(PFedMe(local_epochs=1), unequal_clients())
    start = initial_weights()
    assert not any(np.array_equal(server.weights[name], start[name]) for name in start)
    mean = {name: np.mean([sent.weights[name] for sent in history[0].sent.values()], axis=0) for name in start}
    assert_close(server.weights, mean)


def test_the_client_deploys_its_personal_model():
    method = PFedMe(local_epochs=1)
    run = method.fit(unequal_clients(), PUBLIC, rounds=1)
    history, _ = federate(method, unequal_clients(), rounds=1)
    assert_same(run.model("b").weights(), history[-1].kept["b"])
    assert not np.array_equal(run.model("b").weights()["0.weight"], history[-1].sent["b"].weights["0.weight"])


def test_the_rates_of_the_learner_have_no_effect_and_are_not_searched_for():
    slow, fast = (
        federate(PFedMe(local_epochs=1), unequal_clients(lambda rate=rate: gradient_descent(learning_rate=rate)))[1]
        for rate in (1e-6, 1.0)
    )
    assert_same(slow.weights, fast.weights)
    assert set(PFedMe.tunable) == {"method.learning_rate", "method.personal_learning_rate"}


def test_as_many_mini_batches_as_the_epochs_have_or_as_was_asked_for():
    client = unequal_clients(lambda: gradient_descent(batch_size=4))[1]  # 20 samples

    def seen(**options) -> list[int]:
        side = PFedMe(**options).client_side(client, PUBLIC, TASK)
        return [i for batch in side.mini_batches(np.random.default_rng(0)) for i in batch.tolist()]

    assert np.bincount(seen(local_epochs=3)).tolist() == [3] * 20
    assert len(seen(batches=7)) == 7 * 4
    assert np.bincount(seen(batches=10)).tolist() == [2] * 20


def test_on_digits():
    federated, alone = digits_accuracy(PFedMe())
    assert federated == pytest.approx(87.0, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
