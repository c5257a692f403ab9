"""How fast a federation is trained, against the limit of the machine and against a plain implementation.

    python benchmarks/engine.py [--quick] [--out results/engine.json]

One workload: ten clients, two architectures in turn (``mlp`` and ``cnn-s``, as in the preset cpu/emnist; ``--models``
takes others), images of the shape of CIFAR made in memory, one COSMOS round: every client trains, predicts the public
set, the server trains a model for each of four clusters on the mean, the clients learn from it. Its speed is the number
of samples that a training step saw, per second, in

- *ceiling*: the best bare loop that we can write for the same steps: one thread, channels last, bfloat16 where the
  processor has it, fused optimiser, no checks, no clipping, nothing kept on disk;
- *engine*: the same through `cosmosfl.engine.local.LocalEngine`, with one worker and with two;
- *loader*: the same as a user would write it first: float32, a `DataLoader` over a `Dataset` that scales, crops and
  flips one image at a time, clients one after the other, torch's own choice of threads.

All of them are timed in turn, `--repeats` times, and the medians compared. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import cosmosfl as cf
from cosmosfl.distillation import flip_crop
from cosmosfl.engine.local import LocalEngine
from cosmosfl.learners.torch import supports_bfloat16
from cosmosfl.models import find_model

MIXTURE = "mlp,cnn-s"
TEACHER = "cnn-s"
N_CLIENTS, N_GROUPS, N_CLASSES = 10, 4, 20
BATCH, RATE = 32, 1e-3


@dataclass(frozen=True)
class Workload:
    """Images of ten clients in four groups of five classes each, and a public set."""

    private: list[tuple[np.ndarray, np.ndarray]]
    tests: list[tuple[np.ndarray, np.ndarray]]
    public: np.ndarray
    epochs: int
    models: tuple[str, str]
    seed: int

    @classmethod
    def make(cls, n_private: int, n_public: int, epochs: int, models: tuple[str, str], seed: int) -> Workload:
        """Draw coarse patterns, one for each class, and noisy, shifted copies of them."""
        rng = np.random.default_rng(seed)
        coarse = rng.standard_normal((N_CLASSES, 3, 4, 4))
        patterns = coarse.repeat(8, axis=2).repeat(8, axis=3)

        def draw(labels: np.ndarray) -> np.ndarray:
            noise = rng.standard_normal((len(labels), 3, 32, 32))
            shift = rng.integers(-3, 4, (len(labels), 2))
            moved = np.stack([np.roll(patterns[y], tuple(s), (1, 2)) for y, s in zip(labels, shift, strict=True)])
            return np.clip(127 + 13 * moved + 60 * noise, 0, 255).astype(np.uint8)

        private, tests = [], []
        for i in range(N_CLIENTS):
            classes = np.arange(5) + 5 * (i % N_GROUPS)
            for n, parts in ((n_private, private), (200, tests)):
                labels = rng.choice(classes, n)
                parts.append((draw(labels), labels))
        return cls(private, tests, draw(rng.integers(N_CLASSES, size=n_public)), epochs, models, seed)

    @property
    def samples(self) -> int:
        """Samples that training steps see: of clients, private and public, and of the server."""
        private = sum(len(labels) for _, labels in self.private)
        return self.epochs * (private + len(self.public) * (N_CLIENTS + N_GROUPS))


# --- the ceiling ---


def ceiling(work: Workload) -> list[float]:
    """Run the bare loop; return the clients' accuracies."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(work.seed)
    half = supports_bfloat16("cpu")

    def prepared(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)

    def forward(model, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return model(x).float()

    def train(model, x, y, loss):
        optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
        model.train()
        for _ in range(work.epochs):
            for index in torch.randperm(len(x), generator=generator).split(BATCH):
                value = loss(forward(model, flip_crop(x[index], generator)), y[index])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()

    @torch.inference_mode()
    def predict(model, x):
        model.eval()
        return torch.cat([forward(model, part).softmax(1) for part in x.split(1024)])

    def soft(logits, p):
        return F.kl_div(F.log_softmax(logits, 1), p, reduction="batchmean")

    def make(name):
        return find_model(name)((3, 32, 32), N_CLASSES).to(memory_format=torch.channels_last)

    torch.manual_seed(work.seed)
    public = prepared(work.public)
    models = [make(work.models[i % 2]) for i in range(N_CLIENTS)]
    predictions = []
    for model, (images, labels) in zip(models, work.private, strict=True):
        train(model, prepared(images), torch.from_numpy(labels), F.cross_entropy)
        predictions.append(predict(model, public))
    for group in range(N_GROUPS):
        members = range(group, N_CLIENTS, N_GROUPS)
        teacher = make(TEACHER)
        train(teacher, public, torch.stack([predictions[i] for i in members]).mean(0), soft)
        labels = predict(teacher, public).clone()
        for i in members:
            train(models[i], public, labels, soft)
    return [
        float((predict(model, prepared(x)).argmax(1).numpy() == y).mean())
        for model, (x, y) in zip(models, work.tests, strict=True)
    ]


# --- a plain implementation ---


class Images(Dataset):
    """Scales, shifts and mirrors one image at a time, as is usual."""

    def __init__(self, images: np.ndarray, targets: torch.Tensor, *, augment: bool) -> None:
        self.images, self.targets, self.augment = images, targets, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(self.images[n]).float() / 127.5 - 1
        if self.augment:
            top, left = (int(v) for v in torch.randint(0, 9, (2,)))
            image = F.pad(image[None], (4, 4, 4, 4), mode="replicate")[0][:, top : top + 32, left : left + 32]
            if torch.rand(()) < 0.5:
                image = image.flip(2)
        return image, self.targets[n]


def loader(work: Workload) -> list[float]:
    """Run the plain implementation; return the clients' accuracies."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(work.seed)

    def train(model, images, targets, loss):
        batches = DataLoader(Images(images, targets, augment=True), BATCH, shuffle=True)
        optimizer = torch.optim.Adam(model.parameters(), RATE)
        model.train()
        for _ in range(work.epochs):
            for x, y in batches:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()

    @torch.no_grad()
    def predict(model, images):
        model.eval()
        batches = DataLoader(Images(images, torch.zeros(len(images)), augment=False), BATCH)
        return torch.cat([model(x).softmax(1) for x, _ in batches])

    soft = torch.nn.CrossEntropyLoss()
    models = [find_model(work.models[i % 2])((3, 32, 32), N_CLASSES) for i in range(N_CLIENTS)]
    predictions = []
    for model, (images, labels) in zip(models, work.private, strict=True):
        train(model, images, torch.from_numpy(labels), F.cross_entropy)
        predictions.append(predict(model, work.public))
    for group in range(N_GROUPS):
        members = range(group, N_CLIENTS, N_GROUPS)
        teacher = find_model(TEACHER)((3, 32, 32), N_CLASSES)
        train(teacher, work.public, torch.stack([predictions[i] for i in members]).mean(0), soft)
        labels = predict(teacher, work.public)
        for i in members:
            train(models[i], work.public, labels, soft)
    return [
        float((predict(model, x).argmax(1).numpy() == y).mean())
        for model, (x, y) in zip(models, work.tests, strict=True)
    ]


# --- the engine ---


def engine(work: Workload, workers: int) -> list[float]:
    """Run the same through cosmosfl; return the clients' accuracies."""
    options = {"learning_rate": RATE, "batch_size": BATCH, "augment": "flip-crop", "precision": "auto"}
    clients = [
        cf.Client(f"client-{i}", cf.TorchLearner(work.models[i % 2], **options), *work.private[i])
        for i in range(N_CLIENTS)
    ]
    method = cf.Cosmos(
        recipe="paper",
        teacher=cf.TorchLearner(TEACHER, **options),
        n_clusters=N_GROUPS,
        local_epochs=work.epochs,
        server_epochs=work.epochs,
        distill_epochs=work.epochs,
    )
    run = LocalEngine(workers=workers).run(
        method, clients, work.public, 0, seed=work.seed, n_classes=N_CLASSES, local_baseline=False
    )
    torch.set_num_threads(1)
    return [
        float((run.model(client.id).predict_proba(x).argmax(1) == y).mean())
        for client, (x, y) in zip(clients, work.tests, strict=True)
    ]


def timed(function: Callable[[], list[float]]) -> tuple[float, float]:
    """Return seconds and mean accuracy."""
    start = time.perf_counter()
    accuracies = function()
    return time.perf_counter() - start, statistics.mean(accuracies)


def profiled(work: Workload) -> None:
    """Print where the time of the engine with one worker goes."""
    profile = cProfile.Profile()
    profile.enable()
    engine(work, 1)
    profile.disable()
    stats = pstats.Stats(profile).stats
    total = sum(own for _, _, own, _, _ in stats.values())
    parts = {"training steps": "train", "prediction": "predict_proba", "reading states": "read_state",
             "writing states": "write_state", "clustering": "cluster", "distances": "pairwise_distances"}  # fmt: skip
    print(f"\none worker, under the profiler ({total:.1f} s):")
    for label, name in parts.items():
        seconds = sum(entry[3] for (file, _, f), entry in stats.items() if f == name and "cosmosfl" in file)
        print(f"  {label:<15}{seconds:8.2f} s {100 * seconds / total:6.1f} %")
    print("  own time of the ten most expensive functions:")
    for (file, _, name), entry in sorted(stats.items(), key=lambda item: -item[1][2])[:10]:
        print(f"    {entry[2]:8.2f} s {100 * entry[2] / total:6.1f} %  {Path(file).name}:{name}")


def main() -> None:
    """Time all of them in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small workload, once: under a minute")
    parser.add_argument("--models", default=MIXTURE, help=f"two architectures; by default {MIXTURE}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON object there")
    arguments = parser.parse_args()
    first, second = arguments.models.split(",")
    sizes = (
        {"n_private": 240, "n_public": 480, "epochs": 2}
        if arguments.quick
        else {"n_private": 500, "n_public": 1000, "epochs": 2}
    )
    repeats = 1 if arguments.quick else arguments.repeats
    work = Workload.make(**sizes, models=(first, second), seed=0)
    systems = {
        "ceiling": lambda work: ceiling(work),
        "engine, 1 worker": lambda work: engine(work, 1),
        "engine, 2 workers": lambda work: engine(work, 2),
        "loader": lambda work: loader(work),
    }
    tiny = Workload.make(32, 32, 1, (first, second), seed=0)
    for system in systems.values():  # imports, kernels and worker processes
        system(tiny)
    seconds = {name: [] for name in systems}
    accuracy = {name: [] for name in systems}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}, "
          f"bfloat16 {'yes' if supports_bfloat16('cpu') else 'no'}; {work.samples} training samples")  # fmt: skip
    for n in range(repeats):
        repeated = work if n == 0 else Workload.make(**sizes, models=(first, second), seed=n)
        for name, system in systems.items():
            taken, reached = timed(lambda system=system, repeated=repeated: system(repeated))
            seconds[name].append(taken)
            accuracy[name].append(reached)
            print(
                f"  seed {n}  {name:<18}{work.samples / taken:8.0f} samples/s  accuracy {100 * reached:5.1f} %",
                flush=True,
            )
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "one_worker_of_ceiling": median["ceiling"] / median["engine, 1 worker"],
        "two_workers_of_one": median["engine, 1 worker"] / median["engine, 2 workers"],
        "of_serial_float32_loader": median["loader"] / median["engine, 2 workers"],
    }
    if not arguments.quick:
        profiled(work)
    result = {
        **{key: round(value, 3) for key, value in ratios.items()},
        "samples_per_second": {name: round(work.samples / value) for name, value in median.items()},
        "accuracy": {name: [round(100 * v, 1) for v in values] for name, values in accuracy.items()},
        "models": arguments.models,
        "cpus": os.cpu_count(),
        "repeats": repeats,
        "torch": torch.__version__,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
