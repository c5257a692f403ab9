"""Write docs/comparison.md and its pictures from the comparisons under results/. No number there is typed by hand.

python benchmarks/comparison_page.py
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.methods import PREDICTION_SHARING, WEIGHT_SHARING
from cosmosfl.store import RunDirectory

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
OURS, ALONE = "cosmos", "local"
COLOURS = ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999999", "#a6761d", "#6a3d9a", "#b2df8a", "#1b9e77", "#f781bf")


@dataclass(frozen=True)
class Comparison:
    """The tables of a directory that ``cosmosfl compare`` wrote."""

    name: str
    title: str
    command: str
    tuning: str

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return RESULTS / self.name

    def rows(self, file: str) -> list[dict[str, str]]:
        """Return a table as it is."""
        with (self.directory / file).open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))

    def summary(self, moment: str) -> dict[str, dict[str, str]]:
        """Return the rows of a moment, top-1, by method."""
        return {r["method"]: r for r in self.rows("summary.csv") if r["moment"] == moment and r["metric"] == "top1"}

    def differences(self, moment: str = "client") -> dict[str, dict[str, str]]:
        """Return COSMOS minus each method, at a moment."""
        found = self.rows("comparisons.csv")
        return {r["method"]: r for r in found if r["moment"] == moment and r["metric"] == "top1"}


COMPARISONS = (
    Comparison(
        "compare-emnist",
        "emnist47, 25 clients with MLPs and small CNNs",
        "cosmosfl compare -p cpu/emnist --methods local,fedmd,dsfl,comet,fedct,cosmos "
        "--tuned results/tuned/emnist -s method.n_clusters=5 --out results/compare-emnist",
        "cosmosfl tune -p cpu/emnist -s rounds=2 -s partition.clients=10 -s method.n_clusters=5 --trials 3 --span 3 "
        "--methods local,fedmd,dsfl,comet,fedct,cosmos --out results/tuned/emnist",
    ),
    Comparison(
        "compare-cifar100",
        "CIFAR-100, 10 clients with MLPs and small CNNs",
        'cosmosfl compare -p cpu/cifar100 -s \'clients.models=["mlp","cnn-s"]\' '
        "--methods local,fedmd,dsfl,comet,fedct,cosmos --tuned results/tuned/cifar100 -s method.n_clusters=5 "
        "-s method.temperature=0.02 --out results/compare-cifar100",
        "cosmosfl tune -p cpu/cifar100 -s rounds=1 -s 'clients.models=[\"cnn-s\"]' -s method.n_clusters=5 "
        "-s method.temperature=0.02 --trials 3 --span 3 --methods local,fedmd,dsfl,comet,fedct,cosmos "
        "--out results/tuned/cifar100",
    ),
    Comparison(
        "compare-homogeneous",
        "emnist47, 25 clients with the same MLP, all methods",
        "cosmosfl compare experiments/homogeneous.toml --scale cpu --tuned results/tuned/homogeneous "
        "--out results/compare-homogeneous",
        "cosmosfl tune -p cpu/emnist -s 'clients.models=[\"mlp\"]' -s rounds=2 -s partition.clients=10 "
        "-s method.n_clusters=5 --trials 3 --span 3 --methods all --out results/tuned/homogeneous",
    ),
)


def number(text: str, digits: int = 1) -> str:
    """Return a number from a table as it is printed."""
    return "" if text == "" else f"{float(text):.{digits}f}"


def signed(text: str) -> str:
    """Return a difference as it is printed."""
    return f"{float(text):+.1f}".replace("-", "−")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, align, *rows]) + "\n"


def family(method: str) -> str:
    """Say what a method puts on the wire."""
    if method in PREDICTION_SHARING:
        return "predictions"
    return "weights" if method in WEIGHT_SHARING else {"local": "nothing", "centralized": "all data"}[method]


def ranking(one: Comparison) -> str:
    """Return the table of all methods by the client's own model."""
    client, fit, cluster = one.summary("client"), one.summary("client_after_fit"), one.summary("cluster")
    differences = one.differences()
    rows = []
    for method in sorted(client, key=lambda m: -float(client[m]["last_mean"] or "-inf")):
        row, difference = client[method], differences.get(method)
        if row["last_mean"] == "":
            continue
        name = f"**{method}**" if method == OURS else method
        gap = ""
        if difference:
            p = float(difference["p_holm"])
            gap = (
                f"{signed(difference['difference'])} [{signed(difference['low'])}, {signed(difference['high'])}], "
                f"p = {p:.2g}"
            )
        traffic = (float(row["uplink_bytes"]) + float(row["downlink_bytes"])) / 2**20
        rows.append(
            [
                name,
                family(method),
                f"{number(row['last_mean'])} ± {number(row['last_std'])}",
                f"{number(fit[method]['last_mean'])}" if method in fit else "",
                number(cluster[method]["last_mean"]) if method in cluster else "",
                number(row["best_mean"]),
                number(row["worst_client_mean"]),
                f"{traffic:.2f}",
                gap,
            ]
        )
    return markdown(
        [
            "method",
            "on the wire",
            "client, last round, %",
            "after fit, %",
            "cluster model, %",
            "client, best round, %",
            "worst client, %",
            "MiB a client and round",
            "cosmos minus it, points [95 % CI], Holm's p",
        ],
        rows,
    )


def verdict(one: Comparison) -> str:
    """Say in a sentence or two what the numbers say, and no more."""
    client, differences = one.summary("client"), one.differences()
    agnostic = [name for name in PREDICTION_SHARING if name != OURS and name in differences]
    sentences = []
    weights = [name for name in WEIGHT_SHARING if name in differences]
    groups = {
        "the other methods that exchange predictions": agnostic,
        "local training": [ALONE],
        "the methods that exchange weights": weights,
    }
    for group, names in groups.items():
        if not names:
            continue
        best = max(names, key=lambda m: float(client[m]["last_mean"]))
        d = differences[best]
        p, points = float(d["p_holm"]), float(d["difference"])
        clear = float(d["low"]) > 0 or float(d["high"]) < 0
        side = "above" if points > 0 else "below"
        gap = "level with" if abs(points) < 0.05 else f"{abs(points):.1f} points {side}"
        what = f"the best of {group} ({best})" if len(names) > 1 else group
        sentences.append(
            f"By the client metric, COSMOS is {gap} {what}: 95 % interval {signed(d['low'])} "
            f"to {signed(d['high'])}, p = {p:.2g} after Holm's correction, n = {d['n']} seeds; "
            + (
                "significant at 5 %."
                if p < 0.05
                else "the interval leaves out 0, but not significant after the correction."
                if clear
                else "not significant."
            )
        )
    clear = [m for m in agnostic if float(differences[m]["p_holm"]) < 0.05 and float(differences[m]["difference"]) > 0]
    sentences.append(
        f"It is significantly better than {', '.join(clear)}."
        if clear
        else "It is significantly better than none of them."
    )
    below = [
        m
        for m, row in client.items()
        if m != ALONE and row["last_mean"] and float(row["last_mean"]) < float(client[ALONE]["last_mean"])
    ]
    if below:
        sentences.append(f"Below local training: {', '.join(sorted(below))}.")
    return " ".join(sentences)


def draw(one: Comparison) -> str:
    """Draw the clients' own models over rounds and return the path of the picture, relative to docs/."""
    by: dict[str, dict[int, list[float]]] = {}
    for cell in one.rows("cells.csv"):
        if cell["state"] == "finished":
            history = RunDirectory.open(one.directory / "cells" / cell["cell"]).history()
            measured = [m for m in history if isinstance(m, Measurement) and m.moment == "client"]
            for round in {m.round for m in measured}:
                mean = float(np.mean([m.top1 for m in measured if m.round == round]))
                by.setdefault(cell["method"], {}).setdefault(round, []).append(mean)
    order = sorted(by, key=lambda m: -np.mean(by[m][max(by[m])]))
    figure, axes = plt.subplots(figsize=(8, 4.6 if len(order) < 8 else 6), layout="constrained")
    colours = iter(COLOURS if len(order) <= len(COLOURS) + 2 else mpl.colormaps["tab20"].colors)
    for method in order:
        rounds = sorted(by[method])
        means = [np.mean(by[method][r]) for r in rounds]
        colour = "#0072b2" if method == OURS else "#d55e00" if method == ALONE else next(colours)
        weight = 2.8 if method in (OURS, ALONE) else 1.4
        style = {"weights": "--", "all data": ":"}.get(family(method), "-")
        axes.plot(rounds, means, style, color=colour, lw=weight, marker="o", ms=3.5, label=method)
    axes.set(xlabel="round", ylabel="top-1 accuracy of the clients' own models (%)", title=one.title)
    axes.set_xticks(sorted({r for method in by.values() for r in method}))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    path = DOCS / "images" / f"{one.name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return str(path.relative_to(DOCS))


def section(one: Comparison) -> str:
    """Return everything on a comparison; nothing if it was not run."""
    if not (one.directory / "summary.csv").is_file():
        return ""
    return "\n".join(
        [
            f"## {one.title}\n",
            f"{verdict(one)}\n",
            f"![Accuracy over rounds]({draw(one)})\n",
            ranking(one),
            f"`{one.command}`, with learning rates from `{one.tuning}`: {rates(one)}.\n",
        ]
    )


def rates(one: Comparison) -> str:
    """Say which rates the search has chosen."""
    directory = RESULTS / "tuned" / one.name.removeprefix("compare-")
    chosen: dict[str, list[str]] = {}
    for path in sorted(directory.glob("*.toml")):
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        tables = {**found.get("clients", {}), **{k: v for k, v in found.get("method", {}).items() if "rate" in k}}
        text = ", ".join(f"{value:g}" if "clients" in found else f"{key} {value:g}" for key, value in tables.items())
        chosen.setdefault(text, []).append(path.stem)
    return "; ".join(f"{rate} for {', '.join(methods)}" for rate, methods in chosen.items())


def why() -> str:
    """Say what the labels of the public set tell about what the clients agree on."""
    path = RESULTS / "consensus.csv"
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))

    def mean(key: str) -> float:
        return float(np.mean([float(row[key]) for row in rows]))

    return (
        "## Why one answer for all is not enough here\n\n"
        "`python benchmarks/consensus.py --data-dir DATA --presets cpu/emnist --out results/consensus.csv` looks at "
        "the hidden labels of the public set after one local training (no method sees them). The class that most of "
        f"the 25 clients vote for is right for {mean('vote_of_all'):.0f} % of the samples, the mean of all their "
        f"probabilities for {mean('mean_of_all'):.0f} %; the mean of a group's own members is right for "
        f"{mean('mean_of_own_group'):.0f} % of the samples of classes that the group holds. So FedCT, which trains on "
        "the vote as if all of it were true, loses what its clients knew (its best round is the one before the first "
        "vote); DS-FL, which ends with a distillation of one answer for all, as well. FedMD does not: its clients "
        "revisit their own data last. The mean of all has a largest probability of "
        f"{mean('largest_probability_of_mean'):.2f} on average: DS-FL's sharpening with "
        "the paper's T = 0.1, made for ten classes, flattens that instead. In the first two comparisons it has "
        "T = 0.02: on emnist47 the same search with `-s method.temperature=0.02` did better on the validation part "
        "(both are in the comments of `results/tuned/emnist/dsfl.toml`), on CIFAR-100 0.1 was not tried. No "
        "temperature mends a wrong answer.\n\n"
        "The same holds for weights, in the comparison of all methods: FedAvg, FedProx and FedDF end with one model "
        "for everybody, and what a client has "
        "after fitting it to its own data (*after fit*) is above local training. pFedHN's spread over seeds says that "
        "it is not stable here: its best round is near the others', and in the last rounds of one seed its models fall "
        "apart. In this comparison DS-FL has the paper's T = 0.1.\n\n"
        "How well the learning rates were searched limits all of this: three trials, at fewer rounds, and for several "
        "methods the best rate was the highest or the lowest that was tried. Three seeds leave little power: "
        "differences of one or two points are real or not, these tables cannot say.\n"
    )


def main() -> None:
    """Write the page."""
    page = [
        "# Comparison of all methods\n",
        "Written by `benchmarks/comparison_page.py` from the files under `results/`; each cell has its resolved "
        "configuration and every measurement. Accuracies are means over clients, each on its own test set, then over "
        "seeds 0, 1, 2 (± standard deviation). *client* is the model that a client ends with and would deploy: the "
        "number that the methods are ranked by. *After fit* is the same client's model before what it does last with "
        "the server's answer. Differences are paired by seed; p is that of the paired t-test after Holm's correction "
        "over the methods of the table. With three seeds Wilcoxon's signed-rank test cannot go below 0.25. All methods "
        "have the same data, models, rounds and local epochs, and each the same search for its learning rate: three "
        "trials (a third of the configured rate, the rate, three times it), on a quarter of each client's training "
        "data, in a smaller federation (DS-FL on emnist47 twice three, see the end). "
        "COMET and pFedCK are told the true number of groups; COSMOS and FLIS find "
        "their clusters. COSMOS is the paper's recipe here; `recipe.md` has ours. "
        "(In the first two, `method.n_clusters=5` reached COSMOS too; its own rule finds the same "
        "clusters in all six of those runs.) Dashed lines exchange weights, the dotted one is "
        "training on all data.\n",
        *(section(one) for one in COMPARISONS),
        why(),
    ]
    (DOCS / "comparison.md").write_text("\n".join(filter(None, page)), encoding="utf-8")


if __name__ == "__main__":
    main()
