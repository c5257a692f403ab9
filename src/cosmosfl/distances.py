"""How far apart clients' predictions are: exactly for all pairs, or only who is within a threshold of whom.

Pure functions. Throughout, `predictions` has shape (N, m, C): N clients' class probabilities on m public samples, of
any float type, in memory or memory-mapped. They are read a few samples at a time, so nothing of their size is copied.

Every distance is a function of inner products between clients' feature vectors (N, m · C), see `_features`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cosmosfl.randomness import stream

Predictions = npt.NDArray[np.floating[Any]]
Distances = npt.NDArray[np.float64]
Neighbours = npt.NDArray[np.bool_]
Vectors = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Tile = tuple[slice | Indices, slice | Indices]
Metric = Literal["l2", "cosine", "aitchison", "correlation", "disagreement"]

METRICS: tuple[Metric, ...] = get_args(Metric)
LEAST_PROBABILITY = 1e-3
"""Floor under probabilities before their logarithm is taken, so that a forest's zero is not infinitely far away."""
PROJECTION = 1024
"""Random directions that `neighbours` projects on by default. They tell a cosine of 0 from one of 0.25 for every pair
of 10,000 clients; half of that would take four times as many, and then the exact products cost no more."""
FAILURE = 1e-6
"""Probability that the error of a projection is beyond `projection_error` for any pair at all."""
ROUNDING = 1e-4
"""Allowance for single precision in projected cosines, far above the 1e-6 that it does to them."""
SAME = 1e-13
"""Part of a squared norm below which a squared distance is rounding, and zero."""
SLICE = 2**25
"""Numbers held of the feature vectors at a time: 256 MB."""
COLUMNS = 2**14
"""And of each vector at most this many, since a projection takes as many rows of random directions."""
TILE = 512
"""Clients on either side of a block of a matrix between clients."""


def pairwise_distances(predictions: npt.ArrayLike, metric: Metric = "cosine") -> Distances:
    """Return the distances (N, N) between clients. None of them changes when the public set is repeated.

    In float64, block by block: N² · m · C / 2 multiplications, and 12 N² bytes beside the slices of `predictions`.

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
    P = check_predictions(predictions)
    check_metric(metric)
    distances = np.empty((len(P), len(P)))
    for (rows, columns), tile in _distances(P, metric, np.arange(len(P)), _tiles(len(P))):
        distances[rows, columns] = tile
        distances[columns, rows] = tile.T
    np.fill_diagonal(distances, 0)
    return distances


def neighbours(
    predictions: npt.ArrayLike,
    threshold: float,
    metric: Metric = "cosine",
    *,
    projection: int | None = None,
    seed: int = 0,
) -> Neighbours:
    """Return who is at most `threshold` from whom, (N, N), without the distances of all pairs.

    Feature vectors are projected on k Gaussian directions. The cosine r between two of them is then near the true one,
    c: ``|r - c| / (1 - r c) <= w`` holds for all pairs at once with probability 1 - 1e-6, where w is
    ``projection_error(N, k)``. Pairs that this leaves on one side of the threshold are decided; the distances of all
    others are computed exactly. With that probability, then, the answer is that of ``pairwise_distances(...) <=
    threshold``, up to the rounding of its float64.

    This holds for any predictions that do not depend on `seed`. What depends on them is the time: N · m · C · k
    multiplications, and m · C for each pair left. Where groups are far apart those are the pairs within groups; at
    worst all pairs are left, and the projection came on top.

    Parameters
    ----------
    threshold
        B0; a neighbour is at most this far away.
    projection
        The number of directions k; 0 computes all distances. By default 0 up to 4,096 clients, where a projection
        would save nothing, and 1,024 beyond.
    seed
        Of the random directions.
    """
    P = check_predictions(predictions)
    check_metric(metric)
    if not np.isfinite(threshold):
        raise ValueError(f"threshold: {threshold!r}; expected a finite number")
    if projection is None:
        projection = PROJECTION if len(P) > 4 * PROJECTION else 0
    if projection == 0:
        return pairwise_distances(P, metric) <= threshold
    if projection < 16:
        raise ValueError(f"projection: {projection!r}; expected 0 (none) or at least 16 directions")
    near, unclear = _near_by_projection(P, threshold, metric, projection, seed)
    _decide(P, threshold, metric, near, unclear)
    np.fill_diagonal(near, threshold >= 0)
    return near


def projection_error(n_clients: int, projection: int) -> float:
    """Return the w such that ``|r - c| / (1 - r c) <= w`` for all pairs of clients with probability 1 - `FAILURE`.

    c is the cosine of two vectors and r that of their Gaussian projections on k directions: a sample correlation of
    known means. From its density (Fisher 1915, Hotelling 1953) follows that of ``u = (r - c) / (1 - r c)``, at most
    ``1.01 sqrt(k / pi) (1 - u²)^((k - 3) / 2)``, and from that ``P(u > w) <= (1 - w²)^((k - 1) / 2)`` for any
    ``w >= 1 / sqrt(k)``. Either tail of each of the N (N - 1) / 2 pairs gets the same share of `FAILURE`.
    """
    tails = max(n_clients * (n_clients - 1), 1)
    return float(np.sqrt(-np.expm1(2 / (projection - 1) * np.log(FAILURE / tails))))


def check_predictions(predictions: npt.ArrayLike) -> Predictions:
    """Return `predictions`, uncopied if they are floats; refuse what is not of shape (N, m, C)."""
    P = np.asarray(predictions)
    if P.dtype.kind not in "biuf":
        raise ValueError(f"predictions: dtype {P.dtype}; expected numbers")
    if P.ndim != 3 or 0 in P.shape:
        raise ValueError(f"predictions: shape {P.shape}; expected (clients, samples, classes), none of them zero")
    return P if P.dtype.kind == "f" else P.astype(np.float64)


def check_metric(metric: str) -> None:
    """Refuse a metric that does not exist."""
    if metric not in METRICS:
        raise ValueError(f"metric: {metric!r}; expected one of {', '.join(METRICS)}")


# --- exact ---


def _tiles(n: int) -> list[tuple[slice, slice]]:
    """Return blocks that cover the upper half of an (n, n) matrix."""
    blocks = [slice(start, start + TILE) for start in range(0, n, TILE)]
    return [(rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:]]


def _features(P: Predictions, metric: Metric, clients: Indices) -> Iterator[Vectors]:
    """Yield the feature vectors (n, m · C) of `clients`, a few columns at a time."""
    n, (m, C) = len(clients), P.shape[1:]
    step = max(1, min(SLICE // n, COLUMNS) // C)
    parts = [slice(start, start + step) for start in range(0, m, step)]
    if metric == "correlation":
        profile = sum(P[clients, part].sum(axis=1, dtype=np.float64) for part in parts)[:, None] / m
    for part in parts:
        p = P[clients, part].astype(np.float64)
        match metric:
            case "cosine":
                p -= P.dtype.type(1 / C)  # as P itself has it, so that a client that says nothing is exactly zero
            case "aitchison":
                p = np.log(np.maximum(p, LEAST_PROBABILITY))
                p -= p.mean(axis=2, keepdims=True)
            case "correlation":
                p -= profile
            case "disagreement":
                p = (p.argmax(axis=2)[:, :, None] == np.arange(C)).astype(np.float64)
        yield p.reshape(n, -1)


def _distances(
    P: Predictions, metric: Metric, clients: Indices, tiles: Sequence[Tile]
) -> Iterator[tuple[Tile, Distances]]:
    """Yield each tile (rows and columns counted among `clients`) with the distances between those clients."""
    squares = np.zeros(len(clients))
    products = [np.zeros(())] * len(tiles)
    for part in _features(P, metric, clients):
        squares += np.einsum("ij,ij->i", part, part)
        for t, (rows, columns) in enumerate(tiles):
            left = part[rows]
            right = left if columns is rows else part[columns]  # the same array: half the work, exactly symmetric
            products[t] = products[t] + left @ right.T
    _check_finite(squares, clients)
    for (rows, columns), product in zip(tiles, products, strict=True):
        yield (rows, columns), _from_products(product, squares[rows][:, None], squares[columns], metric, P.shape[1])


def _from_products(product: Vectors, rows: Vectors, columns: Vectors, metric: Metric, m: int) -> Distances:
    """Return distances from inner products and the squared norms of `rows` and `columns`."""
    match metric:
        case "l2":
            both = rows + columns
            squared = both - 2 * product
            result = np.sqrt(np.where(squared > SAME * both, squared, 0) / m)
        case "disagreement":
            result = (m - product) / m
        case _:
            apart = 1 - product * (_inverse(rows) * _inverse(columns))
            result = np.where(apart > SAME, np.minimum(apart, 2), 0)
    return result


def _inverse(squares: Vectors) -> Vectors:
    """Return one over the norms; zero for a vector of zero, which says nothing and is unrelated to all."""
    return np.divide(1, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 1e-18)


def _check_finite(squares: Vectors, clients: Indices) -> None:
    bad = clients[~np.isfinite(squares)]
    if len(bad):
        raise ValueError(f"predictions: NaN or infinity from client {bad[0]}; expected finite probabilities")


# --- by projection ---


def _near_by_projection(
    P: Predictions, threshold: float, metric: Metric, k: int, seed: int
) -> tuple[Neighbours, Neighbours]:
    """Return who is probably near whom, and for which pairs that is unclear (N, N)."""
    n, m, _ = P.shape
    rng = stream(seed, "projection")
    projected = np.zeros((n, k), dtype=np.float32)
    squares = np.zeros(n)
    for part in _features(P, metric, np.arange(n)):
        squares += np.einsum("ij,ij->i", part, part)
        directions = rng.standard_normal((part.shape[1], k), dtype=np.float32)
        projected += part.astype(np.float32) @ directions
    _check_finite(squares, np.arange(n))
    lengths = np.where(squares > 1e-18, np.linalg.norm(projected, axis=1), np.inf)
    projected /= lengths[:, None].astype(np.float32)

    w = projection_error(n, k)
    near = np.empty((n, n), dtype=bool)
    unclear = np.empty((n, n), dtype=bool)
    for rows, columns in _tiles(n):
        r = projected[rows] @ projected[columns].T
        least = _least_cosine(threshold, metric, m, squares[rows][:, None], squares[columns])
        low, high = (least - w) / (1 - least * w), (least + w) / (1 + least * w)
        for matrix, tile in ((near, r >= least), (unclear, (r >= low - ROUNDING) & (r <= high + ROUNDING))):
            matrix[rows, columns] = tile
            matrix[columns, rows] = tile.T
    np.fill_diagonal(unclear, False)
    return near, unclear


def _least_cosine(threshold: float, metric: Metric, m: int, rows: Vectors, columns: Vectors) -> Vectors | float:
    """Return the cosine from which clients with these squared norms are within `threshold` of each other."""
    if metric != "l2":
        return float(np.clip(1 - threshold, -1, 1))
    norms = np.maximum(np.sqrt(rows) * np.sqrt(columns), 1e-9)
    least: Vectors = np.clip((rows + columns - m * threshold * abs(threshold)) / (2 * norms), -1, 1)
    return least


def _decide(P: Predictions, threshold: float, metric: Metric, near: Neighbours, unclear: Neighbours) -> None:
    """Set `near` by the exact distance where that is `unclear`.

    Clients are brought into an order in which unclear pairs lie together, so that few blocks of the matrix hold any,
    and those are products of matrices.
    """
    order = _side_by_side(near | unclear)
    order = order[unclear[order].any(axis=1)]
    tiles: list[Tile] = []
    for rows, columns in _tiles(len(order)):
        asked = unclear[np.ix_(order[rows], order[columns])]
        if asked.any():
            first = rows.start + np.flatnonzero(asked.any(axis=1))
            second = first if rows == columns else columns.start + np.flatnonzero(asked.any(axis=0))
            tiles.append((first, second))
    if not tiles:
        return
    for (first, second), tile in _distances(P, metric, order, tiles):
        within = tile <= threshold
        near[np.ix_(order[first], order[second])] = within
        near[np.ix_(order[second], order[first])] = within.T


def _side_by_side(related: Neighbours) -> Indices:
    """Return an order of the clients in which most are beside those that they are related to."""
    leader = np.full(len(related), -1)
    for i, row in enumerate(related):
        if leader[i] < 0:
            leader[row & (leader < 0)] = i
            leader[i] = i
    return np.argsort(leader, kind="stable")
