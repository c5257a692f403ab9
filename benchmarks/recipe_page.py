"""Write docs/recipe.md and its picture from recipe_page.md and what lies under results/.

honest-* for the comparison, held-out-* for the same on other data, recipes and recipes-mlp for the parts, control-*,
mixing-digits, full-size, evidence.csv.

All tables and the counted sentences are computed.

python benchmarks/recipe_page.py
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from cosmosfl.evaluation.statistics import PairedTest, holm, paired_t_test

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "results", ROOT / "docs"
DATA = {
    "digits": "digits",
    "fashion-mnist": "Fashion-MNIST",
    "emnist47": "emnist47",
    "cifar100": "CIFAR-100",
    "mnist": "MNIST",
    "letters": "letters",
    "landsat": "Landsat",
}
FAR_BELOW = ("fedct", "dsfl")
"""Far below local training: in the tables, not in the picture."""
SEEDS = (0, 1, 2)
PAPER, OURS = "cosmos, paper", "cosmos, experts+joint"
METHODS = (OURS, PAPER, "comet", "fedmd", "local", "fedct", "dsfl")
TITLES = dict(
    zip(METHODS, ("ours", "the paper's recipe", "COMET", "FedMD", "local training", "FedCT", "DS-FL"), strict=True)
)
COLOURS = dict(zip(METHODS, ("#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999999", "#a6761d", "#6a3d9a"), strict=True))


@dataclass(frozen=True)
class Place:
    """A federation: the data set, the clients' models, Dirichlet's alpha."""

    data: str
    models: str
    alpha: float
    mixing: float = 0.1


Methods = dict[str, dict[int, dict[str, float]]]
"""Method -> seed -> client -> accuracy in percent, of what the client ends with."""
Places = dict[Place, Methods]


def read(directories: Iterable[Path]) -> Places:
    """Return what lies in directories that ``cosmosfl compare`` wrote."""
    found: Places = defaultdict(lambda: defaultdict(dict))
    for directory in directories:
        for path in sorted(directory.glob("cells/*/summary.json")):
            config = tomllib.loads((path.parent / "config.toml").read_text(encoding="utf-8"))
            summary = json.loads(path.read_text(encoding="utf-8"))
            name = summary["method"] + (f", {config['method']['recipe']}" if "recipe" in config["method"] else "")
            models = "+".join(config["clients"]["models"])
            place = Place(
                config["dataset"]["name"], models, config["partition"]["alpha"], config["partition"]["mixing"]
            )
            found[place][name][summary["seed"]] = summary["accuracy"]["client"]["per_client"]
    return found


def in_order(places: Places) -> Places:
    """Sort places by data set, models and alpha."""
    order = list(DATA)
    return dict(sorted(places.items(), key=lambda item: (order.index(item[0].data), item[0].models, item[0].alpha)))


def means(seeds: dict[int, dict[str, float]]) -> list[float]:
    """Return the mean over clients of each seed; the same seeds for all methods, for they are compared in pairs."""
    assert sorted(seeds) == list(SEEDS), f"seeds {sorted(seeds)}; expected {SEEDS}"
    return [float(np.mean(list(seeds[seed].values()))) for seed in SEEDS]


def row(place: Place, methods: Methods) -> list[str]:
    """Return the cells of the table of accuracies."""
    best = max(np.mean(means(seeds)) for seeds in methods.values())
    cells = [f"{DATA[place.data]}", place.models.replace("+", ", "), f"{place.alpha:g}"]
    for name in METHODS:
        text = ""
        if name in methods:
            values = means(methods[name])
            text = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
            text = f"**{text}**" if np.mean(values) == best else text
        cells.append(text)
    return cells


def tests(methods: Methods) -> dict[str, tuple[PairedTest, float]]:
    """Return the test of ours against each other method, and its p after Holm's correction over them."""
    others = [name for name in METHODS[1:] if name in methods]
    found = [paired_t_test(means(methods[OURS]), means(methods[name])) for name in others]
    return dict(zip(others, zip(found, holm([test.p for test in found]), strict=True), strict=True))


def effects(place: Place, methods: Methods) -> list[str]:
    """Return the cells of the table of differences: ours minus each, with Holm's correction over the row."""
    found = tests(methods)
    cells = [f"{DATA[place.data]}", place.models.replace("+", ", "), f"{place.alpha:g}"]
    for name in METHODS[1:]:
        if name in found:
            test, p = found[name]
            cells.append(f"{interval(test)}, p = {p:.2g}")
        else:
            cells.append("")
    return cells


def first(places: Places) -> int:
    """Return at how many places ours has the highest mean."""
    best = [max(methods, key=lambda name: np.mean(means(methods[name]))) for methods in places.values()]
    return best.count(OURS)


def verdict(places: Places) -> str:
    """Return what the tables say, counted."""
    lines = [f"- Ours has the highest mean at {first(places)} of {len(places)} places of the grid."]
    for name in METHODS[1:]:
        better = worse = total = 0
        for methods in places.values():
            if name in methods:
                test, p = tests(methods)[name]
                total += 1
                better += p < 0.05 and test.difference > 0
                worse += p < 0.05 and test.difference < 0
        pooled = []
        for data in DATA:
            own = [methods for place, methods in places.items() if place.data == data and name in methods]
            if own:
                test = paired_t_test(over_places(own, OURS), over_places(own, name))
                pooled.append(f"{DATA[data]} {interval(test)} (p = {test.p:.2g})")
        title = TITLES[name]
        lines.append(
            f"- Against {title}: significantly better at {better} of {total} places, worse at {worse} (5 %, "
            f"after Holm's correction). Mean over the places of a data set: {'; '.join(pooled)}."
        )
    return "\n".join(lines)


def held_out(places: Places) -> str:
    """Return both tables of data that nothing was chosen on, and how many clients end below local training."""
    where = ["data", "clients' models", "α"]
    below = "; ".join(f"{title} {losers(places, None, name)}" for name, title in TITLES.items() if name != "local")
    return "\n\n".join(
        [
            f"Ours has the highest mean at {first(places)} of {len(places)}.",
            table([*where, *METHODS], [row(*item) for item in places.items()], 2),
            table([*where, *METHODS[1:]], [effects(*item) for item in places.items()], 2),
            f"Clients that end with less than they would have alone: {below}.",
        ]
    )


def over_places(own: Sequence[Methods], name: str) -> list[float]:
    """Return for each seed the mean over places."""
    return [float(value) for value in np.mean([means(methods[name]) for methods in own], axis=0)]


def losers(places: Places, data: str | None, name: str) -> str:
    """Return how many clients end below what they have alone, on one data set or all."""
    worse = total = 0
    for place, methods in places.items():
        if data not in (None, place.data) or name not in methods or "local" not in methods:
            continue
        for seed, clients in methods[name].items():
            alone = methods["local"][seed]
            worse += sum(accuracy < alone[client] for client, accuracy in clients.items())
            total += len(clients)
    return f"{worse} of {total}" if total else ""


def interval(test: PairedTest) -> str:
    """Return a difference with its confidence interval."""
    return f"{test.difference:+.1f} [{test.low:+.1f}, {test.high:+.1f}]".replace("-", "−")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """Return a table in Markdown."""
    rule = ["---" if n < numbers_from else "---:" for n in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def part_rows(directories: Iterable[Path]) -> list[list[str]]:
    """Return the table of the recipe's parts: accuracy, and the difference to the paper's recipe."""
    rows = []
    for place, methods in read(directories).items():
        for name in ("local", *(f"cosmos, {recipe}" for recipe in ("paper", "joint", "experts", "experts+joint"))):
            values, cell = means(methods[name]), ""
            if name not in ("local", PAPER):
                test = paired_t_test(values, means(methods[PAPER]))
                cell = f"{interval(test)}, p = {test.p:.2g}"
            text = f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
            rows.append([DATA[place.data], place.models.replace("+", ", "), name, text, cell])
    return rows


def full_size(directory: Path) -> str:
    """Return the table of the runs at full size, of one seed."""
    rows = []
    for place, methods in read([directory]).items():
        for name in METHODS:
            if name in methods:
                accuracies = list(methods[name][0].values())
                own = f"{min(accuracies):.1f} to {max(accuracies):.1f}"
                alone = methods["local"][0]
                worse = sum(accuracy < alone[client] for client, accuracy in methods[name][0].items())
                cell = "" if name == "local" else f"{worse} of {len(accuracies)}"
                rows.append([DATA[place.data], name, f"{np.mean(accuracies):.1f}", own, cell])
    return table(["data", "method", "client", "from client to client", "clients below local"], rows, 2)


def control(directories: Iterable[Path], places: Places) -> str:
    """Return the table of methods that train on as many private samples as ours does, with its joint end."""
    rows = []
    for directory in directories:
        some = next(iter(sorted(directory.glob("cells/*/config.toml"))))
        epochs = tomllib.loads(some.read_text(encoding="utf-8"))["method"]["local_epochs"]
        for place, methods in read([directory]).items():
            for name, seeds in methods.items():
                test = paired_t_test(means(places[place][OURS]), means(seeds))
                rows.append(
                    [
                        *(DATA[place.data], place.models.replace("+", ", "), name),
                        f"{np.mean(means(places[place][name])):.1f}",
                        f"{np.mean(means(seeds)):.1f} ({epochs})",
                        interval(test),
                    ]
                )
    rows.sort(key=lambda cells: list(DATA.values()).index(cells[0]))
    head = ["data", "clients' models", "method", "5 local epochs", "more (how many)", "ours minus that"]
    return table(head, rows, 3)


def mixing(directory: Path) -> str:
    """Return the table of both recipes over degrees of mixing."""
    rows = []
    for place, methods in sorted(read([directory]).items(), key=lambda item: item[0].mixing):
        test = paired_t_test(means(methods[OURS]), means(methods[PAPER]))
        cells = [f"{np.mean(means(methods[name])):.1f}" for name in ("local", PAPER, OURS)]
        rows.append(
            [
                f"{place.mixing:g}",
                *cells,
                interval(test),
            ]
        )
    return table(["mixing", "local", PAPER, OURS, "ours minus the paper's"], rows, 0)


def evidence(path: Path) -> str:
    """Return the table of what the log ratios tell, means over seeds; the best factor of each row is bold."""
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    factors = [name for name in lines[0] if name.startswith("times") or name == "sum"]
    rows: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for line in lines:
        rows[DATA[line["data"]], line["groups"], line["private"], line["members"]].append(line)
    cells = []
    for key, own in rows.items():
        found = {name: np.mean([float(line[name]) for line in own]) - float(own[0]["nothing"]) for name in factors}
        shown = [f"{value:.2f}".replace("-", "−") for value in found.values()]
        best = f"{max(found.values()):.2f}"
        texts = [f"**{text}**" if text == best else text for text in shown]
        cells.append([*key, f"{np.mean([float(line['right']) for line in own]):.0f}", *texts])
    return table(["data", "groups", "private samples", "members", "right, %", *factors], cells, 1)


def picture(places: Places, path: Path) -> None:
    """Draw the difference to local training at every place, a dot per method."""
    shown = list(places)
    figure, axes = plt.subplots(figsize=(8.6, 0.42 * len(shown) + 1.4), layout="constrained")
    for n, place in enumerate(shown):
        alone = np.mean(means(places[place]["local"]))
        for name in METHODS:
            if name in places[place] and name not in ("local", *FAR_BELOW):
                gain = np.mean(means(places[place][name])) - alone
                axes.plot(gain, n, "D" if name == OURS else "o", color=COLOURS[name], ms=8 if name == OURS else 6)
    for name in METHODS:
        if name not in ("local", *FAR_BELOW):
            axes.plot([], [], "D" if name == OURS else "o", ls="", color=COLOURS[name], label=name)
    axes.axvline(0, color="#999999", lw=1)
    axes.set_yticks(range(len(shown)), [f"{DATA[p.data]}, {p.models}, α = {p.alpha:g}" for p in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("points above local training (accuracy of what clients end with, mean over seeds)")
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Write the page."""
    places, others = (in_order(read(sorted(RESULTS.glob(f"{name}-*")))) for name in ("honest", "held-out"))
    picture(places, DOCS / "images" / "recipe.png")
    text = (Path(__file__).parent / "recipe_page.md").read_text(encoding="utf-8")
    where = ["data", "clients' models", "α"]
    parts = {
        "ACCURACIES": table([*where, *METHODS], [row(*item) for item in places.items()], 2),
        "EFFECTS": table([*where, *METHODS[1:]], [effects(*item) for item in places.items()], 2),
        "CONTROL": control(sorted(RESULTS.glob("control-*")), places),
        "HELD_OUT": held_out(others),
        "EVIDENCE": evidence(RESULTS / "evidence.csv"),
        "MIXING": mixing(RESULTS / "mixing-digits"),
        "PARTS": table(
            ["data", "clients' models", "recipe", "client", "minus the paper's"],
            part_rows([RESULTS / "recipes", RESULTS / "recipes-mlp"]),
            3,
        ),
        "FULL": full_size(RESULTS / "full-size"),
        "VERDICT": verdict(places),
        "LOSERS": table(
            ["data", *(name for name in METHODS if name != "local")],
            [
                [DATA[data], *(losers(places, data, name) for name in METHODS if name != "local")]
                for data in DATA
                if any(place.data == data for place in places)
            ],
            1,
        ),
    }
    for key, part in parts.items():
        text = text.replace(f"{{{key}}}", part)
    (DOCS / "recipe.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
