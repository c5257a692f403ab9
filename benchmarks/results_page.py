"""Write docs/results.md and its pictures from the files under results/. No number on that page is typed by hand.

python benchmarks/results_page.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy import stats

from cosmosfl.evaluation.metrics import MOMENTS, Moment, at_moment
from cosmosfl.events import Measurement
from cosmosfl.store import RunDirectory

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
STYLE: dict[Moment, tuple[str, str, str]] = {
    "local": ("alone", "#d98c00", "-"),
    "client_after_fit": ("client, after fit", "#56a4d8", ":"),
    "client": ("client (what it deploys)", "#0072b2", "-"),
    "cluster": ("own cluster's model", "#009e73", "-"),
    "oracle": ("oracle (not deployable)", "#a05195", "--"),
}
METRIC_ORDER = ("l2", "cosine", "aitchison", "correlation", "disagreement")


@dataclass(frozen=True)
class Series:
    """Accuracy by moment: a row per seed, a column per round."""

    name: str
    seeds: tuple[int, ...]
    values: Mapping[Moment, np.ndarray]
    directories: tuple[RunDirectory, ...]

    @classmethod
    def read(cls, name: str) -> Series | None:
        """Read the runs under ``results/<name>/seed-*``; None if there are none."""
        directories = tuple(RunDirectory.open(path) for path in sorted((RESULTS / name).glob("seed-*")))
        if not directories:
            return None
        summaries = [directory.summary() for directory in directories]
        measured = [[m for m in d.history() if isinstance(m, Measurement)] for d in directories]
        rounds = range(summaries[0]["rounds"] + 1)
        values = {
            moment: np.array([[_mean(ms, moment, round) for round in rounds] for ms in measured]) for moment in MOMENTS
        }
        return cls(name, tuple(s["seed"] for s in summaries), values, directories)


def _mean(measurements: list[Measurement], moment: Moment, round: int) -> float:
    summary = at_moment(measurements, moment, round)
    return summary.mean if summary else float("nan")


def spread(values: Iterable[float]) -> str:
    """Return mean ± standard deviation (ddof = 1) over seeds."""
    array = np.array(list(values), dtype=float)
    return f"{array.mean():.1f} ± {array.std(ddof=1):.1f}" if len(array) > 1 else f"{array.mean():.1f}"


def interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the 95 % confidence interval (t distribution) of the mean of a - b, paired by seed."""
    d = a - b
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - half, d.mean() + half


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """Return the mean of a - b, paired by seed, with its confidence interval."""
    d = a - b
    if len(d) < 2:
        return f"{d.mean():+.1f} (n = 1)"
    low, high = interval(a, b)
    return f"{d.mean():+.1f} [{low:+.1f}, {high:+.1f}], n = {len(d)}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def draw(series: Series, title: str) -> str:
    """Draw all moments over rounds and return the path of the picture, relative to docs/."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for moment, (label, colour, dash) in STYLE.items():
        values = series.values[moment]
        rounds = np.arange(values.shape[1])
        mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0
        axes.plot(
            rounds, mean, dash, color=colour, label=label, marker="o", ms=4, lw=2.4 if moment == "client" else 1.5
        )
        axes.fill_between(rounds, mean - deviation, mean + deviation, color=colour, alpha=0.12, lw=0)
    axes.set(xlabel="round", ylabel="top-1 accuracy (%)", title=title, xticks=rounds)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path = DOCS / "images" / f"{series.name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return str(path.relative_to(DOCS))


def comparison(name: str, title: str, command: str) -> str:
    """Return the section on COSMOS against local training."""
    series = Series.read(name)
    if series is None:
        return ""
    last = {moment: values[:, -1] for moment, values in series.values.items()}
    best = {moment: values.max(axis=1) for moment, values in series.values.items()}
    summaries = [directory.summary() for directory in series.directories]
    losers = sum(
        s["accuracy"]["client"]["per_client"][id] < alone
        for s in summaries
        for id, alone in s["accuracy"]["local"]["per_client"].items()
    )
    everyone = sum(s["clients"] for s in summaries)
    environment = series.directories[0].environment()
    indices = ", ".join(f"{s['adjusted_rand_index']:.2f}" for s in summaries)
    seconds = np.mean([s["wall_seconds"] for s in summaries])
    return "\n".join(
        [
            f"### {title}\n",
            f"`{command}` for seeds {', '.join(map(str, series.seeds))}; files in `results/{name}`. "
            f"{environment['cpus']} CPUs, one thread each, no GPU, torch {environment['packages']['torch']}; "
            f"{seconds / 60:.0f} minutes a run on a machine that ran other things beside it.\n",
            f"![Accuracy over rounds]({draw(series, title)})\n",
            table(
                [
                    "moment",
                    "last round, %",
                    "best round, %",
                    "last round minus `local`, points (95 % CI, paired)",
                ],
                [
                    [
                        f"`{m}`",
                        spread(last[m]),
                        spread(best[m]),
                        "" if m == "local" else difference(last[m], last["local"]),
                    ]
                    for m in MOMENTS
                ],
            ),
            f"{losers} of {everyone} clients (over all seeds) ended below their own local training. Adjusted Rand "
            f"index of the clusters, by seed: {indices}.\n",
        ]
    )


def moments() -> str:
    """Return the section on which of the two moments a client should keep."""
    runs = {name: series for name in ("cpu-emnist", "cpu-cifar100") if (series := Series.read(name)) is not None}
    better: dict[str, bool] = {}
    open_questions: list[str] = []
    rows = []
    for name, series in runs.items():
        fit, distilled = series.values["client_after_fit"], series.values["client"]
        ids = [
            (summary["accuracy"]["client_after_fit"]["per_client"], summary["accuracy"]["client"]["per_client"])
            for summary in (directory.summary() for directory in series.directories)
        ]
        ahead = sum(after[id] > before[id] for before, after in ids for id in before)
        everyone = sum(len(before) for before, _ in ids)
        low, high = interval(distilled[:, -1], fit[:, -1])
        if low <= 0 <= high:
            open_questions.append(name)
        better[name] = distilled[:, -1].mean() > fit[:, -1].mean()
        rows.append(
            [
                name,
                spread(fit[:, -1]),
                spread(distilled[:, -1]),
                difference(distilled[:, -1], fit[:, -1]),
                f"{ahead} of {everyone}",
            ]
        )
    if not rows:
        return ""
    if len(set(better.values())) == 1:
        which = "after distillation" if all(better.values()) else "after its own fit"
        answer = f"on both data sets the model {which} is the better one, by the mean over seeds."
    else:
        first = ", ".join(name for name, better_after in better.items() if better_after)
        second = ", ".join(name for name, better_after in better.items() if not better_after)
        answer = (
            f"after distillation on {first}, after its own fit on {second}. Where the teacher is no better "
            "than the client alone, the last distillation costs what the client's own data had just taught it. So a "
            "client that can hold back some of its own samples should compare the two on those; `client` stays what "
            "every run reports, because it is what the paper's algorithm leaves a client with."
        )
    if open_questions:
        answer = f"The interval of {' and of '.join(open_questions)} holds no difference too. By the means: {answer}"
    return "\n".join(
        [
            "## Which of the two moments should a client keep?\n",
            "The same runs: accuracy in the last round, in %, mean ± standard deviation over seeds; the difference in "
            "points with its 95 % confidence interval, paired by seed; and the clients (over all seeds) whose model "
            "is strictly better after distillation.\n",
            table(
                ["runs", "after fit", "after distillation", "after distillation minus after fit", "better after it"],
                rows,
            ),
            answer + "\n",
        ]
    )


def clusters() -> str:
    """Return the section on the automatic threshold."""
    path = RESULTS / "clusters.csv"
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        name = row["name"]
        if name == "paper's split":
            name = f"α = {float(row['alpha']):g}, {row['clients']} clients, {row['mixture']}"
        groups[name][row["metric"]].append(row)

    def cell(found: list[dict[str, str]], key: str) -> str:
        values = [float(row[key]) for row in found if row[key] != "impossible"]
        return f"{np.mean(values):.2f}" if values else "–"

    def part(key: str) -> str:
        return table(
            ["federation", *(f"`{m}`" for m in METRIC_ORDER)],
            [[name, *(cell(by_metric[m], key) for m in METRIC_ORDER)] for name, by_metric in groups.items()],
        )

    fixed = [key for key in rows[0] if key.startswith("fixed_")]
    paper = [row for row in rows if row["name"] == "paper's split"]
    thresholds = table(
        ["distance", "auto", "search for the true number", *(f"B0 = {key[6:]}" for key in fixed), "best possible"],
        [
            [f"`{m}`"]
            + [cell([r for r in paper if r["metric"] == m], key) for key in ("auto", "searched", *fixed, "best")]
            for m in METRIC_ORDER
        ],
    )
    seeds = len({row["seed"] for row in rows})
    return "\n".join(
        [
            "## Does the automatic threshold find the groups?\n",
            "`python benchmarks/clusters.py --out results/clusters.csv`: emnist47, one local training of 5 epochs on "
            f"240 private images, 500 public images, {seeds} seeds. Adjusted Rand index against "
            "the true groups (1 the same, 0 chance), mean over seeds.\n",
            'With `threshold="auto"`:\n',
            part("auto"),
            "The best that any threshold could reach on the same distances:\n",
            part("best"),
            "Ways to choose the threshold, mean over all federations with the paper's split:\n",
            thresholds,
            "The default is the cosine of centred probabilities, with the automatic threshold. Where it fails: a group "
            "whose classes are all known to another (nested groups) is put into one cluster with it, and a user sees "
            "one cluster too few. Of these distances only `aitchison` has a threshold that separates them. The "
            "paper's L2 loses the groups of weak clients whatever the threshold (see its best possible index).\n",
        ]
    )


def sweep() -> str:
    """Return the section on single factors."""
    path = RESULTS / "sweep-emnist.csv"
    if not path.exists():
        return ""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["round"]) for row in rows)
    final = [row for row in rows if int(row["round"]) == last]
    base = {row["seed"]: row for row in final if row["key"] == "base"}
    cells: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in final:
        cells[row["key"], row["value"]].append(row)

    def line(key: str, value: str, found: list[dict[str, str]]) -> list[str]:
        paired = [row for row in found if row["seed"] in base]
        ours = np.array([float(row["client"]) for row in paired])
        theirs = np.array([float(base[row["seed"]]["client"]) for row in paired])
        name = "unchanged" if key == "base" else f"`{key} = {value}`"
        accuracies = [spread(float(row[m]) for row in found) for m in ("client_after_fit", "client", "cluster")]
        return [name, *accuracies, "" if key == "base" else difference(ours, theirs)]

    return "\n".join(
        [
            "## One factor at a time\n",
            f"`python benchmarks/sweep.py {SWEEP}`; accuracies in % after round {last}, mean ± standard deviation over "
            "seeds; the change is that of `client` against the unchanged run, in points, with its 95 % confidence "
            "interval, paired by seed.\n",
            table(
                ["setting", "client after fit", "client", "cluster model", "change of client"],
                [line(key, value, found) for (key, value), found in cells.items()],
            ),
        ]
    )


SWEEP = (
    "--preset cpu/emnist --set partition.clients=10 --set rounds=2 --seeds 0,1,2 --vary teacher.consistency=1,5 "
    "--vary teacher.temperature=0,0.5,2 --vary dataset.public_samples=250,500 --out results/sweep-emnist.csv"
)


def main() -> None:
    """Write the page."""
    sections = [
        "# Results\n",
        "Written by `benchmarks/results_page.py` from the files under `results/`. Each file has the resolved "
        "configuration, the environment and every measurement beside it. All accuracies are means over clients, each "
        "on its own test set; `client` is the model that a client deploys, `oracle` is chosen on the test set.\n",
        "## COSMOS against local training\n",
        comparison("cpu-emnist", "emnist47, 25 clients", "cosmosfl run -p cpu/emnist"),
        comparison("cpu-cifar100", "CIFAR-100, 10 clients", "cosmosfl run -p cpu/cifar100"),
        moments(),
        clusters(),
        sweep(),
        (DOCS / "results-notes.md").read_text(encoding="utf-8") if (DOCS / "results-notes.md").exists() else "",
    ]
    (DOCS / "results.md").write_text("\n".join(filter(None, sections)), encoding="utf-8")


if __name__ == "__main__":
    main()
