"""What an architecture can gain at most: training steps in float32 on all threads, and in bfloat16 on one.

    python benchmarks/architectures.py [--out results/architectures.csv]

A step is forward, backward and Adam on 32 images of 3×32×32, without any data loading. *plain* is float32 as PyTorch
does it by default; *fast* is channels last, bfloat16 and a fused optimiser on one thread. One such process per CPU is
the most that workers can reach, so ``CPUs · fast / plain`` bounds what the engine gains over a plain loop.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from cosmosfl.models import find_model

MODELS = ("mlp", "cnn-s", "cnn-m", "mobilenetv2", "squeezenet", "alexnet", "resnet18", "vgg16")
BATCH, STEPS, REPEATS = 32, 8, 4


def samples_per_second(name: str, *, fast: bool, threads: int) -> float:
    """Return the median speed of training one model."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = torch.channels_last if fast else torch.contiguous_format
    model = find_model(name)((3, 32, 32), 100).to(memory_format=layout)
    images = torch.randn(BATCH * STEPS, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(0, 100, (len(images),))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=fast or None)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times.append(time.perf_counter() - start)
    return len(images) / statistics.median(times[1:])


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write a CSV")
    arguments = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    rows = []
    for name in MODELS:
        plain = samples_per_second(name, fast=False, threads=cpus)
        fast = samples_per_second(name, fast=True, threads=1)
        rows.append({"model": name, "plain": round(plain), "fast": round(fast), "bound": round(cpus * fast / plain, 2)})
        print(f"{name:<12} plain {plain:7.0f}  fast {fast:7.0f} samples/s  bound {rows[-1]['bound']:.2f}", flush=True)
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
