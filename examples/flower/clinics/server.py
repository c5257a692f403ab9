"""The server's side; it has the public set, and no data of any clinic."""

import numpy as np

import cosmosfl as cf
from cosmosfl.flower import server_app


def read_public(context):
    """Return the unlabelled public set."""
    with np.load(context.run_config["public"]) as found:
        return found["inputs"]


app = server_app(public=read_public, n_classes=10, method=cf.Cosmos())
