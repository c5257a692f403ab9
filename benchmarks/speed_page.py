"""Write docs/speed.md from what the benchmarks left under results/. No number of a measurement is typed by hand.

python benchmarks/speed_page.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from results_page import DOCS, RESULTS, spread, table

INTRODUCTION = """# Speed

Written by `benchmarks/speed_page.py` from the files under `results/`; `make bench` repeats all of it, and
`make bench QUICK=--quick` takes a few minutes. Speeds depend on the machine, ratios less so: each is of two things that
were measured in turn, in the same run.
"""

TRAINING = """## Training

`python benchmarks/engine.py [--models cnn-s,cnn-m]`: ten clients, two architectures, images of 32×32, one round of
COSMOS. The *ceiling* is the best bare loop for the same steps on one thread; the *engine* is cosmosfl; the *loader* is
a plain float32 implementation with a `DataLoader`, on all threads that torch takes. Accuracies are over other
initialisations in each system, so they differ by chance.
"""

COST_MODEL = """## What a run costs

A client of a round trains on its n private samples for E epochs, predicts the m public samples, and trains on them for
D epochs; the server trains a model for S epochs on them, and predicts, for each of K clusters. With t the seconds per
sample of the model in question,

    seconds = rounds · (Σ_clients ((E·n + D·m)·t_train + m·t_predict) / workers
                        + K·m·(S·t_train + t_predict) / min(workers, K))
    bytes   = 2 · rounds · clients · m · C · 4
    memory  = one model per worker + the public set + in the first round min(N·m·C·2, 256 MiB) of predictions
    disk    = one state per client

Rounds count the first one too. Tests are predictions as well: every client's model at two moments, and every cluster
model on every test set, which is the part that grows with N·K. Methods other than COSMOS say what they train on and
send (`Method.training_samples`, `message_bytes`); with a joint end, COSMOS trains on private batches beside the public
ones of the last distillation. `cosmosfl run --dry-run` times a few steps of each model on the
machine at hand, fills in the formula and prints the result before anything is spent. It does not count the start of
worker processes, some seconds, which is why it is far below what the demonstration takes.
"""


def read(name: str) -> dict[str, Any] | None:
    """Return a JSON file under results/, or None."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file under results/; none if there is no such file."""
    path = RESULTS / name
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def engine(name: str) -> str:
    """Return the tables of one mixture."""
    found = read(name)
    if found is None:
        return ""
    rows = [
        [
            system,
            f"{speed:,}",
            f"{speed / found['samples_per_second']['loader']:.2f}",
            spread(found["accuracy"][system]),
        ]
        for system, speed in found["samples_per_second"].items()
    ]
    goals = [
        ["one worker, of the ceiling", found["one_worker_of_ceiling"], 0.90],
        ["two workers, of one", found["two_workers_of_one"], 1.7],
        ["two workers, of the loader", found["of_serial_float32_loader"], 4.0],
    ]
    repeats = f"medians of {found['repeats']} repeats" if found["repeats"] > 1 else "once"
    return "\n".join(
        [
            f"### Clients with {found['models'].replace(',', ' and ')}\n",
            f"{found['cpus']} CPUs, torch {found['torch']}, {repeats}.\n",
            table(["", "samples per second", "of the loader", "accuracy of the clients, %"], rows),
            table(
                ["ratio", "measured", "goal", ""],
                [[what, f"{ratio:.2f}", goal, "met" if ratio >= goal else "missed"] for what, ratio, goal in goals],
            ),
        ]
    )


def bounds() -> str:
    """Return the table of what architectures can gain at most, and what follows from it."""
    rows, compiled = read_rows("architectures.csv"), read_rows("compile.csv")
    if not rows:
        return ""
    least, most = (pick(float(row["bound"]) for row in rows) for pick in (min, max))
    again = "; ".join(f"{row['bound']} for `{row['model']}`" for row in compiled)
    convolutional = [float(row["convolutions"]) for row in rows if float(row["convolutions"])]
    shares = f"{min(convolutional):.0%} to {max(convolutional):.0%}"
    lines = [
        "### The bound\n",
        "`python benchmarks/architectures.py`: training steps alone, without data loading. *plain* is float32 on "
        "all threads, as PyTorch does it by default; *fast* is channels last, bfloat16, a fused optimiser, on one "
        "thread. One fast process per CPU is the most that workers can reach.\n",
        table(
            ["model", "plain, samples/s", "fast on one thread, samples/s", "bound on the gain", "convolutions"],
            [[r["model"], r["plain"], r["fast"], r["bound"], f"{float(r['convolutions']):.0%}"] for r in rows],
        ),
        f"So on this processor perfect workers would gain {least} to {most} over a plain loop on both cores"
        + (f" (measured again: {again})" if again else "")
        + f": the goal of 4 is at the end of that range or beyond it. Convolutions are {shares} of the fast step of "
        "the models that have any. Workers also wait for each other: a phase ends with its last job, and five large "
        "clients do not divide by two.\n",
    ]
    if compiled:
        tried = ", ".join(f"{r['compiled']} against {r['fast']} samples/s for `{r['model']}`" for r in compiled)
        lines.append(f"`torch.compile` does not pay (`--models cnn-s,cnn-m --compile`): {tried}.\n")
    return "\n".join(lines)


def gpu() -> str:
    """Return the section on what was measured on a GPU."""
    rows = read_rows("gpu.csv")
    if not rows:
        return ""
    return "\n".join(
        [
            "## On a GPU\n",
            f"`python benchmarks/gpu.py --out results/gpu.csv`, once, on one {rows[0]['device']} (torch 2.11, 16 CPU "
            f"cores): milliseconds for a training step on {rows[0]['batch']} images of 32×32, bfloat16, flips and "
            "shifts.\n",
            table(["model", "`fit`", "`distill`"], [[r["model"], r["fit_ms"], r["distill_ms"]] for r in rows]),
            "Small batches keep such a card waiting: a step takes as long as a CPU core needs to start its kernels, "
            "more for the many layers of MobileNetV2 than for the much larger VGG-16. `workers` is 1 on a GPU by "
            "default. With 13 (`--workers 13`) and NVIDIA's MPS (`nvidia-cuda-mps-control -d`), so that their kernels "
            "run side by side, a federation of 26 clients (ResNet-18 and the three-stage CNN in turn) made 400 steps "
            "of 64 images a second in one trial (its script is not kept), the server's work and the start of the "
            "processes included; one process would make about 130 by the table. CUDA graphs, which start a whole step "
            "at once, are not used.\n",
        ]
    )


def scale() -> str:
    """Return the section on many clients."""
    found = read("scale.json")
    if found is None:
        return ""
    rows = [
        [
            series,
            f"{row['clients']:,}",
            f"{1000 * row['seconds_per_client']:.0f}",
            f"{row['server_seconds']:.2f}",
            f"{row['peak_gib']:.2f}",
            f"{row['states_gib']:.2f}",
        ]
        for series in ("digits", "cnn")
        for row in found[series]["rows"]
    ]
    ratios = "; ".join(
        f"{series}: {found[series]['seconds_per_client_of_smallest']:.2f} times the time per client and "
        f"{found[series]['peak_gib_of_smallest']:.2f} times the memory"
        for series in ("digits", "cnn")
    )
    header = ["series", "clients", "ms per client", "server, s", "peak memory, GiB", "states on disk, GiB"]
    return "\n".join(
        [
            "## Many clients\n",
            "`python benchmarks/scale.py`: one worker, one exchange, one cluster, every size in a process of its "
            "own. The goals are a time per client within 10 %, and a peak that does not grow.\n",
            table(header, rows),
            f"Largest against smallest: {ratios}.\n",
        ]
    )


def clustering() -> str:
    """Return the section on distances and clusters."""
    rows = read_rows("clustering.csv")
    if not rows:
        return ""
    same = {"True": "yes", "False": "no", "": "–"}
    lines = [
        [
            f"{int(row['clients']):,}",
            row["method"],
            f"{float(row['seconds']):,.1f}" + (" (extrapolated)" if row["note"] else ""),
            f"{float(row['times_cosmosfl']):.1f}",
            f"{float(row['peak_gib']):.2f}" if row["peak_gib"] else "–",
            same[row["same_as_exact"]],
        ]
        for row in rows
    ]
    return "\n".join(
        [
            "## Clusters of many clients\n",
            "`python benchmarks/clustering.py`: predictions in half precision, m · C = 100,000. `cosmosfl` chooses the "
            "threshold too; the others are given it. Peak memory is that beyond the predictions. The goal is 10,000 "
            "clients under 60 s and 4 GiB, with the clusters of the exact method.\n",
            table(["clients", "method", "seconds", "times `cosmosfl`", "peak memory, GiB", "exact clusters"], lines),
        ]
    )


def main() -> None:
    """Write the page."""
    sections = [
        INTRODUCTION,
        TRAINING,
        engine("engine.json"),
        engine("engine-cnn.json"),
        bounds(),
        gpu(),
        clustering(),
        scale(),
        COST_MODEL,
    ]
    Path(DOCS / "speed.md").write_text("\n".join(filter(None, sections)), encoding="utf-8")


if __name__ == "__main__":
    main()
