"""Accuracy at named moments: which model, when, on whose data.

========================  ============================================================================================
moment                    what is measured, always on a client's own test set
========================  ============================================================================================
``local``                 the client's model trained alone, with the same number of local epochs so far
``client_after_fit``      the client's model after training on its private set in this round
``client``                the client's model after distillation in this round: what the client would deploy
``cluster``               the server's model of the client's own cluster
``oracle``                the best of all cluster models *for this test set*: an upper bound that nobody can deploy
========================  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from cosmosfl.data.sets import FloatArray, IntArray

Moment = Literal["local", "client_after_fit", "client", "cluster", "oracle"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)


class Score(NamedTuple):
    """Top-1 and top-5 accuracy in percent, and the number of samples they were measured on."""

    top1: float
    top5: float
    samples: int


@dataclass(frozen=True)
class Measurement:
    """One model on one client's test set; accuracies in percent. `model` is the cluster model's index, if it is one."""

    round: int
    moment: Moment
    client: str
    top1: float
    top5: float
    samples: int
    model: int | None = None


@dataclass(frozen=True)
class Summary:
    """Accuracy over clients, in percent: mean, standard deviation (ddof = 1; 0 for one client), worst, each one's."""

    mean: float
    std: float
    min: float
    per_client: dict[str, float]


def score(probabilities: FloatArray, labels: IntArray) -> Score:
    """Return top-1 and top-5 accuracy of `probabilities` (n, C) against `labels` (n,).

    A class counts as ranked above the true one where its probability is greater, or equal with a lower index, so
    that a model that gives every class the same probability is not right by default.
    """
    rows = np.arange(len(labels))
    true = probabilities[rows, labels][:, None]
    lower_index = np.arange(probabilities.shape[1])[None, :] < labels[:, None]
    rank = ((probabilities > true) | ((probabilities == true) & lower_index)).sum(axis=1)
    return Score(100.0 * float((rank < 1).mean()), 100.0 * float((rank < 5).mean()), len(labels))


def summarise(values: dict[str, float]) -> Summary | None:
    """Summarise accuracies by client; None when there are none."""
    if not values:
        return None
    numbers = np.array(list(values.values()))
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    return Summary(float(numbers.mean()), std, float(numbers.min()), values)


def at_moment(
    measurements: Iterable[Measurement], moment: Moment, round: int | None = None, metric: str = "top1"
) -> Summary | None:
    """Summarise one moment at one round (by default the last one measured)."""
    chosen = [m for m in measurements if m.moment == moment]
    if not chosen:
        return None
    when = max(m.round for m in chosen) if round is None else round
    return summarise({m.client: getattr(m, metric) for m in chosen if m.round == when})
