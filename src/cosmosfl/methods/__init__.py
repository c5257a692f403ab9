"""Federated methods by name, one module each, which is imported when it is first used: most of them need torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cosmosfl.lazy import Registry, exported
from cosmosfl.protocol import Method, NotApplicableError

_CLASSES = {  # name, which is that of the module too -> class
    "cosmos": "Cosmos",
    "local": "Local",
    "centralized": "Centralized",
    "fedmd": "FedMD",
    "comet": "Comet",
    "fedct": "FedCT",
    "dsfl": "DSFL",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "feddf": "FedDF",
    "flis": "FLIS",
    "ditto": "Ditto",
    "fedbabu": "FedBABU",
    "fedrep": "FedRep",
    "pfedme": "PFedMe",
    "pfedhn": "PFedHN",
    "fedselect": "FedSelect",
    "pfedck": "PFedCK",
}
METHODS: Registry[type[Method]] = Registry(
    {name: (f"{__name__}.{name}", class_name) for name, class_name in _CLASSES.items()}
)
"""Method name -> its class: ours, the two references, those that exchange predictions, those that exchange weights."""
PREDICTION_SHARING = ("cosmos", "fedmd", "comet", "fedct", "dsfl")
"""Those that exchange predictions: they take models of any kind, and run between machines (`cosmosfl.flower`)."""
WEIGHT_SHARING = (
    *("fedavg", "fedprox", "feddf", "flis"),
    *("ditto", "fedbabu", "fedrep", "pfedme", "pfedhn", "fedselect", "pfedck"),  # with models of the clients' own
)
"""Those that exchange weights: they need one architecture at every client (FedDF: torch models)."""


def check_exchanges_predictions(method: Method) -> None:
    """Check that a method may run between machines: what leaves a client are predictions.

    Raises
    ------
    NotApplicableError
        If it exchanges weights or data, or nothing.
    """
    if method.name not in PREDICTION_SHARING or type(method) is not METHODS[method.name]:
        names = ", ".join(PREDICTION_SHARING)
        raise NotApplicableError(f"method: {method.name!r}; expected one that exchanges predictions: {names}")


if TYPE_CHECKING:
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
else:
    __getattr__, __dir__ = exported(
        __name__, {class_name: f"{__name__}.{name}" for name, class_name in _CLASSES.items()}
    )

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
