"""The curves of the paper (Rachmut et al. 2026, arXiv 2605.11165), to be shown beside those of a run.

``paper_curves.csv`` holds them, read off figures 2 and 3 to within 0.2 points. The paper plots, for each client, the
best of all cluster models chosen on its test set.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

_FIGURES = {"fig2": "fig. 2", "fig3": "fig. 3"}
_USUAL_MODELS = "MobileNetV2+SqueezeNet"
"""The clients of figure 2, which has a curve of every data set."""
_OTHER_IMAGES = {"emnist47": "emnist-balanced"}
"""Data set of a run -> the paper's, which has the same classes but other images of them."""


@dataclass(frozen=True)
class PaperCurve:
    """A published curve.

    Attributes
    ----------
    rounds, accuracies
        The points, in percent; without those that could not be read.
    figure
        Of the paper: ``fig. 2``.
    metric
        ``top1`` or ``top5``.
    label
        What it is called in a picture.
    caveat
        Why it is not about the run's setting, as a clause; empty if data set and kinds of models are the same.
    """

    rounds: tuple[int, ...]
    accuracies: tuple[float, ...]
    figure: str
    metric: str
    label: str
    caveat: str = ""


@dataclass(frozen=True)
class _Point:
    """A row of the file; `accuracy_percent` is empty where it could not be read."""

    figure: str
    dataset: str
    client_models: str
    metric: str
    method: str
    round: str
    accuracy_percent: str


def paper_curve(dataset: str, client_models: Iterable[str], method: str = "COSMOS") -> PaperCurve | None:
    """Return the paper's curve that is nearest to a run; None if the paper has none of this data set or method.

    Parameters
    ----------
    dataset
        Name of the run's data set.
    client_models
        Names of the clients' models, in any order. If the paper has no such mixture, its usual one is taken, and
        `PaperCurve.label` and `PaperCurve.caveat` say so.
    method
        As the paper writes it.
    """
    of_paper = _OTHER_IMAGES.get(dataset, dataset)
    candidates = [point for point in _points() if (point.dataset, point.method) == (of_paper, method)]
    if not candidates:
        return None
    wanted = {name.partition("@")[0].lower() for name in client_models}
    same = [point for point in candidates if _mixture(point.client_models) == wanted]
    chosen = same or [point for point in candidates if point.client_models == _USUAL_MODELS]
    figure = min(point.figure for point in chosen)  # figures 2 and 3 share one mixture
    readable = [point for point in chosen if point.figure == figure and point.accuracy_percent]
    remark, caveat = _reservation(dataset, chosen[0].client_models, same_models=bool(same))
    return PaperCurve(
        rounds=tuple(int(point.round) for point in readable),
        accuracies=tuple(float(point.accuracy_percent) for point in readable),
        figure=_FIGURES[figure],
        metric=chosen[0].metric,
        label=f"paper, {_FIGURES[figure]}{remark} (best cluster model per client)",
        caveat=caveat,
    )


def _mixture(client_models: str) -> set[str]:
    return set(client_models.lower().split("+"))


def _reservation(dataset: str, client_models: str, *, same_models: bool) -> tuple[str, str]:
    """Return what parts the curve from the run, in a few words and as a clause; both empty if nothing does."""
    others = "" if same_models else f"its clients are {_listed(client_models.split('+'))}"
    if dataset in _OTHER_IMAGES:
        images = f"{dataset} is another selection of images than {_OTHER_IMAGES[dataset]}, hence not comparable"
        return ", other images: not comparable", "; ".join(filter(None, [others, images]))
    return ("" if same_models else ", another setting"), others


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


@cache
def _points() -> tuple[_Point, ...]:
    text = resources.files("cosmosfl.report").joinpath("paper_curves.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(_Point(**row) for row in rows)
