"""pFedCK: what the paper's algorithm promises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import cosmosfl as cf
from cosmosfl.methods import pfedck
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.pfedck import PFedCK, distances_of_directions
from cosmosfl.methods.weights import GlobalWeights, LocalWeights
from cosmosfl.protocol import NotApplicableError
from cosmosfl.randomness import stream
from test_weights import (
    PUBLIC,
    TASK,
    assert_close,
    assert_same,
    digits_accuracy,
    federate,
    gradient_descent,
    initial_weights,
    normalised,
    refused,
    two_layers,
    unequal_clients,
)


def run(clients, rounds: int = 0, **options):
    """Run a federation, message by message."""
    return federate(PFedCK(**options).prepare(clients), clients, rounds)


# --- the client -------------------------------------------------------------------------------------------------------


def lesson_by_hand(own: nn.Module, other: nn.Module, x, y, T: float, predictions: float, features: float):
    """Return what `own`, a `two_layers`, loses on a batch beside `other`."""
    with torch.no_grad():
        hidden = other[1](other[0](x))
        p = (other[2](hidden) / T).softmax(dim=1)
    mine = own[1](own[0](x))
    q = (own[2](mine) / T).log_softmax(dim=1)
    divergence = (p * (p.log() - q)).sum(dim=1).mean()
    loss = F.cross_entropy(own[2](mine), y) + predictions * T**2 * divergence
    return loss + features * (mine - hidden).square().mean()


def step_by_hand(client, personal, interactive, epochs: int, rate: float = 0.1, **lesson):
    """Train both models on a private set that is one batch; return their weights."""
    models = [two_layers(), two_layers()]
    for model, weights in zip(models, (personal, interactive), strict=True):
        model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    x, y = torch.from_numpy(client.private.inputs), torch.from_numpy(client.private.labels)
    for _ in range(epochs):
        before = copy.deepcopy(models)
        for k, model in enumerate(models):
            model.zero_grad()
            lesson_by_hand(model, before[1 - k], x, y, **lesson).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= rate * parameter.grad
    return [{name: tensor.detach().numpy() for name, tensor in model.state_dict().items()} for model in models]


def test_both_models_learn_from_each_other_as_they_were_before_the_step():
    """Catches a divergence in the other direction or without T², a gradient into the teacher, one that has moved
    already, a lesson in one direction only, and an interactive model that begins elsewhere than at what came.
    """
    clients = unequal_clients()
    lesson = {"T": 3.0, "predictions": 2.0, "features": 5.0}
    options = {"temperature": 3, "prediction_weight": 2, "feature_weight": 5, "local_epochs": 3, "n_clusters": 1}
    history, server = run(clients, 2, **options)
    personal, mean = dict.fromkeys("abc", initial_weights()), initial_weights()
    for round in history:
        interactive = {}
        for client in clients:
            personal[client.id], interactive[client.id] = step_by_hand(
                client, personal[client.id], mean, epochs=3, **lesson
            )
            assert_close(round.kept[client.id], personal[client.id], rtol=1e-3, atol=1e-5)
            assert_close(round.sent[client.id].weights, interactive[client.id], rtol=1e-3, atol=1e-5)
        counts = [10, 20, 40]
        mean = {
            name: np.average([weights[name] for weights in interactive.values()], axis=0, weights=counts).astype(
                np.float32
            )
            for name in mean
        }
    assert_close(server.weights, mean, rtol=1e-3, atol=1e-5)


def test_without_lessons_the_personal_model_is_trained_alone_bit_for_bit():
    """Catches a personal model that takes over what came, or begins again in every round."""

    def started() -> cf.TorchLearner:  # Local would start every client from weights of its own
        learner = cf.TorchLearner(two_layers, batch_size=8)
        learner.build((2,), 4, stream(TASK.seed, "shared initialisation"))
        return learner

    options = {"prediction_weight": 0, "feature_weight": 0, "local_epochs": 3}
    ours = PFedCK(**options).fit(unequal_clients(started), PUBLIC, rounds=2)
    alone = cf.Local(local_epochs=3).fit(unequal_clients(started), PUBLIC, rounds=2)
    for id in "abc":
        assert_same(ours.model(id).weights(), alone.model(id).weights())


def test_without_lessons_and_in_one_cluster_the_interactive_models_are_those_of_fedavg_bit_for_bit():
    """Catches personal models on the wire, and a mean that does not count samples."""
    clients = unequal_clients(lambda: cf.TorchLearner(two_layers, batch_size=8))
    ours, server = run(clients, 2, prediction_weight=0, feature_weight=0, local_epochs=3, n_clusters=1)
    theirs, average = federate(FedAvg(local_epochs=3), clients, 2)
    for id in "abc":
        assert_same(ours[-1].sent[id].weights, theirs[-1].sent[id].weights)
    assert_same(server.weights, average.weights)


@pytest.mark.parametrize("lesson", ["prediction_weight", "feature_weight"])
def test_the_personal_model_never_leaves_but_hears_of_the_others(lesson):
    """With others in the federation it learns something else, through either lesson, though only by way of its own
    interactive model.
    """
    options = {"prediction_weight": 0, "feature_weight": 0, "n_clusters": 1} | {lesson: 1}
    together, _ = run(unequal_clients(), 1, **options)
    alone, _ = run(unequal_clients()[:1], 1, **options)
    assert_same(together[0].kept["a"], alone[0].kept["a"])
    assert not np.allclose(together[1].kept["a"]["0.weight"], alone[1].kept["a"]["0.weight"], atol=1e-5)
    for round in together[1:]:
        for id in "abc":
            assert not np.allclose(round.sent[id].weights["0.weight"], round.kept[id]["0.weight"], atol=1e-5)


def test_training_leaves_nothing_behind_on_the_modules():
    client = unequal_clients(lambda: cf.TorchLearner(normalised))[0]
    side = PFedCK().client_side(client, PUBLIC, TASK)
    side.step(GlobalWeights(0, None))
    assert not any(layer._forward_pre_hooks for layer in side.learner.module.modules())
    assert not side.learner.module.training


def test_a_model_of_one_layer_takes_part():
    """What its last layer gets are the inputs, which are alike for both."""
    layer = nn.Linear(2, 4)
    history, _ = run(unequal_clients(lambda: gradient_descent(copy.deepcopy(layer))), 1, local_epochs=1)
    assert set(history[1].sent["a"].weights) == {"weight", "bias"}


# --- the server -------------------------------------------------------------------------------------------------------


def server_for(*ids: str, model=two_layers, **options):
    clients = [cf.Client(id, cf.TorchLearner(model), [[0.0, 1.0]], [0]) for id in ids]
    side = PFedCK(**options).prepare(clients).server_side(PUBLIC, TASK)
    side.open(ids)
    return side


def answer(round: int, start, samples: int = 1, **change: float) -> LocalWeights:
    """Return what a client sends whose last bias changed by so much in entry ``_0``, ``_1``, ..."""
    weights = {name: np.array(array) for name, array in start.items()}
    for entry, much in change.items():
        weights["2.bias"][int(entry[1:])] += much
    return LocalWeights(round, weights, samples)


def test_clusters_are_made_anew_in_every_round_by_the_directions_of_the_changes():
    """Catches clusters by the weights themselves, by the size of a change, since the start of the run, or found once;
    and a mean over all.
    """
    w = initial_weights()
    side = server_for("a", "b", "c", "d")
    first = [
        ("a", answer(0, w, _0=1)),
        ("b", answer(0, w, 3, _0=9)),
        ("c", answer(0, w, _1=1)),
        ("d", answer(0, w, _1=9)),
    ]
    answers = side.step(first)
    assert side.clustering.clusters == (("a", "b"), ("c", "d"))
    assert_close(answers["a"].weights, answer(0, w, _0=(1 + 3 * 9) / 4).weights)
    assert_close(answers["d"].weights, answer(0, w, _1=5).weights)
    start = {id: message.weights for id, message in answers.items()}
    changes = {"a": {"_2": 0.1}, "b": {"_3": 0.1}, "c": {"_2": 0.4}, "d": {"_3": 0.4}}
    second = {id: answer(1, start[id], **change) for id, change in changes.items()}
    answers = side.step(second.items())
    assert side.clustering.clusters == (("a", "c"), ("b", "d"))
    mean = {name: (array + second["c"].weights[name]) / 2 for name, array in second["a"].weights.items()}
    assert_close(answers["c"].weights, mean)
    np.testing.assert_allclose(side.clustering.distances[0], [0, 2**0.5, 0, 2**0.5], atol=1e-3)


def test_running_means_have_no_say_in_who_is_alike():
    side = server_for("a", "b", "c", "d", model=normalised)
    w = side.weights
    messages = {}
    for i, id in enumerate("abcd"):
        weights = {name: np.array(array) for name, array in w.items()}
        weights["3.bias"][i // 2] += 1
        weights["1.running_var"] += 100 * (i % 2)
        messages[id] = LocalWeights(0, weights, 1)
    side.step(messages.items())
    assert side.clustering.clusters == (("a", "b"), ("c", "d"))


def test_distances_do_not_depend_on_how_many_vectors_are_in_memory(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = {id: rng.normal(size=6) for id in "abcde"}
    units = np.array([vector / np.linalg.norm(vector) for vector in vectors.values()])
    expected = np.linalg.norm(units[:, None] - units[None], axis=2)
    for held in (1, 13, 10_000):
        monkeypatch.setattr(pfedck, "HELD", held)
        np.testing.assert_allclose(distances_of_directions("abcde", vectors.__getitem__), expected, atol=1e-9)
    vectors["c"] = np.zeros(6)
    distances = distances_of_directions("abcde", vectors.__getitem__)
    np.testing.assert_allclose(distances[2], [1, 1, 0, 1, 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 1}, "of round 1; expected 0"),
        ({"samples": 0}, "samples: 0"),
        ({"_0": np.nan}, "NaN or infinity in 2.bias"),
        ({"shape": True}, "2.bias: float32 of shape (5,); expected float32 of shape (4,)"),
    ],
)
def test_the_sender_of_a_bad_message_gets_the_mean_of_all_and_goes_on_from_there(change, reason):
    """Even if it comes first: what the weights look like is known from the start."""
    w = initial_weights()
    entries = {name: value for name, value in change.items() if name.startswith("_")}
    bad = answer(change.get("round", 0), w, change.get("samples", 1), **entries)
    if change.get("shape"):
        bad = LocalWeights(0, bad.weights | {"2.bias": np.zeros(5, np.float32)}, 1)
    side = server_for("a", "b", "c")
    answers = side.step([("a", bad), ("b", answer(0, w, 3, _0=4)), ("c", answer(0, w, 1, _1=4))])
    (rejection,) = side.rejections
    assert (rejection.round, rejection.client) == (0, "a")
    assert reason in rejection.reason
    assert side.clustering.clusters == (("b",), ("c",))
    assert_close(answers["a"].weights, answer(0, w, _0=3, _1=1).weights)
    next = {
        "a": answer(1, answers["a"].weights, _2=1),
        "b": answer(1, answers["b"].weights, _3=1),
        "c": answer(1, answers["c"].weights, _2=1),
    }
    side.step(next.items())
    assert side.clustering.clusters == (("a", "c"), ("b",))


def test_who_is_the_only_one_heard_is_a_cluster():
    side = server_for("a", "b")
    answers = side.step([("b", answer(0, initial_weights(), _0=1))])
    assert side.clustering.clusters == (("b",),)
    assert_same(answers["a"].weights, answers["b"].weights)


# --- as a whole -------------------------------------------------------------------------------------------------------


def test_the_model_that_was_measured_last_is_handed_over():
    clients = unequal_clients(lambda: cf.TorchLearner(normalised), test=True)
    method = PFedCK(local_epochs=1)
    whole = method.fit(clients, PUBLIC, rounds=2)
    history, _ = federate(method.prepare(clients), clients, rounds=2)
    assert {(m.round, m.moment) for m in whole.measurements if m.moment != "local"} == {
        (round, moment) for round in range(3) for moment in ("client_after_fit", "client")
    }
    for client in clients:
        assert_same(whole.model(client.id).weights(), history[-1].kept[client.id])
        right = whole.model(client.id).predict_proba(client.test.inputs).argmax(axis=1) == client.test.labels
        assert whole.accuracy("client").per_client[client.id] == pytest.approx(100 * right.mean())


def test_what_the_estimate_of_costs_is_told_is_what_happens():
    history, _ = run(unequal_clients(), local_epochs=1)
    sent = history[0].sent["a"]
    size = sum(array.nbytes for array in sent.weights.values())
    assert PFedCK().message_bytes(4, 4, size) == size == sent.nbytes - 16
    assert PFedCK(local_epochs=3).training_samples(10, 4) == 60


def test_what_cannot_run_is_refused_before_anything_is_trained():
    reason = refused(PFedCK(), cf.TorchLearner("mlp"), cf.SklearnLearner(LogisticRegression()))
    assert "'pfedck' shares weights: client 'b' has a SklearnLearner" in reason
    assert "expected one architecture" in refused(PFedCK(), cf.TorchLearner("mlp"), cf.TorchLearner(two_layers))
    with pytest.raises(NotApplicableError, match="n_clusters: 4; expected at most 3, one per client"):
        PFedCK(n_clusters=4).prepare(unequal_clients())


@pytest.mark.parametrize(
    "bad",
    [{"n_clusters": 0}, {"temperature": 0}, {"prediction_weight": -1}, {"feature_weight": float("nan")}, {"epochs": 3}],
)
def test_bad_hyper_parameters_are_refused_by_name(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        PFedCK(**bad)


def test_on_digits():
    federated, alone = digits_accuracy(PFedCK())
    assert federated == pytest.approx(83.2, abs=1.5)
    assert alone == pytest.approx(80.3, abs=1.5)
