"""The federation of ``cosmosfl federation try``: digits that ship with scikit-learn, dealt out to a few clients.

Every node makes the same split and takes its own part. (Real parties have their own data and make nothing of others';
see ``examples/flower``.)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Context

from cosmosfl.config import ExperimentConfig
from cosmosfl.experiment import Federation, build_federation
from cosmosfl.flower.client import client_app
from cosmosfl.flower.loopback import Loopback
from cosmosfl.flower.server import server_app
from cosmosfl.flower.session import FederationError
from cosmosfl.protocol import Client

MODELS = ("mlp", "random-forest", "logistic-regression")
N_CLASSES = 10
MODULE = """from cosmosfl.flower import demo

client = demo.client
server = demo.server
"""


def config(clients: int) -> ExperimentConfig:
    """Return the configuration of ``cosmosfl run`` with so many clients and three kinds of models."""
    return ExperimentConfig.parse({"partition": {"clients": clients}, "clients": {"models": list(MODELS)}})


@lru_cache(maxsize=1)
def federation(clients: int) -> Federation:
    """Return the clients, with their data and models, and the public set."""
    return build_federation(config(clients))


def _client(context: Context) -> Client:
    return federation(int(context.node_config["clients"])).clients[int(context.node_config["index"])]


def _labelled(context: Context, part: str) -> tuple[Any, Any]:
    found = getattr(_client(context), part)
    return found.inputs, found.labels


client = client_app(
    learner=lambda context: _client(context).learner,
    data=lambda context: _labelled(context, "private"),
    test=lambda context: _labelled(context, "test"),
    public=lambda context: federation(int(context.node_config["clients"])).public,
    share_metrics=True,
    share_log_ratios=True,
)
server = server_app(
    public=lambda context: federation(int(context.run_config["clients"])).public,
    n_classes=N_CLASSES,
    method=lambda context: config(int(context.run_config["clients"])).method,
)


def write_app(directory: Path, module: str = MODULE, **config: str | int | float) -> Path:
    """Write a Flower app and return its directory.

    Parameters
    ----------
    module
        Source of a module with its two parts, ``client`` and ``server``: by default, those above.
    **config
        What its run configuration may hold beside what a server takes, and the defaults.
    """
    directory.mkdir(parents=True)
    (directory / "tryout.py").write_text(module, encoding="utf-8")
    settings = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {"name": "tryout", "version": "1.0.0", "description": "A first look", "license": "Apache-2.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "cosmosfl",
                    "components": {"serverapp": "tryout:server", "clientapp": "tryout:client"},
                    "config": {"rounds": 2, "min-clients": 2, "quorum": 0.5, "directory": "", **config},
                }
            }
        },
    }
    (directory / "pyproject.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    return directory


def run(loopback: Loopback, clients: int, rounds: int, directory: Path) -> None:
    """Register and start the nodes, run the federation, and write the run to a directory.

    Raises
    ------
    FederationError
        If it does not come to its end.
    """
    names = [client.id for client in federation(clients).clients]
    for index, name in enumerate(names):
        loopback.register(name)
        loopback.start_node(name, {"clients": str(clients), "index": str(index)})
    app = write_app(loopback.directory / "app", clients=clients)
    submitted = loopback.submit(
        app,
        {"rounds": rounds, "min-clients": clients, "directory": str(directory.resolve())},
    )
    status = loopback.wait(submitted, timeout=3600)
    if not status.endswith("completed"):
        raise FederationError(f"the run is {status!r}; {loopback.log_of('superlink')}")
