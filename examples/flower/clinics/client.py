"""A clinic's side: its model, its data and the public set, from directories that its node configuration names."""

import numpy as np
from sklearn.ensemble import RandomForestClassifier

import cosmosfl as cf
from cosmosfl.flower import client_app

MODELS = {
    "torch": lambda: cf.TorchLearner("mlp"),
    "forest": lambda: cf.SklearnLearner(RandomForestClassifier(200)),
    "xgboost": lambda: cf.BoostingLearner("xgboost"),
}


def read(context, file):
    """Return inputs and labels of a file in this clinic's own directory."""
    with np.load(f"{context.node_config['data']}/{file}.npz") as found:
        return found["inputs"], found["labels"]


def read_public(context):
    """Return the unlabelled public set, of which every clinic has a copy."""
    with np.load(f"{context.node_config['data']}/public.npz") as found:
        return found["inputs"]


app = client_app(
    learner=lambda context: MODELS[context.node_config["model"]](),
    data=lambda context: read(context, "train"),
    test=lambda context: read(context, "test"),
    public=read_public,
    share_metrics=True,
)
