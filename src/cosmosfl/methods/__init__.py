"""Federated methods by name, one module each."""

from __future__ import annotations

from cosmosfl.methods.centralized import Centralized
from cosmosfl.methods.comet import Comet
from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.methods.ditto import Ditto
from cosmosfl.methods.dsfl import DSFL
from cosmosfl.methods.fedavg import FedAvg
from cosmosfl.methods.fedbabu import FedBABU
from cosmosfl.methods.fedct import FedCT
from cosmosfl.methods.feddf import FedDF
from cosmosfl.methods.fedmd import FedMD
from cosmosfl.methods.fedprox import FedProx
from cosmosfl.methods.fedrep import FedRep
from cosmosfl.methods.fedselect import FedSelect
from cosmosfl.methods.flis import FLIS
from cosmosfl.methods.local import Local
from cosmosfl.methods.pfedck import PFedCK
from cosmosfl.methods.pfedhn import PFedHN
from cosmosfl.methods.pfedme import PFedMe
from cosmosfl.protocol import Method, NotApplicableError

PREDICTION_SHARING: tuple[type[Method], ...] = (Cosmos, FedMD, Comet, FedCT, DSFL)
"""Those that exchange predictions: they take models of any kind, and run between machines (`cosmosfl.flower`)."""
WEIGHT_SHARING: tuple[type[Method], ...] = (
    *(FedAvg, FedProx, FedDF, FLIS),
    *(Ditto, FedBABU, FedRep, PFedMe, PFedHN, FedSelect, PFedCK),  # with models of the clients' own
)
"""Those that exchange weights: they need one architecture at every client (FedDF: torch models)."""
_ALL: tuple[type[Method], ...] = (Cosmos, Local, Centralized, *PREDICTION_SHARING[1:], *WEIGHT_SHARING)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
"""Method name -> its class: ours, the two references, those that exchange predictions, those that exchange weights."""


def check_exchanges_predictions(method: Method) -> None:
    """Check that a method may run between machines: what leaves a client are predictions.

    Raises
    ------
    NotApplicableError
        If it exchanges weights or data, or nothing.
    """
    if type(method) not in PREDICTION_SHARING:
        names = ", ".join(kind.name for kind in PREDICTION_SHARING)
        raise NotApplicableError(f"method: {method.name!r}; expected one that exchanges predictions: {names}")


__all__ = [
    "DSFL",
    "FLIS",
    "METHODS",
    "PREDICTION_SHARING",
    "WEIGHT_SHARING",
    "Centralized",
    "Comet",
    "Cosmos",
    "Ditto",
    "FedAvg",
    "FedBABU",
    "FedCT",
    "FedDF",
    "FedMD",
    "FedProx",
    "FedRep",
    "FedSelect",
    "Local",
    "PFedCK",
    "PFedHN",
    "PFedMe",
    "check_exchanges_predictions",
]
