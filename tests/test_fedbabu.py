"""FedBABU: what the paper's algorithm promises."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.methods.fedbabu import FedBABU
from test_weights import (
    PUBLIC,
    assert_close,
    digits_accuracy,
    federate,
    gradients,
    initial_weights,
    unequal_clients,
)

HEAD = {"2.weight", "2.bias"}
BODY = {"0.weight", "0.bias"}


@pytest.mark.parametrize("fine_tune", ["full", "head"])
def test_the_head_is_the_same_bit_for_bit_at_all_clients_in_all_rounds_and_is_never_sent(fine_tune):
    """Catches a head that is trained, or fine-tuned for a measurement and kept; and heads of each client's own."""
    method = FedBABU(local_epochs=3, fine_tune=fine_tune)
    history, server = federate(method, unequal_clients(test=True), rounds=3)
    start = initial_weights()
    for round in history:
        for id in "abc":
            assert all(np.array_equal(round.kept[id][name], start[name]) for name in HEAD)
            assert not any(np.array_equal(round.kept[id][name], start[name]) for name in BODY)
            assert set(round.sent[id].weights) == BODY
    assert set(server.weights) == BODY


def test_the_body_descends_under_the_random_head():
    clients = unequal_clients()
    history, _ = federate(FedBABU(local_epochs=1), clients)
    start = initial_weights()
    for client in clients:
        gradient = gradients(start, client.private.inputs, client.private.labels)
        expected = {name: start[name] - 0.1 * gradient[name] for name in BODY}
        assert_close(history[0].sent[client.id].weights, expected)


@pytest.mark.parametrize(("fine_tune", "moved"), [("full", HEAD | BODY), ("head", HEAD), ("body", BODY)])
def test_what_is_deployed_is_the_global_body_fine_tuned_in_the_chosen_part(fine_tune, moved):
    method = FedBABU(local_epochs=1, fine_tune_epochs=1, fine_tune=fine_tune)
    clients = unequal_clients()
    run = method.fit(clients, PUBLIC, rounds=1)
    _, server = federate(method, clients, rounds=1)
    start = initial_weights() | server.weights
    for client in clients:
        gradient = gradients(start, client.private.inputs, client.private.labels)
        expected = start | {name: start[name] - 0.1 * gradient[name] for name in moved}
        assert_close(run.model(client.id).weights(), expected)


def test_without_fine_tuning_the_random_head_is_deployed():
    run = FedBABU(local_epochs=1, fine_tune_epochs=0).fit(unequal_clients(), PUBLIC, rounds=1)
    assert np.array_equal(run.model("a").weights()["2.weight"], initial_weights()["2.weight"])


def test_on_digits():
    federated, alone = digits_accuracy(FedBABU())
    assert federated == pytest.approx(81.3, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
    # a body under a head that never moves learns more slowly: after 15 rounds it is 85% against 80%
