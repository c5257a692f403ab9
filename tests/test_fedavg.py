"""FedAvg: what the paper's algorithm promises."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.methods.fedavg import FedAvg
from test_weights import (
    PUBLIC,
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    gradients,
    initial_weights,
    unequal_clients,
)


def test_one_epoch_of_full_batches_is_one_step_on_all_data_together():
    """Catches a mean that does not weigh clients by their samples, and clients that start differently."""
    clients = unequal_clients()
    inputs = np.concatenate([client.private.inputs for client in clients])
    labels = np.concatenate([client.private.labels for client in clients])
    expected = initial_weights()
    for rounds in range(3):
        gradient = gradients(expected, inputs, labels)
        expected = {name: expected[name] - 0.1 * gradient[name] for name in expected}
        run = FedAvg(local_epochs=1).fit(clients, PUBLIC, rounds=rounds)
        assert_close(run.model("a").weights(), expected)


def test_every_client_deploys_the_global_model():
    clients = unequal_clients()
    run = FedAvg(local_epochs=2).fit(clients, PUBLIC, rounds=1)
    _, server = federate(FedAvg(local_epochs=2), clients, rounds=1)
    for client in clients:
        assert_same(run.model(client.id).weights(), server.weights)


def test_all_weights_cross_the_wire_in_both_directions():
    run = FedAvg(local_epochs=1).fit(unequal_clients(), PUBLIC, rounds=1)
    size = 4 * (2 * 3 + 3 + 3 * 4 + 4)
    assert [(t.uplink, t.downlink) for t in run.traffic if t.client == "a"] == [
        (size + 16, size + 16),  # with the number of samples, and the message that opened the run
        (size + 16, size + 8),
    ]


def test_on_digits():
    federated, alone = digits_accuracy(FedAvg())
    assert federated == pytest.approx(89.5, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
