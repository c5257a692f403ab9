"""Who should learn with whom: clusters from a threshold on the distances between clients, and what a cluster learns.

Pure functions. Throughout, `predictions` has shape (N, m, C): N clients' class probabilities on m public samples, of
any float type, in memory or memory-mapped.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import FloatArray
from cosmosfl.distances import (
    METRICS,
    Distances,
    Metric,
    Neighbours,
    check_predictions,
    neighbours,
    pairwise_distances,
)
from cosmosfl.randomness import stream

__all__ = [
    "METRICS",
    "Aggregation",
    "Distances",
    "MeanAccumulator",
    "Metric",
    "Partition",
    "aggregate",
    "auto_threshold",
    "cluster_labels",
    "cluster_stability",
    "clusters_within",
    "greedy_clusters",
    "mean_silhouette",
    "pairwise_distances",
    "threshold_for",
]

Partition = list[list[int]]
Aggregation = Literal["mean", "median", "trimmed_mean"]

STRUCTURE = 0.35
"""Mean silhouette from which `auto_threshold` believes in groups that are far apart. The usual reading of silhouettes
(Kaufman and Rousseeuw 1990) puts the border between none and weak structure at 0.25 and that to reasonable structure at
0.5; this lies between, and benchmarks/clusters.py shows what comes of it, with groups and without."""
UNRELATED = 0.75
"""And clients of different groups have to be far apart: their mean cosine distance at least this. Clients that agree
more than that have much to learn from each other, even where some agree better still."""
MAX_CANDIDATES = 256
LARGEST: dict[Metric, float] = {"l2": 2**0.5, "cosine": 2, "aitchison": 2, "correlation": 2, "disagreement": 1}
"""The largest distance that there can be."""
SAMPLE = 1000
"""Clients beyond which `auto_threshold` decides on a sample of that many."""
SEARCHED = 100
"""Clients up to which `threshold_for` tries every distance; beyond, it bisects."""
BISECTIONS = 60


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
    return _eliminate(_check_distances(distances) <= threshold)


def clusters_within(
    predictions: npt.ArrayLike,
    threshold: float,
    metric: Metric = "cosine",
    *,
    projection: int | None = None,
    seed: int = 0,
) -> Partition:
    """Return ``greedy_clusters(pairwise_distances(predictions, metric), threshold)``, fast for many clients.

    Beyond 4,096 clients, who is near whom is first estimated by a random projection. Its error is within a known bound
    for all pairs at once with probability 1 - 1e-6, and pairs so near the threshold that this leaves them open are
    compared exactly: with that probability the clusters are the exact ones. `cosmosfl.distances.neighbours` says more,
    also of the parameters.
    """
    return _eliminate(neighbours(predictions, threshold, metric, projection=projection, seed=seed))


def threshold_for(distances: npt.ArrayLike, n_clusters: int) -> float:
    """Return the smallest threshold at which greedy elimination gives `n_clusters` clusters.

    For those who know how many there are; the research code searches like this for the *true* number of groups. With
    more than 100 clients (`SEARCHED`) it is the threshold that bisection meets first, not always the smallest; and as
    the number of clusters need not fall steadily while the threshold rises, bisection may find none where there is one.

    Raises
    ------
    ValueError
        If no threshold gives that number; the message names the nearest that was found.
    """
    D = _check_distances(distances)
    if not 1 <= n_clusters <= len(D):
        raise ValueError(f"n_clusters: {n_clusters}; expected 1 to {len(D)}, the number of clients")
    found = _try_all(D, n_clusters) if len(D) <= SEARCHED else _bisect(D, n_clusters)
    if n_clusters not in found:
        near = min(found, key=lambda k: abs(k - n_clusters))
        gives = "gives" if len(D) <= SEARCHED else "was found that gives"
        raise ValueError(
            f"n_clusters: no threshold {gives} {n_clusters} clusters; the nearest that one gives is {near}"
        )
    return found[n_clusters]


def auto_threshold(predictions: npt.ArrayLike, metric: Metric = "cosine") -> float:
    """Choose B0 from the predictions alone, with no knowledge of the groups.

    1. Among the partitions that greedy elimination gives at any threshold, take the one with the greatest mean
       silhouette (Rousseeuw 1987): members near each other and far from the next cluster. If that is at least
       `STRUCTURE`, and clients of different clusters are far apart (`UNRELATED`), these are the clusters. So they are
       if members are closer than that, and clients of different clusters not related at all (a mean cosine of
       ``P - 1/C`` of zero or below), as where few clients have the same classes in very different shares.
    2. Otherwise there are no groups. Clients whose predictions are on average related (mean cosine of ``P - 1/C`` above
       zero, but for pairs that step 1 would join) form one cluster, unrelated ones stay alone.

    More than 1,000 clients (`SAMPLE`) are judged by a random sample of as many, always the same for the same number of
    clients. Groups of which hardly anyone is in the sample have no say then, and where distances within groups and
    between them overlap, chance has one. To leave room for clients that are not in the sample, the threshold is then
    not the smallest that gives these clusters, but in the middle of those that were tried and do.

    Returns
    -------
    float
        A threshold for `greedy_clusters` on ``pairwise_distances(predictions, metric)``, or for `clusters_within`, in
        the middle of an interval between distances in which it gives these clusters.
    """
    P = check_predictions(predictions)
    if len(P) == 1:
        return 0.0
    sampled = len(P) > SAMPLE
    if sampled:
        P = P[np.sort(stream(0, "auto_threshold").choice(len(P), SAMPLE, replace=False))]
    D = pairwise_distances(P, metric)
    upper = np.triu_indices(len(P), 1)
    cosines = (D if metric == "cosine" else pairwise_distances(P, "cosine"))[upper]
    silhouette, threshold, middle = _best_silhouette(D)
    labels = cluster_labels(greedy_clusters(D, threshold))
    same = labels[upper[0]] == labels[upper[1]]
    within, apart = cosines[same], cosines[~same]
    structured, together = _are_groups(silhouette, within, apart), bool((apart if apart.size else cosines).mean() < 1)
    if sampled:  # with room for clients that are further apart than any in the sample, or closer
        return middle if structured else LARGEST[metric] if together else 0.0
    if structured:
        return threshold
    return float(D.max()) if together else float(D[upper].min()) / 2


def _are_groups(silhouette: float, within: npt.NDArray[Any], apart: npt.NDArray[Any]) -> bool:
    """Say whether a partition shows groups, by its silhouette and the cosine distances within clusters and between."""
    if not (within.size and apart.size):
        return False
    if silhouette >= STRUCTURE:
        return bool(apart.mean() >= UNRELATED)
    return bool(within.mean() < UNRELATED and apart.mean() >= 1)


class MeanAccumulator:
    """The mean target of a cluster, one member at a time: what ``aggregate(predictions, "mean")`` gives, without them.

    ``add`` each member's probabilities (m, C), then ask for the `result`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: npt.NDArray[np.float64] | None = None

    def add(self, probabilities: npt.ArrayLike) -> None:
        """Count in a member's probabilities (m, C)."""
        P = np.asarray(probabilities)
        if P.ndim != 2 or 0 in P.shape:
            raise ValueError(f"probabilities: shape {P.shape}; expected (samples, classes), none of them zero")
        if self.total is None:
            self.total = np.zeros(P.shape)
        elif P.shape != self.total.shape:
            raise ValueError(f"probabilities: shape {P.shape}; expected {self.total.shape} as of the members before")
        self.total += P
        self.count += 1

    def result(self) -> FloatArray:
        """Return the mean (m, C); rows sum to one."""
        if self.total is None:
            raise ValueError("result: no member's probabilities were added; expected at least one")
        return _to_distributions(self.total / self.count)


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
    P = check_predictions(predictions)
    match how:
        case "mean":
            target = P.mean(axis=0, dtype=np.float64)
        case "median":
            target = np.median(P.astype(np.float64), axis=0)
        case "trimmed_mean":
            if not 0 <= trim < 0.5:
                raise ValueError(f"trim: {trim!r}; expected a fraction in [0, 0.5)")
            cut = max(int(trim * len(P)), 1 if len(P) >= 3 and trim > 0 else 0)
            target = np.sort(P, axis=0)[cut : len(P) - cut].mean(axis=0, dtype=np.float64)
        case _:
            raise ValueError(f"how: {how!r}; expected one of {', '.join(get_args(Aggregation))}")
    return _to_distributions(target)


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
    P = check_predictions(predictions)
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


def mean_silhouette(distances: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean silhouette (Rousseeuw 1987) of a partition, as scikit-learn's ``silhouette_score`` does.

    Parameters
    ----------
    distances
        Symmetric (N, N) with a zero diagonal.
    labels
        Each client's cluster, (N,), 0 to K - 1 with none left out; K at least 2.
    """
    D, own = _check_distances(distances), np.asarray(labels)
    order = np.argsort(own, kind="stable")
    sizes = np.bincount(own)
    everyone = np.arange(len(D))
    totals = np.add.reduceat(D[order], np.append(0, np.cumsum(sizes)[:-1]), axis=0)  # (K, N): cluster to client
    within = totals[own, everyone] / np.maximum(sizes[own] - 1, 1)
    means = totals / sizes[:, None]
    means[own, everyone] = np.inf
    between = means.min(axis=0)
    largest = np.maximum(within, between)
    values = np.divide(between - within, largest, out=np.zeros(len(D)), where=(sizes[own] > 1) & (largest > 0))
    return float(values.mean())


def _check_distances(distances: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
    D = np.asarray(distances)
    if D.ndim != 2 or D.shape[0] != D.shape[1] or not len(D):
        raise ValueError(f"distances: shape {D.shape}; expected (clients, clients), not zero")
    return D


def _eliminate(near: Neighbours) -> Partition:
    """Cluster by greedy elimination from who is near whom, a symmetric matrix (N, N)."""
    np.fill_diagonal(near, True)
    remaining = np.ones(len(near), dtype=bool)
    counts = near.sum(axis=1)
    clusters: Partition = []
    while remaining.any():
        center = int(np.where(remaining, counts, -1).argmax())
        members = np.flatnonzero(near[center] & remaining)
        clusters.append(members.tolist())
        remaining[members] = False
        counts -= near[members].sum(axis=0)  # rows are contiguous, and the matrix is symmetric
    return clusters


def _to_distributions(target: npt.NDArray[np.float64]) -> FloatArray:
    """Bring rows back to sum to one; a row of zeros becomes uniform."""
    total = target.sum(axis=1, keepdims=True)
    uniform = np.full_like(target, 1 / target.shape[1])
    result: FloatArray = np.where(total > 0, target / np.where(total > 0, total, 1), uniform).astype(np.float32)
    return result


def _candidates(D: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    return np.unique(np.append(D[np.triu_indices(len(D), 1)], 0.0))


def _try_all(D: npt.NDArray[np.floating[Any]], n_clusters: int) -> dict[int, float]:
    """Return, by the number of clusters that it gives, the smallest threshold; only up to `n_clusters` if that is met.

    Each is the middle of the interval to the next distance, in which nothing changes.
    """
    values = _candidates(D)
    found: dict[int, float] = {}
    for value, following in zip(values, np.append(values[1:], values[-1]), strict=True):
        k = len(greedy_clusters(D, value))
        found.setdefault(k, float((value + following) / 2))
        if k == n_clusters:
            break
    return found


def _bisect(D: npt.NDArray[np.floating[Any]], n_clusters: int) -> dict[int, float]:
    """Return thresholds by the number of clusters that they give, on the way from either end to `n_clusters`."""
    low, high = 0.0, float(D.max())
    found = {len(greedy_clusters(D, threshold)): threshold for threshold in (high, low)}
    for _ in range(BISECTIONS):
        if n_clusters in found:
            break
        middle = (low + high) / 2
        k = len(greedy_clusters(D, middle))
        found[k] = middle
        low, high = (middle, high) if k > n_clusters else (low, middle)
    return found


def _best_silhouette(D: npt.NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """Return the greatest mean silhouette of a greedy partition into 2 to N - 1 clusters, and two of its thresholds.

    One is the middle of the first interval between distances in which it is the partition; the other is the middle of
    all thresholds that were tried and give it. With more than `MAX_CANDIDATES` distinct distances, that many quantiles
    of them are tried.
    """
    values = _candidates(D)
    following = np.append(values[1:], values[-1])
    chosen = np.unique(np.linspace(0, len(values) - 1, MAX_CANDIDATES).astype(int))
    best, low, first, last = -1.0, 0.0, 0.0, 0.0
    best_partition = previous = b""
    seen: set[bytes] = set()
    for value, after in zip(values[chosen].tolist(), following[chosen].tolist(), strict=True):
        labels = cluster_labels(sorted(greedy_clusters(D, value)))  # the same labels for the same clusters
        partition = labels.tobytes()
        if partition == best_partition == previous:
            last = after
        previous = partition
        if not 1 <= labels.max() < len(D) - 1 or partition in seen:
            continue
        seen.add(partition)
        silhouette = mean_silhouette(D, labels)
        if silhouette > best:
            best, low, first, last, best_partition = silhouette, value, after, after, partition
    return best, (low + first) / 2, (low + last) / 2
