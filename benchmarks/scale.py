"""Time per client and memory of a federation that grows from 10 to 1,000 clients.

    python benchmarks/scale.py [--quick] [--out results/scale.json]

Two series, each size in a fresh process with one worker: *digits* (64 features, a small MLP) and *cnn* (32×32 images, a
`cnn-m` of 1.4 million parameters at every client), from 10 to 1,000 clients. One exchange of COSMOS in one cluster.
The clients take their images from a pool that is the same for all sizes, so what grows with their number is the
federation itself: states, predictions, messages. Time per client is that of the clients' phases; the server's, which
trains one model whatever the number of clients, stands beside it. Peak memory is the process's largest resident set.
The last line is a JSON object: the largest size of the cnn series against its smallest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import cosmosfl as cf
from cosmosfl.engine.local import LocalEngine
from cosmosfl.events import PhaseStarted

SERIES = {  # model, shape, private and public samples, classes
    "digits": ("mlp", (64,), 40, 100, 10),
    "cnn": ("cnn-m", (3, 32, 32), 32, 32, 20),
}


def measure(series: str, n_clients: int) -> dict[str, float]:
    """Run one federation in this process; return seconds per client, peak memory and bytes on disk."""
    model, shape, n_private, n_public, n_classes = SERIES[series]
    rng = np.random.default_rng(0)
    pool = rng.standard_normal((1000 + n_private, *shape)).astype(np.float32)
    labels = rng.integers(n_classes, size=len(pool))
    clients = []
    for i in range(n_clients):
        start = int(rng.integers(1000))
        part = slice(start, start + n_private)
        clients.append(cf.Client(f"client-{i:04d}", cf.TorchLearner(model), pool[part], labels[part]))
    method = cf.Cosmos(
        recipe="paper",
        teacher=cf.TorchLearner(model),
        threshold=2.0,
        local_epochs=1,
        server_epochs=1,
        distill_epochs=1,
    )
    method.fit(clients[:2], pool[:n_public], 0, n_classes=n_classes)  # what happens once in a process
    phases: list[tuple[str, float]] = []

    def watch(event: object) -> None:
        if isinstance(event, PhaseStarted):
            phases.append((event.phase, time.perf_counter()))

    with TemporaryDirectory() as scratch:
        start_time = time.perf_counter()
        engine = LocalEngine([watch], scratch=Path(scratch))
        run = engine.run(method, clients, pool[:n_public], 0, n_classes=n_classes, local_baseline=False)
        seconds = time.perf_counter() - start_time
        on_disk = sum(file.stat().st_size for file in Path(scratch).rglob("*.safetensors"))
        assert len(run.models) == n_clients
    phases.append(("end", start_time + seconds))
    server = sum(after - at for (phase, at), (_, after) in itertools.pairwise(phases) if phase == "server")
    return {
        "clients": n_clients,
        "seconds_per_client": (seconds - server) / n_clients,
        "server_seconds": server,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "states_gib": on_disk / 2**30,
    }


def main() -> None:
    """Run every size in a process of its own and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 40 clients: under a minute")
    parser.add_argument("--out", type=Path, help="also write the JSON object there")
    parser.add_argument("--measure", nargs=2, metavar=("SERIES", "CLIENTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        series, n_clients = arguments.measure
        print(json.dumps(measure(series, int(n_clients))))
        return
    sizes = (10, 40) if arguments.quick else (10, 100, 1000)
    result: dict[str, object] = {}
    for series in SERIES:
        rows = []
        for n in sizes:
            command = [sys.executable, __file__, "--measure", series, str(n)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            row = rows[-1]
            print(
                f"{series:<7}{n:6} clients  {1000 * row['seconds_per_client']:8.1f} ms per client  server "
                f"{row['server_seconds']:6.2f} s  peak {row['peak_gib']:5.2f} GiB  states {row['states_gib']:6.2f} GiB",
                flush=True,
            )
        result[series] = {
            "rows": rows,
            "peak_gib_of_smallest": round(rows[-1]["peak_gib"] / rows[0]["peak_gib"], 3),
            "seconds_per_client_of_smallest": round(rows[-1]["seconds_per_client"] / rows[0]["seconds_per_client"], 3),
        }
    cnn = result["cnn"]
    assert isinstance(cnn, dict)
    result = {key: cnn[key] for key in ("peak_gib_of_smallest", "seconds_per_client_of_smallest")} | result
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
