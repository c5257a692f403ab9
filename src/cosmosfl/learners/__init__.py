"""Adapters that make models of any kind learners, and the learners that can be had by name."""

from cosmosfl.learners.boosting import BoostingLearner
from cosmosfl.learners.catalogue import LEARNERS, Entry, find_learner, learner_by_name
from cosmosfl.learners.sklearn import SklearnLearner
from cosmosfl.learners.torch import TorchLearner

__all__ = ["LEARNERS", "BoostingLearner", "Entry", "SklearnLearner", "TorchLearner", "find_learner", "learner_by_name"]
