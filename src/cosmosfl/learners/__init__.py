"""Adapters that make models of any kind learners, and the learners that can be had by name.

Each is imported when it is first used, and its library with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmosfl.lazy import exported

if TYPE_CHECKING:
    from cosmosfl.learners.boosting import BoostingLearner
    from cosmosfl.learners.catalogue import LEARNERS, Entry, find_learner, learner_by_name
    from cosmosfl.learners.sklearn import SklearnLearner
    from cosmosfl.learners.torch import TorchLearner
else:
    __getattr__, __dir__ = exported(
        __name__,
        {
            "BoostingLearner": "cosmosfl.learners.boosting",
            "SklearnLearner": "cosmosfl.learners.sklearn",
            "TorchLearner": "cosmosfl.learners.torch",
            **dict.fromkeys(("LEARNERS", "Entry", "find_learner", "learner_by_name"), "cosmosfl.learners.catalogue"),
        },
    )

__all__ = ["LEARNERS", "BoostingLearner", "Entry", "SklearnLearner", "TorchLearner", "find_learner", "learner_by_name"]
