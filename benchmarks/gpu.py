"""Time a training step of each architecture on the device at hand, and write results/gpu.csv.

python benchmarks/gpu.py --out results/gpu.csv
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cosmosfl.learners import TorchLearner

MODELS = ("mlp", "cnn-s", "cnn-m", "resnet18", "mobilenetv2", "squeezenet", "vgg16")
SAMPLES, CLASSES, BATCH = 4000, 100, 32


def seconds(work: Callable[[], None]) -> float:
    """Return how long it takes until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    n = arguments.samples
    images = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, n)
    soft = rng.dirichlet(np.ones(CLASSES), n).astype(np.float32)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    steps = max(1, n // BATCH)
    rows = []
    for model in MODELS:
        learner = TorchLearner(model, batch_size=BATCH, precision="auto", augment="flip-crop")

        def fit(count: int, learner: TorchLearner = learner) -> None:
            learner.fit(images[:count], labels[:count], n_classes=CLASSES, epochs=1, rng=np.random.default_rng(0))

        def distill(learner: TorchLearner = learner) -> None:
            learner.distill(images, soft, epochs=1, rng=np.random.default_rng(0))

        fit(2 * BATCH)
        times = [seconds(lambda fit=fit: fit(n)), seconds(distill)]
        rows.append([device, model, BATCH, *(f"{1e3 * value / steps:.2f}" for value in times)])
        print(*rows[-1])
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["device", "model", "batch", "fit_ms", "distill_ms"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
