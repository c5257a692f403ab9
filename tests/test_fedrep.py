"""FedRep: what the paper's algorithm promises."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.methods.fedrep import FedRep
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


def test_heads_never_leave_the_client():
    """Catches a head on the wire, in either direction, which is FedAvg with extra epochs."""
    history, server = federate(FedRep(local_epochs=1), unequal_clients(), rounds=2)
    assert all(set(sent.weights) == BODY for round in history for sent in round.sent.values())
    assert set(server.weights) == BODY
    run = FedRep(local_epochs=1).fit(unequal_clients(), PUBLIC, rounds=1)
    assert {t.uplink for t in run.traffic} == {4 * (2 * 3 + 3) + 16}
    heads = [run.model(id).weights()["2.weight"] for id in "abc"]
    assert not np.array_equal(heads[0], heads[1])
    bodies = [run.model(id).weights()["0.weight"] for id in "abc"]
    np.testing.assert_array_equal(bodies[0], bodies[1])


def test_first_the_head_moves_under_the_received_body_and_then_the_body_under_the_new_head():
    """Catches the body first, both at once, and a head that begins anew in every round."""
    rate = 0.1
    clients = unequal_clients()
    history, _ = federate(FedRep(local_epochs=1, head_epochs=2), clients, rounds=1)
    _, first = federate(FedRep(local_epochs=1, head_epochs=2), clients)
    starts = {client.id: initial_weights() for client in clients}
    for round in (0, 1):
        for client in clients:
            expected = starts[client.id]
            for part in (HEAD, HEAD, BODY):
                gradient = gradients(expected, client.private.inputs, client.private.labels)
                expected = expected | {name: expected[name] - rate * gradient[name] for name in part}
            assert_close(history[round].kept[client.id], expected)
            starts[client.id] = expected | first.weights


def test_on_digits():
    federated, alone = digits_accuracy(FedRep())
    assert federated == pytest.approx(84.2, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
