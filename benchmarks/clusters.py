"""Does the automatic threshold find the groups? Every distance, on the same predictions after one local training.

    COSMOSFL_DATA=... python benchmarks/clusters.py --out results/clusters.csv [--quick]

A line per federation and distance: the adjusted Rand index of ``threshold="auto"``, of a search for the true number of
groups (the research code's way), of fixed thresholds, and the best that any threshold can reach.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from cosmosfl.clustering import (
    METRICS,
    auto_threshold,
    cluster_labels,
    greedy_clusters,
    pairwise_distances,
    threshold_for,
)
from cosmosfl.config import ExperimentConfig, read_preset
from cosmosfl.data.sets import FloatArray
from cosmosfl.data.sources import load_source
from cosmosfl.experiment import Federation, build_federation
from cosmosfl.protocol import Client
from cosmosfl.randomness import stream

FIXED = (0.3, 0.5, 0.7, 0.9)
MIXTURES = {"mlp+cnn-s": ["mlp", "cnn-s"], "cnn-s": ["cnn-s"]}


def scenarios(quick: bool) -> list[dict[str, object]]:
    """Return the federations: the paper's split at three alphas, two sizes, two mixtures; then harder ones."""
    sizes, seeds = ((25,), (0,)) if quick else ((25, 50), (0, 1, 2))
    grid = [
        {"name": "paper's split", "alpha": a, "clients": n, "groups": 5, "mixing": 0.1, "mixture": m, "seed": s}
        for s, a, n, m in itertools.product(seeds, (1.0, 5.0, 100.0), sizes, MIXTURES)
    ]
    hard = [
        {"alpha": 1.0, "clients": 25, "groups": 5, "mixing": 0.3, "name": "mixing 30 %"},
        {"alpha": 5.0, "clients": 25, "groups": 1, "mixing": 0.1, "name": "no groups"},
        {"alpha": 5.0, "clients": 10, "groups": 10, "mixing": 0.0, "name": "every client alone"},
        {"alpha": 5.0, "clients": 25, "groups": 5, "mixing": 0.1, "samples": 40, "name": "weak clients (40 samples)"},
    ]
    groups = [
        {"alpha": 5.0, "clients": 25, "groups": len(set(LAYOUTS[name])), "mixing": 0.1, "name": name}
        for name in LAYOUTS
    ]
    return grid + [{**h, "mixture": "mlp+cnn-s", "seed": s} for s in seeds for h in hard + groups]


LAYOUTS: dict[str, list[range]] = {
    # the classes of each of 25 clients
    "shared classes (5 of 15)": [range(8 * (i % 5), 8 * (i % 5) + 15) for i in range(25)],
    "nested groups": [(range(12), range(24), range(24, 47))[i % 3] for i in range(25)],
    "one group twice as large": [(range(9), *(range(9 * g, 9 * g + 9) for g in range(5)))[i % 6] for i in range(25)],
}
"""Groups that the paper's split cannot make."""


def layout_clients(config: ExperimentConfig, layout: list[range]) -> Federation:
    """Give every client samples of its own classes, with Dirichlet proportions and the fraction mixed from all."""
    federation = build_federation(config)
    source = load_source(config.dataset.name, config.dataset.data_dir)
    n_classes, n = len(source.class_names), len(federation.clients[0].private)
    clients = []
    for client, classes in zip(federation.clients, layout, strict=True):
        rng = stream(config.seed, "layout", client.id)
        share = np.zeros(n_classes)
        share[list(classes)] = rng.dirichlet(np.full(len(classes), config.partition.alpha))
        share = (1 - config.partition.mixing) * share + config.partition.mixing / n_classes
        weights = share[source.train_labels] / np.bincount(source.train_labels)[source.train_labels]
        chosen = rng.choice(len(weights), n, replace=False, p=weights / weights.sum())
        clients.append(Client(client.id, client.learner, source.train_inputs[chosen], source.train_labels[chosen]))
    kinds = sorted(set(layout), key=lambda classes: (classes.start, classes.stop))
    groups = {client.id: kinds.index(classes) for client, classes in zip(clients, layout, strict=True)}
    return Federation(clients, federation.public, n_classes, groups)


def predictions(scenario: dict[str, object]) -> tuple[FloatArray, list[int]]:
    """Train every client of a federation once, and return predictions (N, m, C) and true groups."""
    config = ExperimentConfig.parse(
        {
            "seed": scenario["seed"],
            "dataset": {"public_samples": 500},
            "partition": {
                "clients": scenario["clients"],
                "groups": 5 if scenario["name"] in LAYOUTS else scenario["groups"],
                "alpha": scenario["alpha"],
                "mixing": scenario["mixing"],
                "samples_per_client": scenario.get("samples", 240),
                "test_samples_per_client": 1,
            },
            "clients": {"models": MIXTURES[str(scenario["mixture"])]},
        },
        read_preset("cpu/emnist"),
    )
    layout = LAYOUTS.get(str(scenario["name"]))
    federation = layout_clients(config, layout) if layout else build_federation(config)
    for client in federation.clients:
        client.learner.fit(
            client.private.inputs,
            client.private.labels,
            n_classes=federation.n_classes,
            epochs=config.method.local_epochs,
            rng=stream(config.seed, "client fit", client.id, 0),
        )
    assert federation.groups is not None
    answers = [client.learner.predict_proba(federation.public.inputs) for client in federation.clients]
    return np.stack(answers), list(federation.groups.values())


def measure(P: FloatArray, groups: list[int], metric: str) -> dict[str, object]:
    """Return the agreement with the true groups that each way to choose a threshold reaches."""
    D = pairwise_distances(P, metric)
    upper = np.triu_indices(len(D), 1)
    same = np.equal.outer(groups, groups)[upper]
    values = D[upper]

    def index(threshold: float) -> float:
        return round(adjusted_rand_score(groups, cluster_labels(greedy_clusters(D, threshold))), 3)

    try:
        searched: float | str = index(threshold_for(D, len(set(groups))))
    except ValueError:
        searched = "impossible"
    auto = auto_threshold(P, metric)
    candidates = np.quantile(values, np.linspace(0, 1, 200))
    return {
        "auto": index(auto),
        "auto_threshold": round(auto, 3),
        "auto_clusters": len(greedy_clusters(D, auto)),
        "searched": searched,
        "best": max(index(t) for t in [0.0, *candidates]),
        **{f"fixed_{t}": index(t) for t in FIXED},
        "within": f"{values[same].min():.2f} to {values[same].max():.2f}" if same.any() else "",
        "between": f"{values[~same].min():.2f} to {values[~same].max():.2f}" if (~same).any() else "",
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="only scenarios whose name holds this")
    parser.add_argument("--quick", action="store_true", help="25 clients and one seed only")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    writer = None
    with arguments.out.open("w", newline="") as file, threadpool_limits(1):
        for scenario in scenarios(arguments.quick):
            if arguments.only and arguments.only not in str(scenario["name"]):
                continue
            P, groups = predictions(scenario)
            for metric in METRICS:
                row = {"samples": 240, **scenario, "metric": metric, **measure(P, groups, metric)}
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
            print(*scenario.values(), flush=True)


if __name__ == "__main__":
    main()
