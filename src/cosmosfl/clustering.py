"""Who should learn with whom: distances between clients' predictions, and clusters from a threshold on them.

Pure functions. Throughout, `predictions` has shape (N, m, C): N clients' class probabilities on m public samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from sklearn.metrics import silhouette_score

from cosmosfl.data.sets import FloatArray

Distances = npt.NDArray[np.float64]
Partition = list[list[int]]
Metric = Literal["l2", "cosine", "aitchison", "correlation", "disagreement"]
Aggregation = Literal["mean", "median", "trimmed_mean"]

METRICS: tuple[Metric, ...] = get_args(Metric)
LEAST_PROBABILITY = 1e-3
"""Floor under probabilities before their logarithm is taken, so that a forest's zero is not infinitely far away."""
STRUCTURE = 0.35
"""Mean silhouette from which `auto_threshold` believes in groups. The usual reading of silhouettes (Kaufman and
Rousseeuw 1990) puts the border between none and weak structure at 0.25 and that to reasonable structure at 0.5; this
lies between, and benchmarks/clusters.py shows what comes of it, with groups and without."""
UNRELATED = 0.75
"""And clients of different groups have to be far apart: their mean cosine distance at least this. Clients that agree
more than that have much to learn from each other, even where some agree better still."""
MAX_CANDIDATES = 256


def pairwise_distances(predictions: npt.ArrayLike, metric: Metric = "cosine") -> Distances:
    """Return the distances (N, N) between clients. None of them changes when the public set is repeated.

    Parameters
    ----------
    predictions
        Class probabilities (N, m, C).
    metric
        ``"l2"``: the paper's ``||P_i - P_j||_F / sqrt(m)``, in [0, sqrt(2)]. It sees how confident a client is, hence
        its architecture, before it sees its data.
        ``"cosine"``: one minus the cosine of ``P - 1/C``. Like the next two it ignores confidence and has a scale of
        its own: 0 same, 1 unrelated, 2 opposite.
        ``"aitchison"``: the same on centred log-probabilities.
        ``"correlation"``: the same on ``P - mean of P over samples``: only what a client tells apart counts, not which
        classes it prefers.
        ``"disagreement"``: the fraction of samples on which the most probable classes differ, in [0, 1].
    """
    P = _check(predictions)
    m, C = P.shape[1:]
    match metric:
        case "l2":
            flat = P.reshape(len(P), -1)
            gram = flat @ flat.T
            squares = np.diag(gram)
            result = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0) / m)
        case "cosine":
            result = _one_minus_cosine(P - 1 / C)
        case "aitchison":
            logs = np.log(np.maximum(P, LEAST_PROBABILITY))
            result = _one_minus_cosine(logs - logs.mean(axis=2, keepdims=True))
        case "correlation":
            result = _one_minus_cosine(P - P.mean(axis=1, keepdims=True))
        case "disagreement":
            choice = P.argmax(axis=2)
            result = np.array([(choice != row).mean(axis=1) for row in choice])
        case _:
            raise ValueError(f"metric: {metric!r}; expected one of {', '.join(METRICS)}")
    symmetric: Distances = (result + result.T) / 2
    np.fill_diagonal(symmetric, 0)
    return symmetric


def greedy_clusters(distances: npt.ArrayLike, threshold: float) -> Partition:
    """Cluster by greedy elimination (phase 1, step 2 of the paper).

    Among the clients that remain, take the one with most remaining neighbours within `threshold` (ties: the lowest
    index); it and those neighbours form a cluster; remove them; repeat.

    Parameters
    ----------
    distances
        Symmetric (N, N) with a zero diagonal.
    threshold
        B0; a neighbour is at most this far away.

    Returns
    -------
    list of list of int
        Clusters in the order of elimination, the members of each in ascending order. Everyone is in exactly one.
    """
    near = np.asarray(distances, dtype=np.float64) <= threshold
    np.fill_diagonal(near, True)
    remaining = np.ones(len(near), dtype=bool)
    counts = near.sum(axis=1)
    clusters: Partition = []
    while remaining.any():
        center = int(np.where(remaining, counts, -1).argmax())
        members = np.flatnonzero(near[center] & remaining)
        clusters.append(members.tolist())
        remaining[members] = False
        counts = counts - near[:, members].sum(axis=1)
    return clusters


def threshold_for(distances: npt.ArrayLike, n_clusters: int) -> float:
    """Return the smallest threshold at which greedy elimination gives `n_clusters` clusters.

    For those who know how many there are; the research code searches like this for the *true* number of groups.

    Raises
    ------
    ValueError
        If no threshold gives that number; the message names the nearest that can be had.
    """
    D = np.asarray(distances, dtype=np.float64)
    if not 1 <= n_clusters <= len(D):
        raise ValueError(f"n_clusters: {n_clusters}; expected 1 to {len(D)}, the number of clients")
    found: dict[int, float] = {}
    values = _candidates(D)
    for value, following in zip(values, np.append(values[1:], values[-1]), strict=True):
        k = len(greedy_clusters(D, value))
        if k == n_clusters:
            return float((value + following) / 2)
        found.setdefault(k, value)
    near = min(found, key=lambda k: abs(k - n_clusters))
    raise ValueError(f"n_clusters: no threshold gives {n_clusters} clusters; the nearest that one gives is {near}")


def auto_threshold(predictions: npt.ArrayLike, metric: Metric = "cosine") -> float:
    """Choose B0 from the predictions alone, with no knowledge of the groups.

    1. Among the partitions that greedy elimination gives at any threshold, take the one with the greatest mean
       silhouette (Rousseeuw 1987): members near each other and far from the next cluster. If that is at least
       `STRUCTURE`, and clients of different clusters are unrelated (`UNRELATED`), these are the clusters.
    2. Otherwise there are no groups. Clients whose predictions are on average related (mean cosine of ``P - 1/C`` above
       zero) form one cluster, unrelated ones stay alone.

    Returns
    -------
    float
        A threshold for `greedy_clusters` on ``pairwise_distances(predictions, metric)``, in the middle of the interval
        in which it gives these clusters.
    """
    P = _check(predictions)
    if len(P) == 1:
        return 0.0
    D = pairwise_distances(P, metric)
    upper = np.triu_indices(len(P), 1)
    cosines = pairwise_distances(P, "cosine")[upper]
    silhouette, threshold = _best_silhouette(D)
    labels = cluster_labels(greedy_clusters(D, threshold))
    apart = cosines[labels[upper[0]] != labels[upper[1]]]
    if silhouette >= STRUCTURE and apart.mean() >= UNRELATED:
        return threshold
    return float(D.max()) if cosines.mean() < 1 else float(D[upper].min()) / 2


def aggregate(predictions: npt.ArrayLike, how: Aggregation = "mean", *, trim: float = 0.2) -> FloatArray:
    """Return the target of a cluster, (m, C), from its members' probabilities (n, m, C).

    Parameters
    ----------
    how
        ``"mean"`` (the paper's P̄_k), ``"median"`` or ``"trimmed_mean"``, entry by entry; the latter two withstand a
        few wrong members. Rows are brought back to sum to one.
    trim
        Fraction of the members left out at either end by the trimmed mean, in [0, 0.5); at least one with three
        members or more.
    """
    P = _check(predictions)
    match how:
        case "mean":
            target = P.mean(axis=0)
        case "median":
            target = np.median(P, axis=0)
        case "trimmed_mean":
            if not 0 <= trim < 0.5:
                raise ValueError(f"trim: {trim!r}; expected a fraction in [0, 0.5)")
            cut = max(int(trim * len(P)), 1 if len(P) >= 3 and trim > 0 else 0)
            target = np.sort(P, axis=0)[cut : len(P) - cut].mean(axis=0)
        case _:
            raise ValueError(f"how: {how!r}; expected one of {', '.join(get_args(Aggregation))}")
    total = target.sum(axis=1, keepdims=True)
    uniform = np.full_like(target, 1 / target.shape[1])
    result: FloatArray = np.where(total > 0, target / np.where(total > 0, total, 1), uniform).astype(np.float32)
    return result


def cluster_stability(
    predictions: npt.ArrayLike,
    *,
    threshold: float | Literal["auto"] = "auto",
    metric: Metric = "cosine",
    resamples: int = 50,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Return how often each pair stays together, (N, N) in [0, 1], when the public set is resampled.

    Parameters
    ----------
    threshold
        B0, or ``"auto"`` to choose it anew in every resample.
    resamples
        Bootstrap samples of the m public samples.
    """
    P = _check(predictions)
    together = np.zeros((len(P), len(P)))
    for _ in range(resamples):
        sample = P[:, rng.integers(P.shape[1], size=P.shape[1])]
        b0 = auto_threshold(sample, metric) if threshold == "auto" else threshold
        labels = cluster_labels(greedy_clusters(pairwise_distances(sample, metric), b0))
        together += labels[:, None] == labels[None, :]
    return together / resamples


def cluster_labels(clusters: Partition) -> npt.NDArray[np.int64]:
    """Return each client's cluster index, (N,)."""
    labels = np.empty(sum(map(len, clusters)), dtype=np.int64)
    for k, members in enumerate(clusters):
        labels[members] = k
    return labels


def _check(predictions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    P = np.asarray(predictions, dtype=np.float64)
    if P.ndim != 3 or 0 in P.shape:
        raise ValueError(f"predictions: shape {P.shape}; expected (clients, samples, classes), none of them zero")
    return P


def _one_minus_cosine(vectors: npt.NDArray[np.float64]) -> Distances:
    """One minus the cosine between clients; a client whose vector is zero says nothing and is unrelated to all."""
    flat = vectors.reshape(len(vectors), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 1e-9)
    result: Distances = np.clip(1 - flat @ flat.T, 0, 2)
    return result


def _candidates(D: Distances) -> npt.NDArray[np.float64]:
    return np.unique(np.append(D[np.triu_indices(len(D), 1)], 0.0))


def _best_silhouette(D: Distances) -> tuple[float, float]:
    """Return the greatest mean silhouette of a greedy partition into 2 to N - 1 clusters, and its threshold.

    With more than `MAX_CANDIDATES` distinct distances, that many quantiles of them are tried.
    """
    values = _candidates(D)
    following = np.append(values[1:], values[-1])
    chosen = np.unique(np.linspace(0, len(values) - 1, MAX_CANDIDATES).astype(int))
    best, threshold = -1.0, 0.0
    seen: set[bytes] = set()
    for value, after in zip(values[chosen], following[chosen], strict=True):
        labels = cluster_labels(greedy_clusters(D, value))
        if not 1 <= labels.max() < len(D) - 1 or labels.tobytes() in seen:
            continue
        seen.add(labels.tobytes())
        silhouette = float(silhouette_score(D, labels, metric="precomputed"))
        if silhouette > best:
            best, threshold = silhouette, float(value + after) / 2
    return best, threshold
