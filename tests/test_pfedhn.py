"""pFedHN: what the paper's algorithm promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import cosmosfl as cf
from cosmosfl.methods.pfedhn import HyperNetwork, PFedHN, flat
from cosmosfl.methods.weights import LocalWeights
from test_weights import (
    PUBLIC,
    TASK,
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    initial_weights,
    normalised,
    unequal_clients,
)


def opened(method: PFedHN, clients=("a", "b", "c")):
    server = method.prepare(unequal_clients()).server_side(PUBLIC, TASK)
    return server, server.open(clients)


def answer(value: float, round: int = 0) -> LocalWeights:
    return LocalWeights(round, {name: array + value for name, array in initial_weights().items()}, 5)


def test_the_server_moves_along_the_vector_jacobian_product():
    """Catches Δ with the wrong sign, embeddings that stay, a mean of answers instead, and a loss on ‖Δ‖² with a factor.

    φ and v after one step of plain SGD are computed from the Jacobian, entry by entry.
    """
    method = PFedHN(passes=1, learning_rate=0.01, momentum=0, clip_norm=1e9)
    server, _ = opened(method)
    with torch.no_grad():
        server.network.output.weight.normal_(0, 0.1)  # at 0, nothing would reach the layers before
    before = {name: p.detach().clone() for name, p in server.network.named_parameters()}
    trained = flat(answer(0.3).weights)

    def generated(*values):
        named = dict(zip(before, values, strict=True))
        return torch.func.functional_call(server.network, named, (1,))

    jacobians = torch.autograd.functional.jacobian(generated, tuple(before.values()))
    delta = generated(*before.values()) - trained
    server.step([("b", answer(0.3))])
    after = dict(server.network.named_parameters())
    for (name, old), jacobian in zip(before.items(), jacobians, strict=True):
        product = torch.tensordot(delta, jacobian, dims=1)
        torch.testing.assert_close(after[name].detach(), old - 0.01 * product, rtol=1e-4, atol=1e-6)
    moved = (after["embeddings.weight"] != before["embeddings.weight"]).any(dim=1)
    assert moved.tolist() == [False, True, False]


def test_each_step_is_from_what_is_generated_then():
    """Catches a Δ that is computed once per round: with many passes it would overshoot without end."""
    server, _ = opened(PFedHN(passes=300, learning_rate=0.02, momentum=0))
    downlinks = server.step([("a", answer(0.3)), ("b", answer(-0.3))])
    assert_close(downlinks["a"].weights, answer(0.3).weights, atol=0.03)
    assert_close(downlinks["b"].weights, answer(-0.3).weights, atol=0.03)


def test_all_begin_with_the_common_weights_and_get_models_of_their_own():
    """Catches one model for everybody."""
    server, opening = opened(PFedHN())
    assert_same(server.generate(2), initial_weights())
    assert all(message.weights is None for message in opening.values())
    downlinks = server.step([("a", answer(1.0)), ("b", answer(-1.0)), ("c", answer(1.0))])
    assert np.abs(downlinks["a"].weights["0.bias"] - downlinks["b"].weights["0.bias"]).max() > 0.01


def test_clients_see_weights_only_and_the_hypernetwork_grows_with_their_number():
    """Catches φ or embeddings on the wire; the paper's size of an embedding is ⌊1 + N / 4⌋."""
    server, _ = opened(PFedHN(), clients=[str(n) for n in range(9)])
    assert server.network.embeddings.weight.shape == (9, 3)
    downlinks = server.step([("0", answer(1.0))])
    assert {field.name for field in dataclasses.fields(downlinks["0"])} == {"round", "weights"}
    assert downlinks["0"].weights.keys() == initial_weights().keys()
    assert [m.out_features for m in server.network.body if isinstance(m, torch.nn.Linear)] == [100, 100, 100]


def test_the_gradient_is_clipped():
    server, _ = opened(PFedHN(passes=1, learning_rate=1, momentum=0, clip_norm=0.5))
    before = torch.cat([p.detach().flatten() for p in server.network.parameters()])
    server.step([("a", answer(100.0))])
    after = torch.cat([p.detach().flatten() for p in server.network.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.5, rel=1e-3)


def test_buffers_stay_at_their_client():
    clients = unequal_clients(lambda: cf.TorchLearner(normalised))
    history, _ = federate(PFedHN(local_epochs=1), clients, rounds=1)
    for round in history:
        for sent in round.sent.values():
            assert not any("running" in name or "tracked" in name for name in sent.weights)
    means = [history[1].kept[id]["1.running_mean"] for id in "abc"]
    assert not np.allclose(means[0], means[1])


def test_a_bad_answer_moves_nothing_and_its_sender_still_gets_a_model():
    server, _ = opened(PFedHN())
    before = server.network.embeddings.weight[1].detach().clone()
    downlinks = server.step([("a", answer(0.1)), ("b", answer(np.nan)), ("c", answer(0.1))])
    assert [rejection.client for rejection in server.rejections] == ["b"]
    torch.testing.assert_close(server.network.embeddings.weight[1].detach(), before)
    assert all(np.isfinite(array).all() for array in downlinks["b"].weights.values())


def test_the_hypernetwork_is_drawn_from_the_seed():
    (one, _), (other, _) = opened(PFedHN()), opened(PFedHN())
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert isinstance(one.network, HyperNetwork)


@pytest.mark.parametrize("bad", [{"passes": 0}, {"momentum": 1.0}, {"learning_rate": 0}, {"clip_norm": -1}])
def test_bad_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PFedHN(**bad)


def test_on_digits():
    federated, alone = digits_accuracy(PFedHN())
    assert federated == pytest.approx(84.5, abs=2.5)
    assert alone == pytest.approx(80.3, abs=1.5)
