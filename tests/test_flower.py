"""Federations over Flower's messages, without its processes: a grid that hands each message to the party's app."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from conftest import blobs, make_clients, three_kinds
from cosmosfl.data.sets import PublicSet
from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.events import Traffic
from cosmosfl.experiment import run_experiment
from cosmosfl.flower import FederationError, MethodStrategy, client_app, demo, strategy, wire
from cosmosfl.methods import PREDICTION_SHARING
from cosmosfl.protocol import Rejection

PUBLIC = PublicSet(blobs(24, (0, 1, 2, 3), np.random.default_rng(99))[0])


class Node:
    """A SuperNode: an app and its context. `change` may spoil what it answers; `there` says whether it is connected."""

    def __init__(self, id: int, app, directory: Path, name: str) -> None:
        config = {"name": name, "state-dir": str(directory / name)}
        self.context = Context(run_id=1, node_id=id, node_config=config, state=RecordDict(), run_config={})
        self.app = app
        self.change = lambda message, reply: reply
        self.delay = 0
        self.there = True
        self.received: list[Message] = []
        self.sent: list[Message] = []

    def answer(self, message: Message) -> Message:
        self.received.append(message)
        reply = self.change(message, self.app(message, self.context))
        self.sent.append(reply)
        return reply


class FakeGrid:
    """Hands messages to nodes at once; an answer is there after as many pulls as the node's delay says."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.context.node_id: node for node in nodes}
        self.answers: dict[str, tuple[Message, int]] = {}
        self.pulls = 0
        self.number = 0

    def get_node_ids(self):
        return [id for id, node in self.nodes.items() if node.there]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.number += 1
            message.metadata.__dict__["_message_id"] = id = f"message-{self.number}"
            message.metadata.__dict__["_src_node_id"] = 1
            node = self.nodes[message.metadata.dst_node_id]
            reply = node.answer(copy.deepcopy(message))
            if reply is not None:
                self.answers[id] = (reply, self.pulls + node.delay)
            ids.append(id)
        return ids

    def pull_messages(self, ids):
        self.pulls += 1
        ready = [id for id in ids if id in self.answers and self.answers[id][1] < self.pulls]
        return [self.answers.pop(id)[0] for id in ready]


@pytest.fixture(autouse=True)
def _fast(monkeypatch, request):
    monkeypatch.setattr(strategy, "POLL", 0.001)
    if "engine" not in request.node.name:  # a page takes longer than the rest of such a federation
        monkeypatch.setattr("cosmosfl.report.page.write_report", lambda directory: directory.path / "report.html")
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def app_of(client: cf.Client, *, public=PUBLIC, **options):
    test = None if client.test is None else (client.test.inputs, client.test.labels)
    return client_app(
        learner=client.learner,
        data=(client.private.inputs, client.private.labels),
        public=public,
        test=test,
        **{"share_metrics": True, "share_log_ratios": True, **options},
    )


def nodes_of(clients, directory: Path, **options) -> list[Node]:
    return [Node(100 - n, app_of(c, **options), directory / "nodes", c.id) for n, c in enumerate(clients)]


def federate(nodes, directory: Path, method=None, *, rounds: int = 2, timeout: float = 60, **options) -> MethodStrategy:
    one = MethodStrategy(
        method or cf.Cosmos(local_epochs=1, server_epochs=1, distill_epochs=1),
        PUBLIC,
        n_classes=4,
        directory=directory / "server",
        **{"min_clients": len(nodes), "wait": 1.0, **options},
    )
    one.start(FakeGrid(nodes), num_rounds=rounds, timeout=timeout)
    return one


def summary(directory: Path) -> dict:
    return json.loads((directory / "server" / "summary.json").read_text())


def predictions(directory: Path, node: Node) -> np.ndarray:
    """Return what the model that a party ends with predicts."""
    (run,) = (directory / "nodes").glob(f"{node.context.node_config['name']}/*/*/run")
    loaded = cf.load(run, trusted=True)
    (id,) = loaded.models
    return loaded.model(id).predict_proba(PUBLIC.inputs)


# --- the same as in one process ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in PREDICTION_SHARING), ("cosmos", {"recipe": "paper"})],
    ids=[*PREDICTION_SHARING, "cosmos-paper"],
)
def test_models_and_measurements_are_those_of_the_engine_in_one_process(name, options, tmp_path):
    kind = cf.METHODS[name]
    epochs = {key: 1 for key in kind.model_fields if key.endswith("_epochs")}
    method = kind(**epochs, **options)
    clients = three_kinds()
    nodes = nodes_of(clients, tmp_path)
    federate(nodes, tmp_path, method)
    run = method.fit(clients, PUBLIC, rounds=2, n_classes=4)
    for client, node in zip(clients, nodes, strict=True):
        np.testing.assert_array_equal(predictions(tmp_path, node), run.model(client.id).predict_proba(PUBLIC.inputs))
    over_flower = summary(tmp_path)
    expected = json.loads(json.dumps(run.summary()))
    for moment in ("local", "client_after_fit", "client"):
        assert over_flower["accuracy"][moment] == expected["accuracy"][moment]
    for key in ("method", "seed", "rounds", "clients", "clusters", "threshold", "bytes", "rejections"):
        assert over_flower[key] == expected[key], key
    assert over_flower.keys() == expected.keys()
    assert (tmp_path / "server" / "report.html").is_file()


def test_the_demonstration_is_the_experiment_of_the_same_configuration(tmp_path):
    nodes = []
    for index, client in enumerate(demo.federation(3).clients):
        nodes.append(Node(100 - index, demo.client, tmp_path / "nodes", client.id))
        nodes[-1].context.node_config |= {"clients": "3", "index": str(index)}
    directory = tmp_path / "server"
    options = {"clients": 3, "rounds": 1, "min-clients": 3, "directory": str(directory)}
    demo.server(FakeGrid(nodes), Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=options))
    expected = run_experiment(demo.config(3).model_copy(update={"rounds": 1, "workers": 1})).summary()
    for moment in ("local", "client_after_fit", "client"):
        assert summary(tmp_path)["accuracy"][moment] == json.loads(json.dumps(expected["accuracy"][moment]))
    assert summary(tmp_path)["clusters"] == json.loads(json.dumps(expected["clusters"]))


# --- what leaves a client ---------------------------------------------------------------------------------------------


def test_only_predictions_counts_and_what_is_agreed_on_leave_a_client(tmp_path):
    """Catches weights, inputs, labels or anything new on the wire: every record and every value is accounted for."""
    nodes = nodes_of(three_kinds(), tmp_path, share_metrics=False, share_log_ratios=False)
    federate(nodes, tmp_path)
    for node in nodes:
        hello, *steps, last = node.sent
        assert dict(hello.content) == {
            "about": {"protocol": 1, "federation": IsHex(), "name": node.context.node_config["name"]}
        }
        assert dict(last.content) == {"about": {"protocol": 1, "federation": IsHex(), "round": 3, "kind": "last"}}
        assert len(steps) == 3
        for round, reply in enumerate(steps):
            assert sorted(reply.content) == ["about", "arrays", "numbers"]
            assert dict(reply.content["about"]) == {
                "protocol": 1,
                "federation": IsHex(),
                "round": round,
                "kind": "step",
            }
            assert dict(reply.content["numbers"]) == {"round": round}
            assert list(reply.content["arrays"]) == ["probabilities"]
            array = reply.content["arrays"]["probabilities"].numpy()
            assert array.shape == (24, 4)
            np.testing.assert_allclose(array.sum(axis=1), 1, atol=1e-5)


def test_accuracies_leave_a_client_only_if_its_owner_allows_it(tmp_path):
    a, b = make_clients(2)
    nodes = [
        Node(1, app_of(a, share_metrics=True), tmp_path / "nodes", "a"),
        Node(2, app_of(b, share_metrics=False), tmp_path / "nodes", "b"),
    ]
    one = federate(nodes, tmp_path)
    assert {m.client for m in one.session.history if isinstance(m, Measurement)} == {"a"}
    (own,) = (tmp_path / "nodes" / "b").glob("*/*/run")
    assert {m.client for m in cf.load(own).measurements} == {"b"}  # the party itself knows


class IsHex:
    def __eq__(self, other) -> bool:
        return isinstance(other, str) and re.fullmatch("[0-9a-f]{32}", other) is not None

    __hash__ = None


# --- bad peers --------------------------------------------------------------------------------------------------------


def spoiled(**arrays):
    """Return a change that puts other arrays into the answers of round 1."""

    def change(message: Message, reply: Message) -> Message:
        if reply.content["about"].get("round") == 1 and "arrays" in reply.content:
            for name, array in arrays.items():
                reply.content["arrays"][name] = array
        return reply

    return change


def lying(shape: str) -> Array:
    """Return an array whose header promises more than there is."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 16
    return Array("float32", (2, 2), "numpy.ndarray", data)


def objects() -> Array:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return Array("object", (1,), "numpy.ndarray", buffer.getvalue())


BAD = {
    "NaN": (spoiled(probabilities=Array(np.full((24, 4), np.nan, np.float32))), "NaN or infinity"),
    "wrong shape": (spoiled(probabilities=Array(np.full((23, 4), 0.25, np.float32))), r"shape \(23, 4\)"),
    "not probabilities": (spoiled(probabilities=Array(np.ones((24, 4), np.float32))), "sum to one"),
    "another array": (spoiled(weights=Array(np.ones(3, np.float32))), "weights; a CosmosLabels holds"),
    "100 MB": (
        spoiled(probabilities=Array(np.zeros((25_000_000,), np.float32))),
        r"100,000,\d{3} bytes; expected at most",
    ),
    "no array": (spoiled(probabilities=Array("float32", (2,), "numpy.ndarray", b"noise")), "no array of numpy"),
    "a header that lies": (spoiled(probabilities=lying("(1000000000000, 4)")), "16 bytes; expected 16,000"),
    "pickled objects": (spoiled(probabilities=objects()), "dtype object"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_answer_is_rejected_with_a_reason_that_its_sender_sees_and_the_rest_go_on(what, tmp_path):
    change, reason = BAD[what]
    nodes = nodes_of(make_clients(3), tmp_path)
    nodes[2].change = change
    one = federate(nodes, tmp_path)
    (rejection,) = [event for event in one.session.history if isinstance(event, Rejection)]
    assert (rejection.round, rejection.client) == (1, "c")
    assert re.search(reason, rejection.reason)
    told = [m.content["about"]["rejected"] for m in nodes[2].received if m.metadata.message_type == "train"]
    assert told == ["", "", rejection.reason, ""]
    assert summary(tmp_path)["rejections"] == 1
    assert len(predictions(tmp_path, nodes[2])) == 24  # it went on and has its model


def test_a_party_that_fails_is_recorded_without_what_its_error_says(tmp_path):
    class Broken(cf.SklearnLearner):
        def fit(self, inputs, labels, **options):
            raise RuntimeError(f"patient {inputs[0]}")

    clients = make_clients(3)
    clients[1] = clients[1].with_learner(Broken(LogisticRegression()))
    one = federate(nodes_of(clients, tmp_path), tmp_path, rounds=1)
    reasons = [e.reason for e in one.session.history if isinstance(e, Rejection)]
    assert len(reasons) == 2
    assert set(reasons) == {"client 'b': RuntimeError at the party; the log of its SuperNode has the rest"}


def test_an_error_of_flower_is_recorded(tmp_path):
    nodes = nodes_of(make_clients(3), tmp_path)
    nodes[0].change = lambda message, reply: (
        Message(Error(5, "Node Unavailable"), reply_to=message) if message.metadata.group_id == "1" else reply
    )
    one = federate(nodes, tmp_path)
    assert [e.reason for e in one.session.history if isinstance(e, Rejection)] == ["client 'a': Node Unavailable"]


def test_a_party_with_another_public_set_refuses_and_both_sides_say_why(tmp_path, caplog):
    clients = make_clients(3)
    nodes = nodes_of(clients, tmp_path)
    nodes[2] = Node(98, app_of(clients[2], public=PUBLIC.inputs + 1), tmp_path / "nodes", "c")
    one = federate(nodes, tmp_path, min_clients=2)
    assert sorted(one.session.clients.values()) == ["a", "b"]
    (rejection,) = [e for e in one.session.history if isinstance(e, Rejection)]
    assert "node 98: another public set: the server's has SHA-256" in rejection.reason
    assert "This party cannot take part: another public set" in caplog.text
    assert [m.metadata.message_type for m in nodes[2].received] == ["query.hello"]  # nothing was trained


def test_a_party_sends_log_ratios_only_if_its_owner_allows_it(tmp_path):
    """Catches what tells more than predictions sent unasked, and a party left out since it does not send it."""
    clients = make_clients(3)
    nodes = nodes_of(clients, tmp_path)
    nodes[2] = Node(98, app_of(clients[2], share_log_ratios=False), tmp_path / "nodes", "c")
    one = federate(nodes, tmp_path, cf.Cosmos(local_epochs=1), rounds=1, min_clients=3)
    assert not [e for e in one.session.history if isinstance(e, Rejection)]
    m = len(PUBLIC)
    sizes = {(t.client, t.uplink) for t in one.session.history if isinstance(t, Traffic)}
    assert sizes == {("a", 8 + 4 * m * 5), ("b", 8 + 4 * m * 5), ("c", 8 + 4 * m * 4)}  # of 4 classes


def test_labels_beyond_the_agreed_classes_are_refused_before_training(tmp_path):
    nodes = nodes_of(make_clients(3), tmp_path)
    one = MethodStrategy(cf.Cosmos(), PUBLIC, n_classes=3, directory=tmp_path / "server", min_clients=3, wait=0)
    with pytest.raises(FederationError, match="2 clients after 0 s; expected 3"):  # a and c have classes 0 and 1
        one.start(FakeGrid(nodes))
    assert "label 3; expected 0..2" in one.session.history[0].reason


def test_a_name_belongs_to_the_node_that_came_with_it(tmp_path):
    nodes = nodes_of(make_clients(3), tmp_path)
    nodes[2].context.node_config["name"] = "a"
    nodes[2].context.node_config["state-dir"] = str(tmp_path / "nodes" / "other")
    one = federate(nodes, tmp_path, min_clients=2)
    (rejection,) = [e for e in one.session.history if isinstance(e, Rejection)]
    assert rejection.reason == "node 98: the name 'a' is that of node 100; expected another"
    assert one.session.clients == {100: "a", 99: "b"}


@pytest.mark.parametrize("name", sorted(set(cf.METHODS) - set(PREDICTION_SHARING)))
def test_a_party_refuses_a_server_that_asks_for_weights_or_data(name, tmp_path):
    """Catches a server that has `centralized` run, whose clients send their private sets."""
    (node,) = nodes_of(make_clients(1), tmp_path)
    terms = {"federation": "0" * 32, "method": name, "parameters": "{}", "n_classes": 4, "seed": 0, "rounds": 1}
    terms |= {"public": PUBLIC.digest, "round": 0, "kind": "step", "client": "a"}
    for kind in ("query.hello", "train"):
        message = Message(wire.encode(None, terms), node.context.node_id, kind)
        reply = node.answer(message)
        assert list(reply.content) == ["about"]
        assert "expected one that exchanges predictions" in reply.content["about"]["refusal"]


@pytest.mark.parametrize(
    "claim",
    [{"oracle": [0.0, 99.0, 99.0, 5.0]}, {"client": [9.0, 99.0, 99.0, 5.0]}, {"client": [0.0, 101.0, 101.0, 5.0]}],
)
def test_accuracies_that_a_client_cannot_have_measured_are_rejected(claim, tmp_path):
    nodes = nodes_of(make_clients(3), tmp_path)

    def change(message: Message, reply: Message) -> Message:
        if reply.content["about"].get("round") == 1:
            reply.content["metrics"] = MetricRecord(claim)
        return reply

    nodes[0].change = change
    one = federate(nodes, tmp_path)
    (rejection,) = [e for e in one.session.history if isinstance(e, Rejection)]
    assert (rejection.client, rejection.round) == ("a", 1)
    assert "metrics" in rejection.reason


# --- coming and going -------------------------------------------------------------------------------------------------


def test_a_late_answer_is_recognised_and_dropped(tmp_path):
    nodes = nodes_of(make_clients(3), tmp_path)

    def change(message: Message, reply: Message) -> Message:
        nodes[1].delay = 10_000 if reply.content["about"].get("round") == 1 else 0
        return reply

    nodes[1].change = change
    grid = FakeGrid(nodes)
    one = MethodStrategy(
        cf.Cosmos(local_epochs=1, server_epochs=1, distill_epochs=1), PUBLIC, n_classes=4, directory=tmp_path / "server"
    )
    original = grid.push_messages

    def push(messages):
        if messages[0].metadata.group_id == "2":  # by now, the answer to the round before is there
            grid.answers |= {id: (reply, 0) for id, (reply, _) in grid.answers.items()}
        return original(messages)

    grid.push_messages = push
    one.start(grid, num_rounds=2, timeout=0.5)
    (rejection,) = [e for e in one.session.history if isinstance(e, Rejection)]
    assert (rejection.round, rejection.client) == (2, "b")
    assert "an answer to round 1 came too late; dropped" in rejection.reason
    assert {t.client for t in one.session.history if isinstance(t, Traffic) and t.round == 1} == {"a", "c"}


def test_who_joins_late_gets_into_the_nearest_cluster_and_who_leaves_does_not_stop_the_round(tmp_path):
    nodes = nodes_of(make_clients(4, samples=30), tmp_path)  # a and c hold the same classes, b and d do
    nodes[3].there = False

    def change(message: Message, reply: Message) -> Message:
        if reply.content["about"].get("round") == 0:
            nodes[3].there = True  # d comes during the first round
        if reply.content["about"].get("round") == 1:
            nodes[2].there = False  # c goes after the second one
        return reply

    nodes[0].change = change
    one = federate(nodes, tmp_path, min_clients=3, rounds=3)
    assert sorted(map(sorted, one.session.server.clustering.clusters)) == [["a", "c"], ["b", "d"]]
    exchanges = {(t.client, t.round) for t in one.session.history if isinstance(t, Traffic)}
    assert {round for client, round in exchanges if client == "c"} == {0, 1}
    assert {round for client, round in exchanges if client == "d"} == {1, 2, 3}
    message = [m for m in nodes[3].received if m.metadata.message_type == "train"][1]
    assert "probabilities" in message.content["arrays"]  # teacher labels, from its second message on
    assert predictions(tmp_path, nodes[3]).argmax(axis=1).min() >= 0


@pytest.mark.parametrize(
    ("what", "message"), [("NaN", "none of 3 messages was accepted"), ("no array", "0 of 3 clients gave an answer")]
)
def test_too_few_answers_stop_the_server_and_a_new_start_repeats_the_round(what, message, tmp_path):
    clients = make_clients(3)
    nodes = nodes_of(clients, tmp_path)
    for node in nodes:
        node.change = BAD[what][0]
    with pytest.raises(FederationError, match=f"{message}.*start the server app again with the same directory"):
        federate(nodes, tmp_path)
    for node in nodes:
        node.change = lambda message, reply: reply
    one = federate(nodes, tmp_path)
    assert one.session.resumed
    check_same_as_uninterrupted(clients, nodes, tmp_path)


@pytest.mark.parametrize("moment", ["configure_train", "aggregate_train"])
@pytest.mark.parametrize("round", [0, 1, 2])
def test_a_server_that_is_killed_goes_on_where_it_was(moment, round, tmp_path, monkeypatch):
    """Before it sends a round's messages, and after all answers are there: results as if nothing had happened."""

    class Killed(BaseException):
        pass

    original = getattr(MethodStrategy, moment)

    def killed(self, server_round, *rest):
        if server_round == round:
            raise Killed
        return original(self, server_round, *rest)

    clients = three_kinds()
    nodes = nodes_of(clients, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MethodStrategy, moment, killed)
        with pytest.raises(Killed):
            federate(nodes, tmp_path)
    one = federate(nodes, tmp_path)
    assert one.session.resumed
    check_same_as_uninterrupted(clients, nodes, tmp_path)


def check_same_as_uninterrupted(clients, nodes, tmp_path):
    run = cf.Cosmos(local_epochs=1, server_epochs=1, distill_epochs=1).fit(clients, PUBLIC, rounds=2, n_classes=4)
    for client, node in zip(clients, nodes, strict=True):
        np.testing.assert_array_equal(predictions(tmp_path, node), run.model(client.id).predict_proba(PUBLIC.inputs))
    assert summary(tmp_path)["accuracy"]["client"] == json.loads(json.dumps(run.summary()))["accuracy"]["client"]
    assert summary(tmp_path)["bytes"] == run.summary()["bytes"]


def test_a_directory_is_taken_up_only_by_the_same_federation(tmp_path):
    nodes = nodes_of(make_clients(3), tmp_path)
    for node in nodes:
        node.change = spoiled(probabilities=Array("float32", (2,), "numpy.ndarray", b"noise"))
    with pytest.raises(FederationError):
        federate(nodes, tmp_path)
    with pytest.raises(ValueError, match="another rounds, seed"):
        federate(nodes, tmp_path, rounds=3, seed=1)
    for node in nodes:
        node.change = lambda message, reply: reply
    federate(nodes, tmp_path)
    with pytest.raises(ValueError, match="finished"):
        federate(nodes, tmp_path)


# --- what it is given -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": cf.METHODS["fedavg"]()},
            "method: 'fedavg'; expected one that exchanges predictions: cosmos, fedmd",
        ),
        ({"n_classes": 1}, "n_classes: 1"),
        ({"quorum": 0.0}, "quorum: 0.0"),
        ({"min_clients": 0}, "min_clients: 0"),
    ],
)
def test_what_a_strategy_cannot_do_is_said_at_once(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        MethodStrategy(**{"method": cf.Cosmos(), "public": PUBLIC, "n_classes": 4, "directory": tmp_path, **options})


def test_a_node_without_a_state_directory_says_how_to_give_it_one(tmp_path):
    (node,) = nodes_of(make_clients(1), tmp_path)
    del node.context.node_config["state-dir"]
    one = MethodStrategy(cf.Cosmos(), PUBLIC, n_classes=4, directory=tmp_path / "server", min_clients=1, wait=0)
    with pytest.raises(FederationError):
        one.start(FakeGrid([node]))
    assert "--node-config" in one.session.history[0].reason
