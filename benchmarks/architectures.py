"""What an architecture can gain at most: training steps in float32 on all threads, and in bfloat16 on one.

    python benchmarks/architectures.py [--models cnn-s,cnn-m] [--compile] [--out results/architectures.csv]

A step is forward, backward and Adam on 32 images of 3×32×32, without any data loading. *plain* is float32 as PyTorch
does it by default; *fast* is channels last, bfloat16 and a fused optimiser on one thread. One such process per CPU is
the most that workers can reach, so ``CPUs · fast / plain`` bounds what the engine gains over a plain loop. Also: the
share of the fast step that PyTorch's profiler counts for convolutions, forward and backward, and with ``--compile`` the
speed of the fast step under `torch.compile` and the seconds of its first step.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from cosmosfl.models import find_model

MODELS = ("mlp", "cnn-s", "cnn-m", "mobilenetv2", "squeezenet", "alexnet", "resnet18", "vgg16")
BATCH, STEPS, REPEATS = 32, 8, 4


@dataclass(frozen=True)
class Training:
    """Median speed in samples per second, seconds of the first epoch, and the share of convolutions in the last."""

    speed: float
    first: float
    convolutions: float


def train(name: str, *, fast: bool, threads: int, compiled: bool = False) -> Training:
    """Train one model for some epochs."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = torch.channels_last if fast else torch.contiguous_format
    model = find_model(name)((3, 32, 32), 100).to(memory_format=layout)
    images = torch.randn(BATCH * STEPS, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.randint(0, 100, (len(images),))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=fast or None)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            logits = model(x)
        return F.cross_entropy(logits.float(), y)

    step = torch.compile(loss_of) if compiled else loss_of

    def epoch() -> float:
        start = time.perf_counter()
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            step(x, y).backward()
            optimizer.step()
        return time.perf_counter() - start

    times = [epoch() for _ in range(REPEATS)]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        epoch()
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    convolutions = sum(spent for key, spent in own.items() if "convolution" in key)
    return Training(len(images) / statistics.median(times[1:]), times[0], convolutions / sum(own.values()))


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="by default %(default)s")
    parser.add_argument("--compile", action="store_true", help="also try torch.compile, which takes long to begin")
    parser.add_argument("--out", type=Path, help="also write a CSV")
    arguments = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    rows = []
    for name in arguments.models.split(","):
        plain = train(name, fast=False, threads=cpus)
        fast = train(name, fast=True, threads=1)
        row = {
            "model": name,
            "plain": round(plain.speed),
            "fast": round(fast.speed),
            "bound": round(cpus * fast.speed / plain.speed, 2),
            "convolutions": round(fast.convolutions, 2),
        }
        if arguments.compile:
            compiled = train(name, fast=True, threads=1, compiled=True)
            row |= {"compiled": round(compiled.speed), "first": round(compiled.first)}
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.out:
        with arguments.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
