"""Real federations: a SuperLink with TLS and authenticated SuperNodes, as processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("xgboost")

import cosmosfl as cf
import parties
from cosmosfl.flower import demo
from cosmosfl.flower.loopback import Loopback

pytestmark = pytest.mark.processes
QUICK_SUPERNODE = """
import flwr.common.constant

flwr.common.constant.HEARTBEAT_DEFAULT_INTERVAL = 10  # the least that a SuperLink accepts
from flwr.supernode.cli import flower_supernode

flower_supernode()
"""
"""A SuperNode that is known to be dead 20 s after its last sign of life. Flower's protocol lets a node say how often it
gives one, its command does not, and has it be 60 s: as long as the rest of these tests."""


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("loopback")) as running:
        for name in parties.NAMES:
            running.register(name)
            running.start_node(name, {})
        yield running


def submit(loopback: Loopback, app: Path, directory: Path, clients: int, **more) -> int:
    return loopback.submit(app, {"min-clients": clients, "directory": str(directory), **more})


def write_app(directory: Path) -> Path:
    return demo.write_app(directory, Path(parties.__file__).read_text(), rounds=1, trouble=False)


def events(directory: Path, kind: str) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def activations(loopback: Loopback, node: str) -> int:
    """Return how often a SuperLink has let a node in."""
    log = (loopback.directory / "logs" / "superlink.log").read_text()
    return log.count(f"Activated node_id={loopback.nodes[node]}")


def server_app(loopback: Loopback) -> int:
    """Return the process that runs the server app now."""
    (process,) = (
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if b"flwr-serverapp" in (command := entry.read_bytes()) and f":{loopback.port}".encode() in command
    )
    return process


def wait_for(what, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_the_result_is_that_of_one_process(loopback, tmp_path):
    run = submit(loopback, write_app(tmp_path / "app"), tmp_path / "run", len(parties.NAMES))
    clients = [
        cf.Client(name, parties.learner(name), *parties.data(name, 0), test=parties.data(name, 1))
        for name in parties.NAMES
    ]
    in_process = cf.Cosmos().fit(clients, parties.PUBLIC, rounds=1, n_classes=parties.N_CLASSES)
    expected = json.loads(json.dumps(in_process.summary()))
    assert loopback.wait(run).endswith("completed"), loopback.log_of(f"run-{run}")
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    for moment in ("local", "client_after_fit", "client"):
        assert found["accuracy"][moment] == expected["accuracy"][moment], moment
    for key in ("clusters", "threshold", "bytes", "clients", "rounds", "seed", "rejections"):
        assert found[key] == expected[key], key


def test_a_killed_node_a_killed_server_a_bad_peer_and_a_stranger_do_not_end_a_federation(loopback, tmp_path):
    directory, app = tmp_path / "run", write_app(tmp_path / "app")
    honest, everybody = parties.NAMES[:2], [*parties.NAMES, parties.VICTIM]
    loopback.register(parties.VICTIM)
    loopback.start_node(parties.VICTIM, {}, command=[sys.executable, "-c", QUICK_SUPERNODE])

    # in the middle of round 0 a node is killed: while it works on its message
    submit(loopback, app, directory, len(everybody), trouble=True)
    wait_for((loopback.directory / "states" / parties.VICTIM / parties.STOPPED).exists)
    loopback.stop(parties.VICTIM, sign=signal.SIGKILL)

    # until that is noticed: a node without a key is refused
    loopback.start_node("stranger", {}, key=False)
    wait_for(lambda: not loopback.is_running("stranger"))
    assert "authenticat" in loopback.log_of("stranger").lower()
    loopback.stop("stranger")

    # the others go on; between rounds the server app is killed; the node comes back; a new server app goes on
    wait_for((tmp_path / parties.STOPPED).exists)
    os.kill(server_app(loopback), signal.SIGKILL)
    loopback.start_node(parties.VICTIM, {})
    wait_for(lambda: activations(loopback, parties.VICTIM) == 2)
    run = submit(loopback, app, directory, len(everybody), trouble=True)
    assert loopback.wait(run).endswith("completed"), loopback.log_of(f"run-{run}")

    heard = {(event["client"], event["round"]) for event in events(directory, "traffic")}
    assert heard == {*((name, round) for name in honest for round in range(2)), (parties.LIAR, 0), (parties.VICTIM, 1)}
    reasons = {(e["client"], e["round"]): e["reason"] for e in events(directory, "rejection")}
    assert "Node Unavailable" in reasons.pop((parties.VICTIM, 0))
    assert "NaN or infinity" in reasons.pop((parties.LIAR, 0))
    assert "100,000,128 bytes; expected at most" in reasons.pop((parties.LIAR, 1))
    assert not reasons
    assert json.loads((directory / "summary.json").read_text())["clients"] == len(everybody)
