"""One factor at a time: run a preset for several seeds with each value of each varied key, and keep the accuracies.

    python benchmarks/sweep.py --preset cpu/emnist --seeds 0,1,2 --vary teacher.consistency=0,1,5 --out results/x.csv

A line per run: the varied key and its value, the seed, and every moment's mean accuracy. Finished lines are not run
again; the unchanged preset is run once per seed under the key ``base``.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cosmosfl.config import ConfigError, ExperimentConfig, parse_assignments, read_preset
from cosmosfl.evaluation.metrics import MOMENTS
from cosmosfl.experiment import run_experiment

COLUMNS = ["key", "value", "seed", "round", *MOMENTS, "adjusted_rand_index", "clusters", "seconds", "commit"]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=V1,V2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    cells = list(plan(arguments.vary, [int(seed) for seed in arguments.seeds.split(",")]))
    layers = [parse_assignments(arguments.set), read_preset(arguments.preset)]
    configs = [
        ExperimentConfig.parse(parse_assignments([f"{key}={value}"] if key != "base" else []), {"seed": seed}, *layers)
        for key, value, seed in cells
    ]  # a mistake in any cell ends here, before the first is run
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = finished(arguments.out)
    for (key, value, seed), config in zip(cells, configs, strict=True):
        if (key, value, str(seed)) not in done:
            append(arguments.out, {"key": key, "value": value, "seed": seed}, config)
            print(key, value, seed, flush=True)


def plan(varied: list[str], seeds: list[int]) -> Iterator[tuple[str, str, int]]:
    """Yield (key, value, seed) of every run, seed by seed."""
    for assignment in varied:
        if "=" not in assignment:
            raise ConfigError(f"--vary {assignment}: expected KEY=V1,V2")
    for seed in seeds:
        yield "base", "", seed
        for assignment in varied:
            key, _, values = assignment.partition("=")
            for value in values.split(","):
                yield key, value, seed


def finished(path: Path) -> set[tuple[str, str, str]]:
    """Return the runs that the table has already."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["key"], row["value"], row["seed"]) for row in csv.DictReader(file)}


def append(path: Path, cell: dict[str, object], config: ExperimentConfig) -> None:
    """Run a cell and append a line for every round."""
    run = run_experiment(config)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    common = {
        **cell,
        "adjusted_rand_index": run.adjusted_rand_index,
        "clusters": len(run.clusters),
        "seconds": round(run.wall_seconds, 1),
        "commit": commit.stdout.strip(),
    }
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for when in range(config.rounds + 1):
            means = {moment: run.accuracy(moment, round=when) for moment in MOMENTS}
            writer.writerow({**common, "round": when, **{m: f"{s.mean:.3f}" if s else "" for m, s in means.items()}})
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    main()
