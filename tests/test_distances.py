"""Distances by blocks, and neighbours by projection: the same as from the formulas, with less work and memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from cosmosfl import distances
from cosmosfl.distances import METRICS, neighbours, pairwise_distances, projection_error


def grouped(seed: int, n: int, m: int = 40, c: int = 10, groups: int = 4) -> np.ndarray:
    """Clients of a group agree on most samples, each with mistakes and a confidence of its own."""
    rng = np.random.default_rng(seed)
    says = rng.integers(c, size=(groups, m))
    P = np.empty((n, m, c))
    for i in range(n):
        answer = np.where(rng.random(m) < rng.uniform(0.05, 0.4), rng.integers(c, size=m), says[i % groups])
        logits = 0.5 * rng.standard_normal((m, c))
        logits[np.arange(m), answer] += 4
        odds = np.exp(logits * rng.uniform(0.3, 1))
        P[i] = odds / odds.sum(axis=1, keepdims=True)
    return P


def by_the_formula(P: np.ndarray, metric: str) -> np.ndarray:
    """Compute all distances pair by pair."""
    N, m, C = P.shape

    def distance(p: np.ndarray, q: np.ndarray) -> float:
        if metric == "l2":
            return np.linalg.norm(p - q) / np.sqrt(m)
        if metric == "disagreement":
            return (p.argmax(axis=1) != q.argmax(axis=1)).mean()
        a, b = (vector(x) for x in (p, q))
        return 1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)

    def vector(p: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(p, 1e-3))
        return {"cosine": p - 1 / C, "correlation": p - p.mean(axis=0)}.get(metric, logs - logs.mean(axis=1)[:, None])

    return np.array([[0 if i == j else distance(P[i], P[j]) for j in range(N)] for i in range(N)])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 7 clients, slices of 3 samples of 10 classes."""
    monkeypatch.setattr(distances, "TILE", 7)
    monkeypatch.setattr(distances, "COLUMNS", 30)


def between_distances(D: np.ndarray, fraction: float) -> float:
    """Return a threshold in the middle between two neighbouring values among the distances."""
    values = np.unique(D)
    k = int(fraction * (len(values) - 2))
    return float(values[k] + values[k + 1]) / 2


# --- all pairs ---


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_the_formula(metric):
    P = grouped(0, 9)
    np.testing.assert_allclose(pairwise_distances(P, metric), by_the_formula(P, metric), atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_do_not_change_the_distances(metric, small_blocks):
    P = grouped(1, 23)
    D = pairwise_distances(P, metric)
    np.testing.assert_allclose(D, by_the_formula(P, metric), atol=1e-12)
    assert (D == D.T).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_lower_precision_in_a_file_is_read_as_it_is(metric, dtype, tmp_path, small_blocks):
    P = grouped(2, 16).astype(dtype)
    mapped = np.memmap(tmp_path / "predictions", dtype=dtype, mode="w+", shape=P.shape)
    mapped[:] = P
    np.testing.assert_allclose(
        pairwise_distances(mapped, metric), pairwise_distances(P.astype(np.float64), metric), atol=1e-6
    )
    assert (neighbours(mapped, 0.4, metric, projection=64) == (pairwise_distances(mapped, metric) <= 0.4)).all()


@pytest.mark.parametrize("projection", [0, 64])
def test_predictions_are_not_copied(projection, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "SLICE", 2**16)
    mapped = np.memmap(tmp_path / "predictions", dtype=np.float16, mode="w+", shape=(64, 4000, 10))
    mapped[:] = np.random.default_rng(0).dirichlet(np.ones(10), size=(64, 4000))
    tracemalloc.start()
    neighbours(mapped, 0.5, "correlation", projection=projection)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes


def test_equal_clients_are_exactly_zero_apart():
    P = np.repeat(grouped(3, 1), 5, axis=0)
    for metric in METRICS:
        assert (pairwise_distances(P, metric) == 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clients_that_say_nothing_are_unrelated_to_each_other_in_any_precision(dtype):
    P = np.full((2, 5, 47), 1 / 47, dtype=dtype)
    assert pairwise_distances(P)[0, 1] == 1
    assert (neighbours(P, 0.5, projection=64) == np.eye(2, dtype=bool)).all()


def test_a_client_whose_predictions_are_not_finite_is_named():
    P = grouped(4, 5)
    P[3, 0, 0] = np.nan
    for projection in (0, 16):
        with pytest.raises(ValueError, match="predictions: NaN or infinity from client 3; expected finite"):
            neighbours(P, 0.5, projection=projection)


def test_predictions_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="predictions: dtype <U1; expected numbers"):
        pairwise_distances([[["a"]]])


# --- neighbours ---


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("fraction", [0.02, 0.2, 0.5, 0.9])
def test_neighbours_by_projection_are_the_exact_ones(metric, fraction):
    P = grouped(5, 90)
    D = pairwise_distances(P, metric)
    threshold = between_distances(D, fraction)
    assert (neighbours(P, threshold, metric, projection=256) == (threshold >= D)).all()


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_are_the_exact_ones_where_most_pairs_are_near_the_threshold(metric, small_blocks):
    rng = np.random.default_rng(6)
    center = rng.dirichlet(np.full(10, 0.3), size=40)
    P = 0.6 * center + 0.4 * rng.dirichlet(np.full(10, 0.3), size=(60, 40))  # all about as far from one another
    D = pairwise_distances(P, metric)
    threshold = between_distances(D, 0.5)
    assert (abs(D - threshold)[~np.eye(60, dtype=bool)] < 0.15).mean() > 0.9
    assert (neighbours(P, threshold, metric, projection=256) == (threshold >= D)).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("threshold", [-0.1, 0.0, 1.0, 2.0, 3.0])
def test_neighbours_at_the_ends_of_the_scale(metric, threshold):
    P = grouped(7, 20)
    P[1] = P[0]
    D = pairwise_distances(P, metric)
    assert (neighbours(P, threshold, metric, projection=128) == (threshold >= D)).all()


def test_only_pairs_near_the_threshold_are_computed_exactly(monkeypatch):
    P = grouped(8, 200, m=60)
    computed = []
    exact = distances._distances

    def counting(P, metric, clients, tiles):
        for tile, values in exact(P, metric, clients, tiles):
            computed.append(values.size)
            yield tile, values

    monkeypatch.setattr(distances, "TILE", 50)
    monkeypatch.setattr(distances, "_distances", counting)
    neighbours(P, 0.5, projection=1024)
    assert 0 < sum(computed) < 0.3 * P.shape[0] ** 2  # four groups: a quarter of the pairs is within one


def test_projections_are_repeatable_and_any_seed_gives_the_answer():
    P = grouped(9, 50)
    first, again, other = (distances._near_by_projection(P, 0.5, "cosine", 64, seed)[1] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (neighbours(P, 0.5, projection=64, seed=1) == neighbours(P, 0.5, projection=64, seed=2)).all()


@pytest.mark.parametrize("cosine", [-0.8, 0.0, 0.5, 0.95])
def test_the_error_of_a_projection_is_as_stated(cosine, monkeypatch):
    monkeypatch.setattr(distances, "FAILURE", 0.05)
    rng = np.random.default_rng(10)
    x, z = rng.standard_normal((2, 20_000, 100))  # what Gaussian directions make of two orthogonal unit vectors
    y = cosine * x + np.sqrt(1 - cosine**2) * z
    r = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    beyond = abs(r - cosine) / (1 - r * cosine) > projection_error(2, 100)
    assert 0.001 < beyond.mean() <= 0.05


@pytest.mark.parametrize("metric", ["cosine", "aitchison", "correlation"])
def test_the_stated_error_holds_for_all_pairs_of_clients(metric):
    P, k = grouped(11, 120), 256
    vectors = np.hstack(list(distances._features(P, metric, np.arange(len(P)))))
    projected = vectors @ np.random.default_rng(0).standard_normal((vectors.shape[1], k))
    upper = np.triu_indices(len(P), 1)
    unit = (v / np.linalg.norm(v, axis=1)[:, None] for v in (vectors, projected))
    c, r = ((v @ v.T)[upper] for v in unit)
    error = abs(r - c) / (1 - r * c)
    assert projection_error(len(P), k) / 3 < error.max() < projection_error(len(P), k)


def test_bad_arguments_of_neighbours_are_named():
    P = grouped(12, 3)
    with pytest.raises(ValueError, match="threshold: nan; expected a finite number"):
        neighbours(P, float("nan"))
    with pytest.raises(ValueError, match=r"projection: 3; expected 0 \(none\) or at least 16 directions"):
        neighbours(P, 0.5, projection=3)
    with pytest.raises(ValueError, match="metric: 'l1'; expected one of l2"):
        neighbours(P, 0.5, "l1", projection=64)
