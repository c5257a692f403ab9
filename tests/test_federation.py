"""Real federations: a SuperLink with TLS and authenticated SuperNodes, as processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from cosmosfl.experiment import run_experiment
from cosmosfl.flower import demo
from cosmosfl.flower.loopback import Loopback

pytestmark = pytest.mark.processes
CLIENTS = 3
NAMES = [f"client-{n}" for n in range(CLIENTS)]
MISCHIEF = """
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp

from cosmosfl.flower import demo

server = demo.server
client = ClientApp()


def spoiled(message, reply):
    round = reply.content["about"].get("round")
    bad = {
        0: np.full((len(demo.federation(3).public), 10), np.nan, np.float32),
        1: np.random.default_rng(0).random(25_000_000).astype(np.float32),
    }
    if round in bad and "arrays" in reply.content:
        reply.content["arrays"] = ArrayRecord({"probabilities": Array(bad[round])})
    return reply


def answer(message, context):
    reply = demo.client(message, context)
    return spoiled(message, reply) if context.node_config["name"] == "mallory" else reply


client.query("hello")(answer)
client.train()(answer)
"""


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("loopback")) as running:
        for index, name in enumerate(NAMES):
            running.register(name)
            start(running, name, index)
        yield running


def start(loopback: Loopback, name: str, index: int, *, key: bool = True) -> None:
    loopback.start_node(name, {"clients": str(CLIENTS), "index": str(index)}, key=key)


def options(directory: Path, **more) -> dict:
    return {"clients": CLIENTS, "rounds": 1, "min-clients": CLIENTS, "directory": str(directory), **more}


def events(directory: Path, kind: str) -> list[dict]:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def server_app(loopback: Loopback) -> int:
    """Return the process that runs the server app now."""
    (process,) = (
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if b"flwr-serverapp" in (command := entry.read_bytes()) and f":{loopback.port}".encode() in command
    )
    return process


def wait_for(what, timeout: float = 240) -> None:
    end = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_the_result_is_that_of_one_process_and_a_stranger_is_refused(loopback, tmp_path):
    loopback.start_node("stranger", {"clients": str(CLIENTS), "index": "0"}, key=False)
    run = loopback.submit(demo.write_app(tmp_path / "app"), options(tmp_path / "run"))
    wait_for(lambda: not loopback.is_running("stranger"))
    assert "authenticat" in loopback.log_of("stranger").lower()
    loopback.stop("stranger")
    assert loopback.wait(run).endswith("completed"), loopback.log_of("superlink")

    config = demo.config(CLIENTS).model_copy(update={"rounds": 1})
    expected = json.loads(json.dumps(run_experiment(config).summary()))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    for moment in ("local", "client_after_fit", "client"):
        assert found["accuracy"][moment] == expected["accuracy"][moment], moment
    for key in ("clusters", "threshold", "bytes", "clients", "rounds", "seed", "rejections"):
        assert found[key] == expected[key], key


@pytest.mark.skipif(
    "COSMOSFL_CHAOS" not in os.environ, reason="takes 150 s, most of it Flower's heartbeats; set COSMOSFL_CHAOS=1"
)
def test_a_killed_node_a_killed_server_and_a_bad_peer_do_not_end_a_federation(loopback, tmp_path):
    directory = tmp_path / "run"
    app = demo.write_app(tmp_path / "app")
    (app / "tryout.py").write_text(MISCHIEF)
    loopback.register("mallory")
    start(loopback, "mallory", 0)
    states = loopback.directory / "states" / NAMES[2]
    before = set(states.glob("*/*"))

    # in the middle of round 0 a node is killed: while it works on its message
    first = loopback.submit(app, options(directory, **{"min-clients": CLIENTS + 1, "quorum": 0.4}))
    wait_for(lambda: set(states.glob("*/*")) - before)
    loopback.stop(NAMES[2], signal.SIGKILL)
    wait_for(lambda: events(directory, "traffic"))

    # between rounds the server app is killed; the node comes back; a new server app goes on
    os.kill(server_app(loopback), signal.SIGKILL)
    start(loopback, NAMES[2], 2)
    second = loopback.submit(app, options(directory, **{"min-clients": CLIENTS + 1, "quorum": 0.4}))
    assert first != second
    assert loopback.wait(second).endswith("completed"), loopback.log_of("superlink")

    took_part = {(event["client"], event["round"]) for event in events(directory, "traffic")}
    assert {(name, round) for name in NAMES[:2] for round in range(2)} <= took_part
    assert (NAMES[2], 0) not in took_part
    assert (NAMES[2], 1) in took_part
    reasons = {(e["client"], e["round"]): e["reason"] for e in events(directory, "rejection")}
    assert "Node Unavailable" in reasons[NAMES[2], 0]
    assert "NaN or infinity" in reasons["mallory", 0]
    assert "100,000,128 bytes; expected at most" in reasons["mallory", 1]
    assert json.loads((directory / "summary.json").read_text())["clients"] == CLIENTS + 1
