"""Federated methods by name, one module each."""

from __future__ import annotations

from cosmosfl.methods.centralized import Centralized
from cosmosfl.methods.comet import Comet
from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.methods.dsfl import DSFL
from cosmosfl.methods.fedct import FedCT
from cosmosfl.methods.fedmd import FedMD
from cosmosfl.methods.local import Local
from cosmosfl.protocol import Method

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Cosmos, Local, Centralized, FedMD, Comet, FedCT, DSFL)
}
"""Method name -> its class: ours, the two references, those that exchange predictions, those that exchange weights."""

__all__ = ["DSFL", "METHODS", "Centralized", "Comet", "Cosmos", "FedCT", "FedMD", "Local"]
