"""scikit-learn and boosting models as learners."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Perceptron
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import blobs
from cosmosfl import BoostingLearner, SklearnLearner
from cosmosfl.learners.refit import resampled_pairs, weighted_pairs
from cosmosfl.protocol import Learner, NotFittedError
from cosmosfl.randomness import stream

X, Y = blobs(80, (0, 1, 2, 3), np.random.default_rng(0))
SOFT = np.eye(4, dtype=np.float32)[Y] * 0.8 + 0.05

MAKERS = {
    "logistic": lambda: SklearnLearner(LogisticRegression()),
    "forest": lambda: SklearnLearner(RandomForestClassifier(20)),
    "neighbours (no weights)": lambda: SklearnLearner(KNeighborsClassifier(3)),
    "pipeline": lambda: SklearnLearner(make_pipeline(StandardScaler(), LogisticRegression())),
    "bayes": lambda: SklearnLearner(GaussianNB()),
    "xgboost": lambda: BoostingLearner("xgboost", n_estimators=10),
    "lightgbm": lambda: BoostingLearner("lightgbm", n_estimators=10),
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def accuracy(learner: Learner) -> float:
    return float((learner.predict_proba(X).argmax(axis=1) == Y).mean())


@every_kind
def test_it_learns_hard_and_soft_labels(make):
    learner = make()
    assert isinstance(learner, Learner)
    learner.fit(X, Y, n_classes=4, epochs=1, rng=stream(0))
    assert accuracy(learner) > 0.9
    learner = make()
    learner.distill(X, SOFT, epochs=1, rng=stream(0))
    assert accuracy(learner) > 0.9


@every_kind
def test_rows_sum_to_one_and_unseen_classes_have_a_column(make):
    learner = make()
    seen = np.isin(Y, (1, 3))
    learner.fit(X[seen], Y[seen], n_classes=6, epochs=1, rng=stream(0))
    P = learner.predict_proba(X)
    assert P.shape == (80, 6)
    assert P.dtype == np.float32
    assert (P[:, [0, 2, 4, 5]] == 0).all()
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-4)
    assert learner.predict_proba(X[:0]).shape == (0, 6)


@every_kind
def test_one_class_only_is_predicted_for_certain(make):
    learner = make()
    learner.fit(X[Y == 2], Y[Y == 2], n_classes=4, epochs=1, rng=stream(0))
    assert (learner.predict_proba(X) == np.eye(4)[2]).all()
    twin = make()
    twin.restore(learner.state())
    assert (twin.predict_proba(X) == np.eye(4)[2]).all()


@every_kind
def test_the_same_stream_gives_the_same_model(make):
    def predictions(seed: int) -> np.ndarray:
        learner = make()
        learner.distill(X, SOFT, epochs=1, rng=stream(seed))
        return learner.predict_proba(X)

    assert np.array_equal(predictions(0), predictions(0))


@every_kind
def test_state_restores_model_and_memory(make):
    learner = make()
    learner.fit(X[:30], Y[:30], n_classes=4, epochs=1, rng=stream(0))
    twin = make()
    twin.restore(copy.deepcopy(dict(learner.state())))
    np.testing.assert_allclose(twin.predict_proba(X), learner.predict_proba(X), atol=1e-6)
    for each in (learner, twin):  # goes on with the private samples that it remembers
        each.distill(X[30:], SOFT[30:], epochs=1, rng=stream(1))
    np.testing.assert_allclose(twin.predict_proba(X), learner.predict_proba(X), atol=1e-6)


@every_kind
def test_inputs_of_any_shape_are_flattened(make):
    images = np.random.default_rng(0).integers(0, 255, (20, 1, 2, 2), dtype=np.uint8)
    learner = make()
    learner.fit(images, np.arange(20) % 2, n_classes=2, epochs=1, rng=stream(0))
    assert learner.predict_proba(images).shape == (20, 2)


def test_distilling_keeps_what_was_fitted_and_fitting_what_was_distilled():
    low, high = Y < 2, Y >= 2
    learner = SklearnLearner(RandomForestClassifier(20))
    learner.fit(X[low], Y[low], n_classes=4, epochs=1, rng=stream(0))
    learner.distill(X[high], SOFT[high], epochs=1, rng=stream(1))
    assert accuracy(learner) > 0.9
    learner.fit(X[low], Y[low], n_classes=4, epochs=1, rng=stream(2))
    assert accuracy(learner) > 0.9


def test_the_private_weight_decides_a_conflict():
    x = np.zeros((10, 2), np.float32)

    def belief(weight: float, estimator) -> float:
        learner = SklearnLearner(estimator, private_weight=weight)
        learner.fit(x, np.zeros(10, np.int64), n_classes=2, epochs=1, rng=stream(0))
        learner.distill(x, np.tile(np.float32([0, 1]), (10, 1)), epochs=1, rng=stream(0))
        return float(learner.predict_proba(x)[0, 0])

    assert belief(1.0, LogisticRegression()) == pytest.approx(0.5, abs=0.01)
    assert belief(4.0, LogisticRegression()) == pytest.approx(0.8, abs=0.01)
    assert belief(4.0, KNeighborsClassifier(200)) == pytest.approx(0.8, abs=0.01)


def test_weighted_pairs_keep_the_expected_loss():
    P = np.random.default_rng(0).dirichlet([1, 1, 1], 50).astype(np.float32)
    samples, classes, weights = weighted_pairs(P)
    back = np.zeros_like(P)
    back[samples, classes] = weights
    np.testing.assert_allclose(back, P, atol=0.02)
    np.testing.assert_allclose(back.sum(axis=1), 1, rtol=1e-6)


def test_negligible_pairs_are_dropped_but_no_sample_is():
    P = np.array([[0.999, 0.001, 0.0], [0.0, 0.0, 1.0]], np.float32)
    samples, classes, weights = weighted_pairs(P)
    assert (samples.tolist(), classes.tolist(), weights.tolist()) == ([0, 1], [0, 2], [1, 1])
    assert len(weighted_pairs(np.full((1, 500), 1 / 500, np.float32))[0]) == 1


def test_resampling_follows_the_probabilities():
    P = np.tile(np.float32([0.2, 0.0, 0.8]), (4000, 1))
    samples, classes = resampled_pairs(P, 2, np.random.default_rng(0))
    assert np.bincount(samples).tolist() == [2] * 4000
    np.testing.assert_allclose(np.bincount(classes, minlength=3) / 8000, [0.2, 0, 0.8], atol=0.02)


def test_the_estimator_given_is_not_touched_and_its_own_seed_is_kept():
    forest = RandomForestClassifier(5, random_state=7)
    learner = SklearnLearner(forest)
    learner.fit(X, Y, n_classes=4, epochs=1, rng=stream(0))
    assert not hasattr(forest, "classes_")
    first = learner.predict_proba(X)
    learner.fit(X, Y, n_classes=4, epochs=1, rng=stream(1))
    assert np.array_equal(first, learner.predict_proba(X))


@pytest.mark.parametrize("estimator", [Perceptron(), LogisticRegression, "forest"])
def test_what_cannot_predict_probabilities_is_refused(estimator):
    with pytest.raises(TypeError, match="has no predict_proba|as an instance"):
        SklearnLearner(estimator)


def test_asking_too_early_is_a_clear_error():
    with pytest.raises(NotFittedError, match=r"SklearnLearner\(LogisticRegression\) has not learned anything"):
        SklearnLearner(LogisticRegression()).state()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="private_weight: 0; expected a number above 0"):
        SklearnLearner(LogisticRegression(), private_weight=0)
    with pytest.raises(ValueError, match="draws: 0; expected at least 1"):
        SklearnLearner(LogisticRegression(), draws=0)
    with pytest.raises(ValueError, match="library: 'catboost'; expected 'xgboost' or 'lightgbm'"):
        BoostingLearner("catboost")


def test_a_missing_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(ImportError, match=r"pip install 'cosmosfl\[boosting\]'"):
        BoostingLearner("lightgbm")
