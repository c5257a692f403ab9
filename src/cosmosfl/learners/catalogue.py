"""Learners by name: every built-in torch architecture, and classifiers of scikit-learn, XGBoost and LightGBM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from cosmosfl.learners.boosting import BoostingLearner
from cosmosfl.learners.sklearn import SklearnLearner
from cosmosfl.learners.torch import TorchLearner
from cosmosfl.models import MODELS, find_model
from cosmosfl.naming import unknown
from cosmosfl.protocol import Learner


class Entry(NamedTuple):
    """What a name stands for: the library, a line about it, and how to make one."""

    library: str
    summary: str
    make: Callable[..., Learner]


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0].rstrip(".")


def _sklearn(estimator: Callable[[], Any], summary: str) -> Entry:
    return Entry("scikit-learn", summary, lambda **options: SklearnLearner(estimator(), **options))


LEARNERS: dict[str, Entry] = {
    **{
        name: Entry("torch", _first_line(factory.__doc__), lambda name=name, **options: TorchLearner(name, **options))
        for name, factory in MODELS.items()
    },
    "logistic-regression": _sklearn(lambda: LogisticRegression(max_iter=1000), "linear model, L2 penalty"),
    "random-forest": _sklearn(lambda: RandomForestClassifier(100), "100 trees"),
    "extra-trees": _sklearn(lambda: ExtraTreesClassifier(100), "100 extremely randomised trees"),
    "nearest-neighbours": _sklearn(lambda: KNeighborsClassifier(5), "5 nearest neighbours; takes no sample weights"),
    "naive-bayes": _sklearn(lambda: GaussianNB(var_smoothing=1e-2), "Gaussian naive Bayes"),
    "xgboost": Entry("xgboost", "50 boosted trees a class", lambda **options: BoostingLearner("xgboost", **options)),
    "lightgbm": Entry("lightgbm", "50 boosted trees a class", lambda **options: BoostingLearner("lightgbm", **options)),
}
"""Name -> what it stands for."""


def find_learner(name: str) -> Entry:
    """Return what a name stands for.

    Parameters
    ----------
    name
        A key of `LEARNERS`, or a torch model as `cosmosfl.models.find_model` takes it: ``module:factory``,
        ``torchvision:NAME``, ``timm:NAME``, each and every built-in one with ``@SIZE`` to resize its images.

    Raises
    ------
    ValueError
        If there is no such model; the message names the nearest.
    """
    if name in LEARNERS:
        return LEARNERS[name]
    if ":" not in name and name.partition("@")[0] not in MODELS:
        raise ValueError(unknown("model", name, LEARNERS))
    find_model(name)  # a mistake in the name ends here
    return Entry("torch", name, lambda **options: TorchLearner(name, **options))


def learner_by_name(name: str, **options: Any) -> Learner:
    """Return a new learner.

    Parameters
    ----------
    name
        As `find_learner` takes it.
    **options
        Of the learner's class: `TorchLearner`, `SklearnLearner` or `BoostingLearner`.

    Raises
    ------
    ValueError
        If there is no such model; the message names the nearest.
    """
    return find_learner(name).make(**options)
