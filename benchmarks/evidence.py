"""How well do clusters know whose a public sample is? The labels of the public set, which no method sees, judge it.

COSMOSFL_DATA=... python benchmarks/evidence.py --out results/evidence.csv

A line per federation. Every client says how much likelier each public sample is among its private inputs
(`cosmosfl.experts.log_density_ratio`); a group of clients says the mean of that. `right` is how often, in percent of
the public samples, the group that holds a sample's class says most. The other columns say how sure it is best to be:
the mean log probability, in nats, that a sample is its group's, with equal priors, if the means are multiplied with 1,
2, ..., or the sum is taken in place of the mean. Higher is better; to say nothing gives `nothing`, the logarithm of
1/groups. The seeds are none of those in `results/`. The data directory needs what held_out_data.py writes, too.
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
PRESETS = {
    **{"digits": "cpu/digits", "fashion-mnist": "cpu/fashion", "emnist47": "cpu/emnist", "cifar100": "cpu/cifar100"},
    **dict.fromkeys(("mnist", "letters", "landsat"), "cpu/fashion"),
}
SIZES = {"digits": (40,), "fashion-mnist": (100, 1000), "emnist47": (240, 2000), "cifar100": (500, 2000)}
"""Private samples of a client: as in the comparisons, and more where there are more; 100 and 1,000 of other data."""
MEMBERS = (2, 5)


def measure(data: str, private: int, members: int, seed: int) -> dict[str, object]:
    """Return the line of one federation, with the groups and public samples of experiments/honest-win.toml."""
    base = read_preset(PRESETS[data])
    groups = 3 if data == "landsat" else base["partition"]["groups"]
    changes = {
        "seed": seed,
        "dataset": {"name": data, **({"public_samples": 1000} if data == "letters" else {})},
        "partition": {
            "groups": groups,
            "clients": groups * members,
            "samples_per_client": private,
            "test_samples_per_client": 1,
        },
    }
    config = ExperimentConfig.parse(changes, base)
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
        "data": data,
        "private": private,
        "members": members,
        "public": len(labels),
        "seed": seed,
        "right": round(100 * float((said.argmax(axis=0) == holder).mean()), 1),
        "groups": groups,
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
    federations = [(data, n) for data in PRESETS for n in SIZES.get(data, (100, 1000))]
    writer = None
    with arguments.out.open("w", newline="", encoding="utf-8") as file, threadpool_limits(1):
        for (data, private), members, seed in itertools.product(federations, MEMBERS, SEEDS):
            if (data, members) == ("digits", 5) or (data, private) == ("landsat", 1000):
                continue  # there are too few samples
            line = measure(data, private, members, seed)
            if writer is None:
                writer = csv.DictWriter(file, list(line))
                writer.writeheader()
            writer.writerow(line)
            file.flush()
            print(*line.values(), flush=True)


if __name__ == "__main__":
    main()
