"""FLIS: what the paper's algorithm promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import cosmosfl as cf
from conftest import blobs
from cosmosfl.clustering import pairwise_distances
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.flis import FLIS, FLISServer
from cosmosfl.methods.weights import LocalWeights
from cosmosfl.protocol import Client, InvalidMessageError
from cosmosfl.randomness import stream
from test_feddf import UNLABELLED, answer, confident, infinite, mean_of, on_digits
from test_weights import TASK, assert_close, assert_same, normalised, two_layers, unequal_clients

EVERYONE, NOBODY = 2.0, 0.0
"""Thresholds: the largest cosine distance that there can be, and the smallest."""


def opened(clients: list[Client] | None = None, *, public: PublicSet = UNLABELLED, **options) -> FLISServer:
    clients = clients or unequal_clients()
    server = FLIS(**options).prepare(clients).server_side(public, TASK)
    server.open([client.id for client in clients])
    return server


def inclined(*classes: int, seed: int = 0) -> nn.Module:
    """Return a module that predicts these classes, whatever it sees."""
    torch.manual_seed(seed)
    module = two_layers()
    with torch.no_grad():
        module[2].bias[list(classes)] += 20
    return module


def permuted(module: nn.Module) -> nn.Module:
    """Return the same function with its hidden units in another order."""
    twin = two_layers()
    order = [2, 0, 1]
    with torch.no_grad():
        twin[0].weight.copy_(module[0].weight[order])
        twin[0].bias.copy_(module[0].bias[order])
        twin[2].weight.copy_(module[2].weight[:, order])
        twin[2].bias.copy_(module[2].bias)
    return twin


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return float(sum((p - q).detach().square().sum() for p, q in pairs)) ** 0.5


@pytest.mark.parametrize("model", [two_layers, normalised])
def test_in_one_cluster_it_is_fedavg_bit_for_bit(model):
    """Catches a mean that ignores samples, and weights that the server's predictions change on the way."""

    def clients() -> list[Client]:
        return unequal_clients(lambda: cf.TorchLearner(model, batch_size=8))

    flis = FLIS(local_epochs=2, threshold=EVERYONE).fit(clients(), UNLABELLED, rounds=2, n_classes=4)
    avg = FedAvg(local_epochs=2).fit(clients(), UNLABELLED, rounds=2, n_classes=4)
    assert flis.clusters == [["a", "b", "c"]]
    for id in "abc":
        assert_same(flis.model(id).weights(), avg.model(id).weights())


def test_with_everyone_alone_it_is_training_alone_bit_for_bit():
    """Catches averages with clients of other clusters, and clients that get another cluster's."""

    def started() -> cf.TorchLearner:  # Local would start every client from weights of its own
        learner = cf.TorchLearner(two_layers, batch_size=8)
        learner.build((2,), 4, stream(TASK.seed, "shared initialisation"))
        return learner

    flis = FLIS(local_epochs=2, threshold=NOBODY).fit(unequal_clients(started), UNLABELLED, rounds=2, n_classes=4)
    alone = cf.Local(local_epochs=2).fit(unequal_clients(started), UNLABELLED, rounds=2, n_classes=4)
    assert sorted(flis.clusters) == [["a"], ["b"], ["c"]]
    for id in "abc":
        assert_same(flis.model(id).weights(), alone.model(id).weights())


def test_what_counts_is_what_models_infer_and_not_their_weights():
    """Catches clusters by the distance between weights, or by updates, as other methods have them."""
    a = confident(0)
    same, other = permuted(a), two_layers()
    other.load_state_dict(a.state_dict())
    with torch.no_grad():
        other[2].bias[a[2].bias.argmin()] += 6
    assert distance(a, other) < distance(a, same)
    server = opened()
    server.step([("a", answer(a, 1)), ("b", answer(same, 1)), ("c", answer(other, 1))])
    assert server.clustering.distances[0, 1] < 1e-6
    assert server.clustering.distances[0, 2] > 0.5


def test_each_cluster_gets_its_own_mean_and_clusters_are_found_anew_in_every_round():
    """Catches clusters that stay as they were in the first round, and predictions of an earlier round's weights."""
    server = opened(threshold=0.5)
    for round, (pair, alone) in enumerate([("ab", "c"), ("ac", "b"), ("bc", "a")]):
        modules = {id: inclined(0 if id in pair else 1, seed=10 * round + n) for n, id in enumerate("abc")}
        sizes = dict(zip("abc", (10, 20, 40), strict=True))
        downlinks = server.step([(id, answer(modules[id], sizes[id], round=round)) for id in "abc"])
        assert set(server.clustering.clusters) == {tuple(pair), (alone,)}
        mean = mean_of(*((modules[id], sizes[id]) for id in pair))
        for id in pair:
            assert_close(downlinks[id].weights, weights_of(mean))
            assert downlinks[id].round == round
        assert_same(downlinks[alone].weights, weights_of(modules[alone]))


def test_the_threshold_is_the_largest_distance_or_is_found():
    """Catches a similarity where a distance is meant."""
    clients = [
        cf.Client(id, unequal_clients()[0].learner, *blobs(4, (0, 1), np.random.default_rng(0))) for id in "abcd"
    ]
    modules = [inclined(0), inclined(0, seed=1), inclined(1), inclined(1, seed=1)]
    uplinks = [(id, answer(module, 1)) for id, module in zip("abcd", modules, strict=True)]

    def clusters(**options) -> list[tuple[str, ...]]:
        server = opened(clients, **options)
        server.step(uplinks)
        return sorted(server.clustering.clusters)

    assert clusters() == [("a", "b"), ("c", "d")]
    assert clusters(threshold=0.9) == clusters(distance="disagreement", threshold=0.9) == [("a", "b"), ("c", "d")]
    assert clusters(distance="disagreement", threshold=1) == [("a", "b", "c", "d")]


def test_the_server_looks_at_that_many_public_samples_and_always_the_same():
    """Catches samples that are drawn for each client, whose predictions cannot be compared, and the whole set."""
    server, again = opened(public_samples=5), opened(public_samples=5)
    np.testing.assert_array_equal(server.inputs, again.inputs)
    rows = {row.tobytes() for row in UNLABELLED.inputs}
    assert len({row.tobytes() for row in server.inputs} & rows) == 5
    assert len(opened(public_samples=100).inputs) == len(UNLABELLED)
    modules = [confident(seed) for seed in range(3)]
    for round in range(2):
        server.step([(id, answer(m, 1, round=round)) for id, m in zip("abc", modules, strict=True)])
        with torch.no_grad():
            P = [module(torch.from_numpy(server.inputs)).softmax(1).numpy() for module in modules]
        np.testing.assert_allclose(server.clustering.distances, pairwise_distances(P, "cosine"), atol=1e-2)


def test_groups_that_hold_different_classes_are_found():
    inputs, _ = blobs(60, (0, 1, 2, 3), np.random.default_rng(9))
    clients = [
        cf.Client(id, cf.TorchLearner("mlp", learning_rate=0.01), *blobs(20, classes, np.random.default_rng(n)))
        for n, (id, classes) in enumerate([("a", (0, 1)), ("b", (2, 3)), ("c", (0, 1)), ("d", (2, 3))])
    ]
    run = FLIS().fit(clients, inputs, rounds=1, n_classes=4)
    assert sorted(run.clusters) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (answer(two_layers(), 20, round=1), "client 'b': weights are of round 1; expected 0"),
        (answer(two_layers(), 20, factor=np.nan), "client 'b': weights: NaN or infinity in 0.weight"),
        (answer(infinite(), 20), "client 'b': model returned NaN or infinity; expected probabilities"),
        (LocalWeights(0, {"w": np.ones(3, np.float32)}, 20), "client 'b': weights: 0.bias: nothing; expected float32"),
    ],
)
def test_a_client_with_a_bad_message_is_in_no_cluster_and_gets_the_mean_of_the_others(bad, reason):
    """Catches a first message of other shapes, which would have all others rejected. Weights can be finite and what
    they predict infinite.
    """
    server = opened(threshold=NOBODY)
    a, c = inclined(0), inclined(1)
    downlinks = server.step([("b", bad), ("a", answer(a, 10)), ("c", answer(c, 30))])
    (rejection,) = server.rejections
    assert (rejection.round, rejection.client) == (0, "b")
    assert reason in rejection.reason
    assert server.clustering.clusters == (("a",), ("c",))
    assert_close(downlinks["b"].weights, weights_of(mean_of((a, 10), (c, 30))))
    server.step([("b", answer(inclined(0), 20, round=1))])
    assert len(server.rejections) == 1


def test_a_round_in_which_nobody_is_accepted_is_an_error_with_all_reasons():
    with pytest.raises(InvalidMessageError, match="none of 1 messages was accepted; client 'a': model returned NaN"):
        opened().step([("a", answer(infinite(), 10))])


@pytest.mark.parametrize("bad", [{"threshold": -0.1}, {"threshold": "yes"}, {"distance": "l3"}, {"public_samples": 0}])
def test_bad_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        FLIS(**bad)


def test_on_digits():
    federated, alone, _ = on_digits(FLIS())
    assert federated == pytest.approx(89.5, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
