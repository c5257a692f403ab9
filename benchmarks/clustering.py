"""Distances and clusters of many clients: seconds, memory, and whether the clusters are those of the exact method.

    python benchmarks/clustering.py --out results/clustering.csv    # 100, 1,000 and 10,000 clients, m · C = 100,000
    python benchmarks/clustering.py --quick                         # 100, 1,000 and 5,000 clients, m · C = 5,000

Clients of ten groups, each with classes, mistakes and a confidence of its own, hold float16 predictions. A line per
number of clients and way to cluster them:

``cosmosfl``      `auto_threshold` and `clusters_within`, that is everything that a server does to know its clusters
``exact``         `pairwise_distances` and `greedy_clusters` with that threshold, in float64
``scikit-learn``  `sklearn.metrics.pairwise_distances` on float32, and `greedy_clusters`
``double loop``   a dot product for every pair, on vectors that are normalised already; extrapolated from 2,000 pairs

Every measurement has a process of its own. Peak memory is what the process held at most beyond its state with the
predictions in memory; scikit-learn needs 9 GiB for 10,000 clients. `load` is the machine's when a measurement began:
where it is high, CPU seconds (of all threads) tell more than seconds. OMP_NUM_THREADS sets the threads, by default all
cores. The last line on stdout is a JSON object about ``cosmosfl`` with the most clients.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sklearn.metrics

from cosmosfl.clustering import (
    auto_threshold,
    cluster_labels,
    clusters_within,
    greedy_clusters,
    pairwise_distances,
)
from cosmosfl.randomness import stream

C = 100
GROUPS = 10
METHODS = ("cosmosfl", "exact", "scikit-learn", "double loop")
PAIRS = 2000
COLUMNS = ["clients", "m_times_c", "method", "seconds", "times_cosmosfl", "cpu_seconds", "threshold_seconds"]
COLUMNS += ["peak_gib", "threshold", "clusters", "same_as_exact", "load", "note"]
GIB = 2**30
Row = dict[str, object]


def write_predictions(path: Path, n: int, m: int) -> None:
    """Write predictions (n, m, C) in float16, client by client."""
    rng = stream(0, "public set", m)
    truth = rng.integers(C, size=m)
    taken_for = rng.integers(C // GROUPS, size=(C, m))[truth, np.arange(m)]  # what is said of a class one doesn't know
    P = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, m, C))
    for i in range(n):
        rng = stream(0, "client", i)
        first = C // GROUPS * (i % GROUPS)
        known = np.arange(first, first + C // GROUPS)
        answer = np.where(np.isin(truth, known), truth, known[taken_for])
        wrong = rng.random(m) < rng.uniform(0.05, 0.45)
        answer[wrong] = rng.choice(known, wrong.sum())
        logits = 0.5 * rng.standard_normal((m, C), dtype=np.float32)
        logits[np.arange(m), answer] += 4
        logits[:, known] += 2
        logits *= rng.uniform(0.3, 1.0)
        odds = np.exp(logits)
        P[i] = odds / odds.sum(axis=1, keepdims=True)
    P.flush()


def cluster(method: str, P: npt.NDArray[np.float16], threshold: float) -> Row:
    """Cluster by a method, in the fullest sense that it has."""
    start = time.perf_counter()
    row: Row = {}
    match method:
        case "cosmosfl":
            threshold = auto_threshold(P)
            row["threshold_seconds"] = time.perf_counter() - start
            clusters = clusters_within(P, threshold)
        case "exact":
            clusters = greedy_clusters(pairwise_distances(P), threshold)
        case "scikit-learn":
            vectors = P.reshape(len(P), -1).astype(np.float32)
            vectors -= 1 / C
            clusters = greedy_clusters(sklearn.metrics.pairwise_distances(vectors, metric="cosine"), threshold)
        case "double loop":
            return double_loop(P)
    seconds = time.perf_counter() - start
    return row | {"seconds": seconds, "threshold": threshold, "labels": cluster_labels(clusters).tolist()}


def double_loop(P: npt.NDArray[np.float16]) -> Row:
    """Compute distances pair by pair, but only as many as tell how long all would take."""
    vectors = P[:100].reshape(len(P[:100]), -1).astype(np.float64) - 1 / C
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = list(itertools.combinations(range(len(vectors)), 2))[:PAIRS]
    D = np.zeros((len(vectors), len(vectors)))
    start = time.perf_counter()
    for a, b in pairs:
        D[a, b] = D[b, a] = 1 - vectors[a] @ vectors[b]
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds * len(P) * (len(P) - 1) / 2 / len(pairs),
        "note": f"extrapolated from {len(pairs)} pairs",
    }


def measure(method: str, path: Path, threshold: float) -> Row:
    """Measure in this process: seconds, CPU seconds of all threads, and peak memory beyond the predictions."""
    P = np.load(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    row = cluster(method, P, threshold)
    cpu = time.process_time() - cpu
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return row if "note" in row else row | {"cpu_seconds": cpu, "peak_gib": (after - before) * 1024 / GIB}


def measured(method: str, path: Path, threshold: float) -> Row:
    """Measure in a process of its own."""
    load = os.getloadavg()[0]
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return {**pool.apply(measure, (method, path, threshold)), "load": load}


def compare(n: int, m: int, directory: Path) -> Iterator[Row]:
    """Yield a row for each method at this size."""
    path = directory / f"{n}.npy"
    write_predictions(path, n, m)
    rows = {}
    threshold = 0.0
    for method in METHODS:
        rows[method] = row = measured(method, path, threshold)
        threshold = rows["cosmosfl"]["threshold"]
    path.unlink()
    exact = rows["exact"]["labels"]
    for method, row in rows.items():
        labels = row.pop("labels", None)
        yield {
            "clients": n,
            "m_times_c": m * C,
            "method": method,
            **row,
            "clusters": len(set(labels)) if labels else None,
            "same_as_exact": labels == exact if labels else None,
            "times_cosmosfl": row["seconds"] / rows["cosmosfl"]["seconds"],
        }


def show(row: Row) -> str:
    """Return a line for a person."""
    memory = f"{row['peak_gib']:.2f} GiB" if row.get("peak_gib") is not None else "-"
    same = {True: "same clusters", False: "OTHER clusters", None: row.get("note", "")}[row["same_as_exact"]]
    return (
        f"{row['clients']:>6} clients  {row['method']:<12} {row['seconds']:>10.2f} s "
        f"{row['times_cosmosfl']:>8.1f} x  {memory:>9}  {same}"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write a CSV")
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer clients and samples")
    arguments = parser.parse_args()
    sizes, m = ((100, 1000, 5000), 50) if arguments.quick else ((100, 1000, 10_000), 1000)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for n in sizes:
            for row in compare(n, m, Path(directory)):
                rows.append(row)
                print(show(row), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    ours = next(row for row in reversed(rows) if row["method"] == "cosmosfl")
    print(json.dumps({key: ours[key] for key in ("clients", "seconds", "peak_gib", "same_as_exact")}))


if __name__ == "__main__":
    main()
