"""COMET: what the paper's algorithm promises. Comments name the mistake that a test is there to catch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

import cosmosfl as cf
from conftest import blobs, digits_federation, make_clients
from cosmosfl.clustering import pairwise_distances
from cosmosfl.data.sets import PublicSet
from cosmosfl.learners.codistillation import CoDistillation
from cosmosfl.methods.comet import Comet, k_means
from cosmosfl.methods.predictions import PseudoLabels, TeacherLabels
from cosmosfl.protocol import NotApplicableError, Task

TASK = Task(n_classes=2, seed=0)
PUBLIC = PublicSet(np.arange(12, dtype=np.float32).reshape(6, 2))


def labels(p: float) -> np.ndarray:
    return np.tile(np.float32([p, 1 - p]), (6, 1))


def answers(values: dict[str, float], round: int = 0) -> list[tuple[str, PseudoLabels]]:
    return [(id, PseudoLabels(round, labels(p))) for id, p in values.items()]


def server(**options):
    side = Comet(**options).server_side(PUBLIC, TASK)
    side.open(["a", "b", "c", "d"])
    return side


def mixed_clients() -> list[cf.Client]:
    learners = itertools.cycle(
        [
            lambda: cf.TorchLearner("mlp"),
            lambda: cf.SklearnLearner(RandomForestClassifier(5)),
            lambda: cf.TorchLearner(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 4))),
            lambda: cf.SklearnLearner(LogisticRegression()),
        ]
    )
    return make_clients(4, learner=lambda: next(learners)())


# --- the server ---


def test_each_client_gets_the_mean_of_its_cluster():
    # Caught: the mean over all clients; the mean without the client itself, as in other kinds of co-distillation.
    side = server()
    downlinks = side.step(answers({"a": 0.9, "b": 0.1, "c": 0.7, "d": 0.3}))
    assert side.clustering.clusters == (("a", "c"), ("b", "d"))
    for id, p in {"a": 0.8, "b": 0.2, "c": 0.8, "d": 0.2}.items():
        assert downlinks[id].round == 0
        np.testing.assert_allclose(downlinks[id].probabilities, labels(p), atol=1e-3)  # half precision


def test_clusters_are_made_anew_in_every_round():
    # Caught: clusters that stay those of the first round, as they do in COSMOS.
    side = server()
    side.step(answers({"a": 0.9, "b": 0.1, "c": 0.7, "d": 0.3}))
    first = side.clustering
    downlinks = side.step(answers({"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2}, round=1))
    assert side.clustering is not first
    assert side.clustering.clusters == (("a", "b"), ("c", "d"))
    np.testing.assert_allclose(downlinks["b"].probabilities, labels(0.85), atol=1e-3)


def test_the_clustering_says_how_far_members_are_from_the_mean_of_their_cluster():
    side = server()
    side.step(answers({"a": 0.9, "b": 0.1, "c": 0.7, "d": 0.3}))
    clustering = side.clustering
    assert (clustering.metric, clustering.clients) == ("l2", ("a", "b", "c", "d"))
    assert clustering.distances[0, 2] == pytest.approx(0.2 * 2**0.5, abs=1e-3)
    assert clustering.threshold == pytest.approx(0.1 * 2**0.5, abs=1e-3)


def test_k_means_from_distances_is_k_means():
    # Caught: rows of the distance matrix taken for coordinates.
    rng = np.random.default_rng(0)
    for n_clusters in (2, 3, 5):
        P = rng.dirichlet(np.ones(4), (12, 9))
        P[::2] = (P[::2] + rng.dirichlet(np.ones(4), 9)) / 2
        clusters, radius = k_means(pairwise_distances(P, "l2"), n_clusters, np.random.default_rng(1))
        seed = int(np.random.default_rng(1).integers(2**31))
        model = KMeans(n_clusters, n_init=10, random_state=seed).fit(P.reshape(12, -1))
        assert {tuple(c) for c in clusters} == {tuple(np.flatnonzero(model.labels_ == k)) for k in range(n_clusters)}
        away = np.linalg.norm(P.reshape(12, -1) - model.cluster_centers_[model.labels_], axis=1).max() / 9**0.5
        assert radius == pytest.approx(away)
        assert sorted(itertools.chain(*clusters)) == list(range(12))
        assert [c[0] for c in clusters] == sorted(c[0] for c in clusters)


@pytest.mark.filterwarnings("error")
def test_clients_that_agree_make_fewer_clusters():
    side = server(n_clusters=3)
    side.step(answers({"a": 0.9, "b": 0.9, "c": 0.1, "d": 0.9}))
    assert side.clustering.clusters == (("a", "b", "d"), ("c",))
    side.step(answers(dict.fromkeys("abcd", 0.5), round=1))
    assert side.clustering.clusters == (("a", "b", "c", "d"),)
    side.step(answers({"a": 0.5}, round=2))
    assert side.clustering.clusters == (("a",),)


def test_a_client_that_is_not_heard_only_trains():
    side = server()
    downlinks = side.step([*answers({"a": 0.9, "b": 0.1, "d": 0.2}), ("c", PseudoLabels(0, labels(np.nan)))])
    assert [r.client for r in side.rejections] == ["c"]
    assert (downlinks["c"].round, downlinks["c"].probabilities) == (1, None)


# --- the client ---


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 4)


def after_one_step(module: nn.Linear, method: Comet) -> nn.Linear:
    """Let a client take one step of plain gradient descent, of length 0.1, on all of its data."""
    learner = cf.TorchLearner(module, learning_rate=0.1, optimizer="sgd", batch_size=64)
    side = method.client_side(cf.Client("a", learner, *PRIVATE), PublicSet(UNLABELLED), Task(4, 0))
    side.step(TeacherLabels(0, MEAN))
    return module


PRIVATE = blobs(12, (0, 1), np.random.default_rng(0))
UNLABELLED = blobs(9, (0, 1, 2, 3), np.random.default_rng(1))[0]
MEAN = np.random.default_rng(2).dirichlet(np.ones(4), 9).astype(np.float32)


@pytest.mark.parametrize("loss", ["l2", "kl"])
def test_a_step_follows_the_gradient_of_both_terms_at_once(loss):
    # Caught: one set after the other; squares averaged over classes (as by mse_loss); KL in the other direction, or
    # averaged over classes; a loss against the logits; λ on the wrong term.
    reference = linear()
    x, y = map(torch.from_numpy, PRIVATE)
    p = reference(torch.from_numpy(UNLABELLED)).softmax(dim=1)
    mean = torch.from_numpy(MEAN)
    distance = ((p - mean) ** 2).sum(dim=1) if loss == "l2" else (mean * (mean / p).log()).sum(dim=1)
    (F.cross_entropy(reference(x), y) + 3 * distance.mean()).backward()
    expected = (reference.weight - 0.1 * reference.weight.grad).detach()

    found = after_one_step(linear(), Comet(local_epochs=1, lam=3, loss=loss)).weight
    np.testing.assert_allclose(found.detach(), expected, atol=1e-6)


def test_no_weight_is_training_alone_bit_for_bit(public):
    # Caught: an optimiser, or random numbers, that the other term changes even where it has no weight; public data
    # that go through batch normalisation or dropout; learners without a loss that are taught in any case.
    alone = cf.Local(local_epochs=2).fit(mixed_clients(), public, rounds=2)
    run = Comet(local_epochs=2, lam=0).fit(mixed_clients(), public, rounds=2)
    other = Comet(local_epochs=2, lam=1).fit(mixed_clients(), public, rounds=2)
    for id in "abcd":
        predicted = run.model(id).predict_proba(public)
        np.testing.assert_array_equal(predicted, alone.model(id).predict_proba(public))
        assert not np.array_equal(predicted, other.model(id).predict_proba(public))
    assert run.accuracy("client") == alone.accuracy("client")


def test_the_public_set_is_gone_through_in_shuffled_passes_without_a_rest():
    # Caught: the same first batches in every round.
    learner = cf.TorchLearner(linear(), batch_size=4)
    term = CoDistillation(learner, UNLABELLED, MEAN, np.random.default_rng(0))
    passes = [np.concatenate(list(itertools.islice(term.batches, 2))).tolist() for _ in range(3)]
    assert all(sorted(indices) == list(range(9)) for indices in passes)
    assert len({tuple(indices) for indices in passes}) == 3


def test_public_images_are_scaled_and_augmented_like_private_ones():
    images = np.random.default_rng(0).integers(0, 255, (6, 1, 8, 8), dtype=np.uint8)
    seen = []

    def augment(x, generator):
        seen.append((float(x.min()), float(x.max())))
        return x

    learner = cf.TorchLearner("cnn-s", augment=augment)
    side = Comet(local_epochs=1).client_side(cf.Client("a", learner, images, [0, 1] * 3), PublicSet(images), TASK)
    side.step(TeacherLabels(0, labels(0.5)))
    assert len(seen) == 2
    assert all(-1 <= low < -0.9 and 0.9 < high <= 1 for low, high in seen)


def test_learners_without_a_loss_learn_the_mean_and_then_the_private_set():
    calls = []

    class Recorder:
        def fit(self, inputs, labels, *, n_classes, epochs, rng):
            calls.append(f"fit {epochs}")

        def distill(self, inputs, probabilities, *, epochs, rng):
            calls.append(f"distill {epochs} {probabilities[0, 0]:.1f}")

        def predict_proba(self, inputs):
            return np.full((len(inputs), 2), 0.5, np.float32)

        def state(self):
            return {}

        def restore(self, state): ...

    client = cf.Client("a", Recorder(), PUBLIC.inputs, [0, 1] * 3, test=(PUBLIC.inputs, [0, 1] * 3))
    side = Comet(local_epochs=3, distill_epochs=2).client_side(client, PUBLIC, TASK)
    assert side.step(TeacherLabels(0, None)).round == 0
    assert side.step(TeacherLabels(0, labels(0.8))).round == 1
    side.finish(TeacherLabels(1, labels(0.8)))
    assert calls == ["fit 3", "distill 2 0.8", "fit 3"]
    moments = [(m.round, m.moment) for m in side.measurements]
    assert moments == [(round, moment) for round in (0, 1) for moment in ("client_after_fit", "client")]


# --- hyper-parameters ---


@pytest.mark.parametrize("bad", [{"lam": -1}, {"lam": float("inf")}, {"loss": "mse"}, {"n_clusters": 0}])
def test_hyper_parameters_are_checked(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        Comet(**bad)


def test_more_clusters_than_clients_are_an_error_before_anything_is_trained(clients, public):
    with pytest.raises(NotApplicableError, match="n_clusters: 5; expected at most 4"):
        Comet(n_clusters=5).fit(clients, public)


# --- as a whole ---


@pytest.mark.parametrize(("loss", "accuracy"), [("kl", 86.01), ("l2", 84.85)])
def test_clients_of_two_groups_gain_on_digits(loss, accuracy):
    federation = digits_federation()
    run = Comet(local_epochs=20, loss=loss).fit(federation.clients, federation.public, rounds=3)
    assert run.accuracy("local").mean == pytest.approx(78.50, abs=1.5)
    assert run.accuracy("client").mean == pytest.approx(accuracy, abs=1.5)
    assert run.clusters == [["client-0", "client-2", "client-4"], ["client-1", "client-3", "client-5"]]


def test_models_of_any_kind_take_part_and_the_number_of_workers_changes_nothing(public, tmp_path):
    one = Comet().fit(mixed_clients(), public, rounds=2)
    two = Comet().fit(mixed_clients(), public, rounds=2, workers=2)
    for id in "abcd":
        np.testing.assert_array_equal(one.model(id).predict_proba(public), two.model(id).predict_proba(public))
    assert one.measurements == two.measurements
    assert one.clusters == two.clusters == [["a", "c"], ["b", "d"]]
    size = 8 + 60 * 4 * 4
    assert [(t.uplink, t.downlink) for t in one.traffic if t.client == "a"] == [(size, size + 8), *[(size, size)] * 2]
    assert one.save(tmp_path / "run").is_file()
    assert cf.load(tmp_path / "run").clustering.threshold == one.clustering.threshold
