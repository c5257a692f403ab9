"""Distances, greedy elimination, the choice of a threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, silhouette_score

from cosmosfl import clustering
from cosmosfl.clustering import (
    METRICS,
    MeanAccumulator,
    aggregate,
    auto_threshold,
    cluster_labels,
    cluster_stability,
    clusters_within,
    greedy_clusters,
    mean_silhouette,
    pairwise_distances,
    threshold_for,
)

seeds = st.integers(0, 2**32 - 1)


def random_predictions(seed: int, n: int = 5, m: int = 12, c: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(c, 0.5), size=(n, m))


def grouped_predictions(seed: int, classes_of: list[list[int]], m: int = 200, sharpness=None) -> np.ndarray:
    """Clients that know their classes and predict among them, each with noise and a confidence of its own."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(10, size=m)
    nearest = rng.integers(10, size=(10, m))  # what a client says of a class that it does not know
    P = []
    for i, known in enumerate(classes_of):
        answer = np.array([t if t in known else known[nearest[t, s] % len(known)] for s, t in enumerate(truth)])
        wrong = rng.random(m) < 0.25
        answer[wrong] = rng.choice(known, wrong.sum())
        logits = 0.5 * rng.standard_normal((m, 10))
        logits[np.arange(m), answer] += 4
        logits[:, [c for c in range(10) if c not in known]] -= 2
        logits *= (sharpness or [1.0, 0.3])[i % 2]
        P.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return np.array(P)


def random_distances(seed: int, n: int) -> np.ndarray:
    half = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    return half + half.T


# --- distances ---


def test_l2_is_the_root_mean_square_distance_per_sample():
    P = random_predictions(0)
    expected = np.linalg.norm(P[1] - P[3]) / np.sqrt(P.shape[1])
    assert pairwise_distances(P, "l2")[1, 3] == pytest.approx(expected)


def test_l2_reaches_its_upper_end_for_certain_clients_that_never_agree():
    P = np.zeros((2, 7, 3))
    P[0, :, 0] = P[1, :, 1] = 1
    assert pairwise_distances(P, "l2")[0, 1] == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("metric", METRICS)
@given(seed=seeds, times=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_repeating_the_public_set_leaves_the_distances_alone(metric, seed, times):
    P = random_predictions(seed)
    np.testing.assert_allclose(
        pairwise_distances(np.tile(P, (1, times, 1)), metric), pairwise_distances(P, metric), atol=1e-9
    )


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_symmetric_with_a_zero_diagonal(metric):
    D = pairwise_distances(random_predictions(1), metric)
    assert (np.diag(D) == 0).all()
    assert (D == D.T).all()


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_confidence_does_not_move_the_cosines(metric):
    P = random_predictions(2)
    unsure = P.copy()
    unsure[0] = 0.1 * P[0] + 0.9 / P.shape[2]
    np.testing.assert_allclose(pairwise_distances(unsure, metric), pairwise_distances(P, metric), atol=1e-9)
    assert not np.allclose(pairwise_distances(unsure, "l2"), pairwise_distances(P, "l2"), atol=0.05)


def test_a_client_that_says_nothing_is_unrelated_to_all():
    P = random_predictions(3)
    P[0] = 1 / P.shape[2]
    D = pairwise_distances(P, "cosine")
    assert D[0, 1:] == pytest.approx(1)
    assert np.isfinite(D).all()


def test_zero_probabilities_are_not_infinitely_far_away():
    P = np.eye(3)[None].repeat(2, axis=0)
    assert np.isfinite(pairwise_distances(P, "aitchison")).all()


@pytest.mark.parametrize("shape", [(3, 4), (0, 4, 2), (2, 0, 2)])
def test_predictions_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"predictions: shape .* expected \(clients, samples, classes\)"):
        pairwise_distances(np.ones(shape))


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric: 'l1'; expected one of l2"):
        pairwise_distances(random_predictions(0), "l1")


# --- greedy elimination ---


def test_greedy_elimination_by_hand():
    # a path 0 - 1 - 2 - 3 - 4: client 1 has most neighbours (ties: 1 before 2 and 3), then 3 and 4 are left
    D = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    assert greedy_clusters(D, 1) == [[0, 1, 2], [3, 4]]


def test_a_cluster_is_a_star_and_not_a_chain():
    D = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))
    assert max(map(len, greedy_clusters(D, 1))) == 3


@given(seed=seeds, n=st.integers(1, 12), threshold=st.floats(0, 1))
def test_everyone_is_in_exactly_one_cluster(seed, n, threshold):
    clusters = greedy_clusters(random_distances(seed, n), threshold)
    assert sorted(i for members in clusters for i in members) == list(range(n))


@given(seed=seeds, n=st.integers(1, 12), threshold=st.floats(0, 1))
def test_each_cluster_has_a_center_within_the_threshold_of_all_members(seed, n, threshold):
    D = random_distances(seed, n)
    for members in greedy_clusters(D, threshold):
        assert min(D[center, members].max() for center in members) <= threshold


@given(seed=seeds, n=st.integers(2, 10), b=st.floats(0.1, 0.9))
def test_permuting_clients_permutes_clusters_where_no_count_is_tied(seed, n, b):
    D = random_distances(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    remaining = np.ones(n, dtype=bool)
    while remaining.any():  # "ties: lowest index" depends on the order by definition: leave such cases out
        counts = ((b >= D)[:, remaining].sum(axis=1))[remaining]
        if (counts == counts.max()).sum() > 1:
            return
        center = np.flatnonzero(remaining)[counts.argmax()]
        remaining &= D[center] > b
    ours = {frozenset(members) for members in greedy_clusters(D, b)}
    theirs = {frozenset(order[members].tolist()) for members in greedy_clusters(D[np.ix_(order, order)], b)}
    assert ours == theirs


def test_threshold_zero_keeps_all_apart_and_a_large_one_joins_all():
    D = random_distances(0, 6)
    assert len(greedy_clusters(D, 0)) == 6
    assert len(greedy_clusters(D, 1)) == 1


def test_threshold_for_a_number_of_clusters():
    D = random_distances(1, 9)
    for k in (1, 3, 9):
        assert len(greedy_clusters(D, threshold_for(D, k))) == k


def test_threshold_for_an_impossible_number_names_the_nearest():
    D = 1 - np.eye(4)
    with pytest.raises(ValueError, match="no threshold gives 3 clusters; the nearest that one gives is 4"):
        threshold_for(D, 3)
    with pytest.raises(ValueError, match="n_clusters: 5; expected 1 to 4"):
        threshold_for(D, 5)


def test_threshold_for_many_clients_bisects():
    D = pairwise_distances(grouped_predictions(0, FIVE * 10, m=100))
    assert len(D) > clustering.SEARCHED
    for k in (1, 5, len(D)):
        assert len(greedy_clusters(D, threshold_for(D, k))) == k
    equal = 1 - np.eye(len(D))
    with pytest.raises(ValueError, match="no threshold was found that gives 3 clusters; the nearest .* is 1$"):
        threshold_for(equal, 3)


def test_single_precision_distances_give_the_same_clusters():
    D = random_distances(2, 30)
    assert greedy_clusters(D.astype(np.float32), 0.2) == greedy_clusters(D, 0.2)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_distances_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"distances: shape .* expected \(clients, clients\)"):
        greedy_clusters(np.zeros(shape), 0.5)


@pytest.mark.parametrize("metric", METRICS)
def test_clusters_by_projection_are_the_exact_ones(metric):
    P = grouped_predictions(0, FIVE * 6, m=100).astype(np.float16)
    D = pairwise_distances(P, metric)
    for threshold in np.quantile(D, [0.05, 0.15, 0.3]) + 1e-9:  # amid the distances, where ties would be seen
        assert clusters_within(P, threshold, metric, projection=256) == greedy_clusters(D, threshold)


# --- the choice of a threshold ---

TWO = [[0, 1, 2, 3, 4]] * 5 + [[5, 6, 7, 8, 9]] * 5
FIVE = [[2 * g, 2 * g + 1] for g in range(5) for _ in range(3)]
UNEVEN = [[0, 1, 2, 3, 4]] * 8 + [[5, 6, 7, 8, 9]] * 3
ONE = [list(range(10))] * 8
ALONE = [[c] for c in range(10)]


@pytest.mark.parametrize("metric", ["cosine", "aitchison", "correlation"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("groups", [TWO, FIVE, UNEVEN], ids=["two", "five", "uneven"])
def test_auto_finds_groups_of_clients_of_unequal_confidence(groups, seed, metric):
    P = grouped_predictions(seed, groups)
    found = cluster_labels(greedy_clusters(pairwise_distances(P, metric), auto_threshold(P, metric)))
    assert adjusted_rand_score([str(g) for g in groups], found) == 1


def pairs_of_unequal_shares(noise: float, shift: float) -> np.ndarray:
    """Return predictions of five pairs: the two of a pair have the same 4 classes of 20, each its own shares."""
    rng = np.random.default_rng(0)
    P = []
    for pair in range(5):
        common, known = rng.normal(size=(400, 20)), np.full(20, -3.0)
        known[4 * pair : 4 * pair + 4] = 1
        for _ in range(2):
            logits = common + noise * rng.normal(size=(400, 20)) + shift * known + rng.normal(size=20)
            P.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return np.stack(P)


@pytest.mark.parametrize(("noise", "found"), [(1.2, 5), (1.5, 10)], ids=["somewhat alike", "hardly"])
def test_auto_does_not_join_all_since_pairs_are_somewhat_alike(noise, found):
    """Catches clients of five groups in one cluster: the silhouette is low, and all pairs together a little related."""
    P = pairs_of_unequal_shares(noise, shift=0.5)
    D = pairwise_distances(P)
    assert mean_silhouette(D, np.repeat(range(5), 2)) < clustering.STRUCTURE
    assert D[np.triu_indices(10, 1)].mean() < 1
    assert len(greedy_clusters(D, auto_threshold(P))) == found


@pytest.mark.parametrize("seed", range(3))
def test_auto_can_answer_one_cluster(seed):
    P = grouped_predictions(seed, ONE)
    assert len(greedy_clusters(pairwise_distances(P), auto_threshold(P))) == 1


@pytest.mark.parametrize("seed", range(3))
def test_auto_can_answer_every_client_alone(seed):
    P = grouped_predictions(seed, ALONE)
    assert len(greedy_clusters(pairwise_distances(P), auto_threshold(P))) == len(ALONE)


def test_auto_with_one_client_two_equal_clients_and_two_strangers():
    P = grouped_predictions(0, [[0, 1, 2], [0, 1, 2], [7, 8, 9]])
    assert greedy_clusters(pairwise_distances(P[:1]), auto_threshold(P[:1])) == [[0]]
    assert greedy_clusters(pairwise_distances(P[:2]), auto_threshold(P[:2])) == [[0, 1]]
    assert greedy_clusters(pairwise_distances(P[1:]), auto_threshold(P[1:])) == [[0], [1]]


def test_auto_does_not_split_clients_that_agree_because_some_agree_better_still():
    P = grouped_predictions(0, [list(range(10))] * 3, sharpness=[1.0, 1.0])
    P[1] = 0.9 * P[0] + 0.1 * P[1]
    D = pairwise_distances(P)
    assert D[0, 1] < 0.1 < 0.2 < D[0, 2] < 0.6
    assert len(greedy_clusters(D, auto_threshold(P))) == 1


def test_auto_joins_clients_that_predict_the_same():
    P = np.repeat(random_predictions(0, n=1), 4, axis=0)
    assert len(greedy_clusters(pairwise_distances(P), auto_threshold(P))) == 1


def test_auto_judges_many_clients_by_a_sample(monkeypatch):
    monkeypatch.setattr(clustering, "SAMPLE", 20)
    P = grouped_predictions(0, TWO * 6)
    threshold = auto_threshold(P)
    assert threshold == auto_threshold(P)
    assert adjusted_rand_score([str(g) for g in TWO * 6], cluster_labels(clusters_within(P, threshold))) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_auto_on_a_sample_can_answer_one_cluster_or_everyone_alone(metric, monkeypatch):
    monkeypatch.setattr(clustering, "SAMPLE", 8)
    one, alone = grouped_predictions(0, ONE * 3), grouped_predictions(0, ALONE)
    assert len(clusters_within(one, auto_threshold(one, metric), metric)) == 1
    assert len(clusters_within(alone, auto_threshold(alone, metric), metric)) == len(ALONE)


@given(seed=seeds, n=st.integers(3, 30), k=st.integers(2, 8))
def test_the_mean_silhouette_is_that_of_scikit_learn(seed, n, k):
    D = random_distances(seed, n)
    labels = np.unique(np.random.default_rng(seed).integers(k, size=n), return_inverse=True)[1]
    if 1 < labels.max() + 1 < n:
        assert mean_silhouette(D, labels) == pytest.approx(silhouette_score(D, labels, metric="precomputed"))


def test_the_mean_silhouette_of_clients_that_are_all_the_same_is_zero():
    assert mean_silhouette(np.zeros((4, 4)), [0, 0, 1, 1]) == 0


def test_stability_tells_firm_pairs_from_loose_ones():
    P = grouped_predictions(0, TWO)
    S = cluster_stability(P, resamples=10, rng=np.random.default_rng(0))
    assert (np.diag(S) == 1).all()
    assert S[0, 1] == 1
    assert S[0, 9] == 0
    D = pairwise_distances(P)
    knife_edge = cluster_stability(P, threshold=D[0, 1], resamples=40, rng=np.random.default_rng(0))
    assert 0 < knife_edge[0, 1] < 1


# --- the target of a cluster ---


def test_mean_is_the_plain_mean():
    P = random_predictions(4)
    np.testing.assert_allclose(aggregate(P), P.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("how", ["median", "trimmed_mean"])
def test_robust_targets_withstand_a_wrong_member(how):
    honest = np.tile([0.9, 0.1], (4, 6, 1))
    P = np.concatenate([honest, np.tile([0.0, 1.0], (1, 6, 1))])
    assert aggregate(P)[0, 0] == pytest.approx(0.72)
    assert aggregate(P, how)[0, 0] == pytest.approx(0.9)


@pytest.mark.parametrize("how", ["mean", "median", "trimmed_mean"])
def test_targets_sum_to_one_even_where_all_medians_are_zero(how):
    assert aggregate(np.eye(3)[:, None, :], how).sum() == pytest.approx(1)
    assert aggregate(random_predictions(5), how).sum(axis=1) == pytest.approx(1)


def test_a_single_member_is_its_own_target():
    P = random_predictions(6, n=1)
    for how in ("mean", "median", "trimmed_mean"):
        np.testing.assert_allclose(aggregate(P, how), P[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_mean_that_is_accumulated_is_the_mean(dtype):
    P = random_predictions(7, n=300).astype(dtype)
    mean = MeanAccumulator()
    for p in P:
        mean.add(p)
    np.testing.assert_allclose(mean.result(), aggregate(P, "mean"), rtol=1e-6)
    assert mean.result().dtype == np.float32


@pytest.mark.parametrize("how", ["mean", "median", "trimmed_mean"])
def test_targets_from_half_precision_do_not_lose_more(how):
    P = random_predictions(8, n=2000).astype(np.float16)
    np.testing.assert_allclose(aggregate(P, how), aggregate(P.astype(np.float64), how), rtol=1e-6)


def test_bad_arguments_of_the_accumulator_are_named():
    mean = MeanAccumulator()
    with pytest.raises(ValueError, match="result: no member's probabilities were added"):
        mean.result()
    with pytest.raises(ValueError, match=r"probabilities: shape \(3,\); expected \(samples, classes\)"):
        mean.add(np.ones(3))
    mean.add(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"probabilities: shape \(2, 2\); expected \(3, 2\)"):
        mean.add(np.ones((2, 2)))


def test_bad_arguments_of_aggregate_are_named():
    with pytest.raises(ValueError, match="how: 'mode'; expected one of mean"):
        aggregate(random_predictions(0), "mode")
    with pytest.raises(ValueError, match=r"trim: 0.5; expected a fraction in \[0, 0.5\)"):
        aggregate(random_predictions(0), "trimmed_mean", trim=0.5)
