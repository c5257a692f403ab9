"""Small federations that tests share."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from cosmosfl.config import ExperimentConfig
from cosmosfl.experiment import Federation, build_federation


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def hear_ctrl_c() -> None:
    """Run in a new process before its program: one started by a shell in the background would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def blobs(n: int, classes: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return n samples of Gaussian classes (of four) around fixed centres in the plane."""
    centers = np.array([[2, 2], [-2, 2], [-2, -2], [2, -2]], np.float32)
    labels = rng.choice(classes, n)
    labels[: len(classes)] = classes
    return (centers[labels] + 0.7 * rng.standard_normal((n, 2))).astype(np.float32), labels.astype(np.int64)


def make_clients(n: int = 4, *, samples: int = 12, learner=None, test: bool = True) -> list[cf.Client]:
    """Return clients a, b, ... that hold classes 0, 1 and 2, 3 in turn."""
    make = learner or (lambda: cf.SklearnLearner(LogisticRegression()))
    clients = []
    for i in range(n):
        rng = np.random.default_rng(i)
        classes = (0, 1) if i % 2 == 0 else (2, 3)
        held_out = blobs(30, classes, rng) if test else None
        clients.append(cf.Client("abcdefghij"[i], make(), *blobs(samples, classes, rng), test=held_out))
    return clients


def three_kinds() -> list[cf.Client]:
    """Return clients a, b and c with a torch model, a forest and a linear model."""
    learners = iter(
        [
            cf.TorchLearner("mlp"),
            cf.SklearnLearner(RandomForestClassifier(5)),
            cf.SklearnLearner(LogisticRegression()),
        ]
    )
    return make_clients(3, learner=lambda: next(learners))


def digits_federation(**partition: int) -> Federation:
    """Return six clients with MLPs and 15 digits each; two groups of classes, unless ``groups`` says otherwise."""
    return build_federation(
        ExperimentConfig.parse({"partition": {"clients": 6, **partition}, "clients": {"models": ["mlp"]}})
    )


def tiny(input_shape: tuple[int, ...], n_classes: int) -> torch.nn.Module:
    """A model of one's own, to be named ``conftest:tiny``."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(n_classes))


@pytest.fixture
def clients() -> list[cf.Client]:
    return make_clients()


@pytest.fixture
def public() -> np.ndarray:
    return blobs(60, (0, 1, 2, 3), np.random.default_rng(99))[0]
