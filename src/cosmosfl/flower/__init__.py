"""COSMOS, and every other method that exchanges predictions, on Flower; needs the extra ``flower``.

A party's project::

    app = client_app(learner=SklearnLearner(RandomForestClassifier()), data=read_patients, public=read_public)

and the server's::

    app = server_app(public=read_public, n_classes=10, rounds=5, directory="runs/clinics")

are what Flower's commands start. ``cosmosfl federation try`` shows all of it on one machine.
"""

from __future__ import annotations

try:
    import flwr  # noqa: F401
except ImportError as error:
    raise ImportError("cosmosfl.flower needs Flower: pip install 'cosmosfl[flower]'") from error

from cosmosfl.flower.client import client_app
from cosmosfl.flower.server import server_app
from cosmosfl.flower.session import FederationError
from cosmosfl.flower.strategy import MethodStrategy

__all__ = ["FederationError", "MethodStrategy", "client_app", "server_app"]
