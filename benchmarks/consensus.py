"""How right is what the clients agree on? The labels of a federation's public set, which no method sees, are the judge.

python benchmarks/consensus.py --data-dir DATA --out results/consensus.csv

After one local training of a preset's clients: how often, in percent of the public samples, the class with most votes
(FedCT) and the mean of all probabilities (FedMD, DS-FL) are right; on average over the label groups, how often the mean
of a group's own members (COSMOS, COMET) is right on samples of classes that the group holds mostly; and how sure the
mean of all is.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from cosmosfl.config import ExperimentConfig, read_preset
from cosmosfl.data.partition import take_public
from cosmosfl.data.sources import load_source
from cosmosfl.engine.pool import Pool
from cosmosfl.experiment import build_federation
from cosmosfl.protocol import Client
from cosmosfl.randomness import stream


def predictions(job: tuple[Client, np.ndarray, int, int]) -> np.ndarray:
    """Train a client on its private set and return its probabilities on the public one."""
    client, public, n_classes, seed = job
    client.learner.fit(
        client.private.inputs,
        client.private.labels,
        n_classes=n_classes,
        epochs=5,
        rng=stream(seed, "client fit", client.id, 0),
    )
    return client.learner.predict_proba(public)


def measure(preset: str, seed: int, data_dir: str, workers: int) -> dict[str, float | str | int]:
    """Return the row of one federation."""
    config = ExperimentConfig.parse({"seed": seed, "dataset": {"data_dir": data_dir}}, read_preset(preset))
    federation = build_federation(config)
    source = load_source(config.dataset.name, config.dataset.data_dir)
    order, _ = take_public(source.train_labels, config.dataset.public_fraction, stream(seed, "public set"))
    labels = source.train_labels[order[: len(federation.public)]]
    assert np.array_equal(source.train_inputs[order[: len(labels)]], federation.public.inputs)
    jobs = [(client, federation.public.inputs, federation.n_classes, seed) for client in federation.clients]
    with Pool(workers) as pool:
        P = np.stack(pool.map(predictions, jobs))
    votes = np.zeros_like(P[0])
    for own in P:
        votes[np.arange(len(labels)), own.argmax(axis=1)] += 1
    assert federation.groups is not None
    groups = np.array([federation.groups[client.id] for client in federation.clients])
    within = []
    for group in np.unique(groups):
        held = np.concatenate([federation.clients[i].private.labels for i in np.flatnonzero(groups == group)])
        counts = np.bincount(held, minlength=federation.n_classes)
        mostly = np.isin(labels, np.flatnonzero(counts > 2 * len(held) / federation.n_classes))
        within.append((P[groups == group].mean(axis=0).argmax(axis=1) == labels)[mostly].mean())
    mean = P.mean(axis=0)
    return {
        "preset": preset,
        "seed": seed,
        "vote_of_all": round(100 * float((votes.argmax(axis=1) == labels).mean()), 2),
        "mean_of_all": round(100 * float((mean.argmax(axis=1) == labels).mean()), 2),
        "mean_of_own_group": round(100 * float(np.mean(within)), 2),
        "largest_probability_of_mean": round(float(mean.max(axis=1).mean()), 3),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--presets", default="cpu/emnist,cpu/cifar100")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [
        measure(preset, int(seed), arguments.data_dir, arguments.workers)
        for preset in arguments.presets.split(",")
        for seed in arguments.seeds.split(",")
    ]
    with arguments.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(*row.values())


if __name__ == "__main__":
    main()
