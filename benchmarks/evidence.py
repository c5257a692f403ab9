"""How well do clusters know whose a public sample is? The labels of the public set, which no method sees, judge it.

COSMOSFL_DATA=... python benchmarks/evidence.py --out results/evidence.csv

A line per federation. Every client says how much likelier each public sample is among its private inputs
(`cosmosfl.experts.log_density_ratio`); a group of clients says the mean of that. `right` is how often, in percent of
the public samples, the group that holds a sample's class says most. The other columns say how sure it is best to be:
the mean log probability, in nats, that a sample is its group's, with equal priors, if the means are multiplied with 1,
2, ..., or the sum is taken in place of the mean. Higher is better; to say nothing gives `nothing`, the logarithm of
1/groups. The seeds are none of those in `results/`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from pathlib import Path

import numpy as np
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from cosmosfl.config import ExperimentConfig, read_preset
from cosmosfl.data.partition import take_public
from cosmosfl.data.sources import load_source
from cosmosfl.experiment import build_federation
from cosmosfl.experts import log_density_ratio
from cosmosfl.randomness import stream

FACTORS = (1, 2, 3, 4, 5, 8)
SEEDS = (10, 11, 12)
SIZES = {"cpu/digits": (40,), "cpu/fashion": (100, 1000), "cpu/emnist": (240, 2000), "cpu/cifar100": (500, 2000)}
"""Private samples of a client, by preset: the preset's own, and more where there are more."""
MEMBERS = (2, 5)


def measure(preset: str, private: int, members: int, seed: int) -> dict[str, object]:
    """Return the line of one federation."""
    base = read_preset(preset)
    groups = base["partition"]["groups"]
    changes = {"clients": groups * members, "samples_per_client": private, "test_samples_per_client": 1}
    config = ExperimentConfig.parse({"seed": seed, "partition": changes}, base)
    federation = build_federation(config)
    assert federation.groups is not None
    source = load_source(config.dataset.name, config.dataset.data_dir)
    order, _ = take_public(source.train_labels, config.dataset.public_fraction, stream(seed, "public set"))
    inputs, labels = federation.public.inputs, source.train_labels[order[: len(federation.public)]]
    assert np.array_equal(source.train_inputs[order[: len(labels)]], inputs)
    holder = np.concatenate(
        [np.full(len(part), g) for g, part in enumerate(np.array_split(np.arange(federation.n_classes), groups))]
    )[labels]  # (m,): the group that a sample's class belongs to, as the paper's partition cuts them
    said = np.zeros((groups, len(labels)))
    for client in federation.clients:
        said[federation.groups[client.id]] += log_density_ratio(client.private.inputs, inputs)

    def fit(factor: float) -> float:
        return round(float(log_softmax(factor * said / members, axis=0)[holder, np.arange(len(labels))].mean()), 3)

    return {
        "preset": preset,
        "private": private,
        "members": members,
        "public": len(labels),
        "seed": seed,
        "right": round(100 * float((said.argmax(axis=0) == holder).mean()), 1),
        "nothing": round(-math.log(groups), 3),
        **{f"times {factor}": fit(factor) for factor in FACTORS},
        "sum": fit(members),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    federations = [(preset, n) for preset, sizes in SIZES.items() for n in sizes]
    writer = None
    with arguments.out.open("w", newline="", encoding="utf-8") as file, threadpool_limits(1):
        for (preset, private), members, seed in itertools.product(federations, MEMBERS, SEEDS):
            if preset == "cpu/digits" and members > 2:
                continue  # there are too few images
            line = measure(preset, private, members, seed)
            if writer is None:
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(line)
            file.flush()
            print(*line.values(), flush=True)


if __name__ == "__main__":
    main()
