"""cosmosfl: federated learning in which only predictions cross the wire.

COSMOS (Rachmut et al. 2026, arXiv 2605.11165) for models of any kind::

    import cosmosfl as cf

    clients = [cf.Client("a", cf.SklearnLearner(RandomForestClassifier()), X_a, y_a), ...]
    run = cf.Cosmos().fit(clients, public=U, rounds=5)
    run.model("a").predict_proba(X)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmosfl.clustering import (
    aggregate,
    auto_threshold,
    cluster_stability,
    greedy_clusters,
    pairwise_distances,
    threshold_for,
)
from cosmosfl.data.sets import EvaluationSet, PublicSet
from cosmosfl.lazy import exported
from cosmosfl.methods import METHODS, Cosmos, Local
from cosmosfl.protocol import Client, Learner
from cosmosfl.run import Run, load

if TYPE_CHECKING:
    from cosmosfl.learners import BoostingLearner, SklearnLearner, TorchLearner
else:  # with each comes a library that not everybody needs
    __getattr__, __dir__ = exported(
        __name__, dict.fromkeys(("BoostingLearner", "SklearnLearner", "TorchLearner"), "cosmosfl.learners")
    )

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "BoostingLearner",
    "Client",
    "Cosmos",
    "EvaluationSet",
    "Learner",
    "Local",
    "PublicSet",
    "Run",
    "SklearnLearner",
    "TorchLearner",
    "aggregate",
    "auto_threshold",
    "cluster_stability",
    "greedy_clusters",
    "load",
    "pairwise_distances",
    "threshold_for",
]
