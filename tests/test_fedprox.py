"""FedProx: what the paper's algorithm promises."""

from __future__ import annotations

import pytest

from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.fedprox import FedProx
from test_weights import (
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    gradients,
    initial_weights,
    unequal_clients,
)


def test_without_the_term_it_is_fedavg_bit_for_bit():
    """Catches a term or an aggregation that differs from FedAvg in anything else."""
    _, prox = federate(FedProx(local_epochs=3, mu=0), unequal_clients(), rounds=2)
    _, avg = federate(FedAvg(local_epochs=3), unequal_clients(), rounds=2)
    assert_same(prox.weights, avg.weights)


@pytest.mark.parametrize("rounds", [0, 1])
def test_the_second_step_is_pulled_back_to_the_global_model(rounds):
    """Catches an anchor that moves with the client or stays at the first round, a mean in place of the sum, and μ / 2.

    In the first step w is w_global and there is no pull, whatever the implementation.
    """
    mu, rate = 2.0, 0.1
    clients = unequal_clients()
    method = FedProx(local_epochs=2, mu=mu)
    history, _ = federate(method, clients, rounds)
    received = initial_weights() if rounds == 0 else federate(method, clients, rounds - 1)[1].weights
    for client in clients:
        gradient = gradients(received, client.private.inputs, client.private.labels)
        first = {name: received[name] - rate * gradient[name] for name in received}
        gradient = gradients(first, client.private.inputs, client.private.labels)
        second = {name: first[name] - rate * (gradient[name] + mu * (first[name] - received[name])) for name in first}
        assert_close(history[rounds].sent[client.id].weights, second)


def test_on_digits():
    federated, alone = digits_accuracy(FedProx())
    assert federated == pytest.approx(88.5, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
