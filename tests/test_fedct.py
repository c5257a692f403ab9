"""FedCT: what the paper's algorithm promises. Comments name the mistake that a test is there to catch."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import ValidationError

import cosmosfl as cf
from conftest import digits_federation, three_kinds
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedct import ConsensusLabels, FedCT, HardLabels, consensus_of
from cosmosfl.protocol import InvalidMessageError, Task

TASK = Task(n_classes=3, seed=0)
PUBLIC = PublicSet(np.arange(8, dtype=np.float32).reshape(4, 2))
X, Y = np.full((5, 2), -1, np.float32), np.array([0, 1, 2, 0, 1])


class Recorder:
    """A learner that writes down what it is fitted on and gives everything the same probabilities."""

    def __init__(self, probabilities=(0.4, 0.3, 0.3)) -> None:
        self.probabilities = np.array(probabilities, np.float32)
        self.fits: list[tuple[np.ndarray, np.ndarray, int]] = []

    def fit(self, inputs, labels, *, n_classes, epochs, rng):
        self.fits.append((inputs, labels, epochs))

    def distill(self, inputs, probabilities, *, epochs, rng):
        raise AssertionError("there are no soft labels in FedCT")

    def predict_proba(self, inputs):
        return np.tile(self.probabilities, (len(inputs), 1))

    def state(self):
        return {}

    def restore(self, state): ...


def client_side(method: FedCT, learner: Recorder | None = None, *, id: str = "a", test=None):
    return method.client_side(cf.Client(id, learner or Recorder(), X, Y, test=test), PUBLIC, TASK)


def server_side(method: FedCT, clients=("a", "b", "c")):
    side = method.server_side(PUBLIC, TASK)
    side.open(clients)
    return side


def classes(*labels: int) -> np.ndarray:
    return np.array(labels, np.uint8)


# --- the vote ---


def test_the_consensus_is_a_vote_of_hard_labels_whatever_the_confidences():
    # Caught: the most probable class of the mean prediction, which is 1 here.
    method = FedCT()
    learners = {"a": Recorder((0.4, 0.3, 0.3)), "b": Recorder((0.4, 0.3, 0.3)), "c": Recorder((0, 1, 0))}
    assert np.mean([learner.probabilities for learner in learners.values()], axis=0).argmax() == 1
    sides = {id: client_side(method, learner, id=id) for id, learner in learners.items()}
    votes = [(id, side.step(ConsensusLabels(0, None))) for id, side in sides.items()]
    assert votes[2][1].labels.tolist() == [1, 1, 1, 1]
    answers = server_side(method).step(votes)
    assert [answers[id].labels.tolist() for id in "abc"] == [[0, 0, 0, 0]] * 3


def test_the_most_votes_win_and_of_equals_the_lowest_class():
    # Caught: an absolute majority, which sample 2 does not have; ties to whoever was counted last.
    votes = np.array([[3, 1, 1], [0, 2, 3], [2, 2, 1], [1, 2, 2]])
    assert consensus_of(votes, 0).tolist() == [0, 2, 0, 1]


def test_with_a_quorum_samples_without_a_winner_are_left_out():
    votes = np.array([[7, 3, 0], [6, 4, 0], [10, 0, 0], [5, 5, 0]])
    assert consensus_of(votes, 0.7).tolist() == [0, 3, 0, 3]
    assert consensus_of(votes, 1).tolist() == [3, 3, 0, 3]
    assert consensus_of(np.array([[2, 1]]), 2 / 3).tolist() == [0]
    assert consensus_of(np.array([[7] + [6] * 3]), 0.28).tolist() == [0]  # 0.28 * 25 is a little above 7


def test_a_class_takes_a_byte_or_two_from_256_on():
    for C, dtype, each in ((3, np.uint8, 1), (255, np.uint8, 1), (256, np.uint16, 2), (1000, np.uint16, 2)):
        learner = Recorder(np.eye(C)[C - 1])
        side = FedCT().client_side(cf.Client("a", learner, X, Y), PUBLIC, Task(C, 0))
        message = side.step(ConsensusLabels(0, None))
        assert message.labels.tolist() == [C - 1] * 4
        assert (message.labels.dtype, message.nbytes) == (dtype, 8 + 4 * each)
        server = FedCT().server_side(PUBLIC, Task(C, 0))
        server.open(["a"])
        answer = server.step([("a", message)])["a"]
        assert (answer.labels.tolist(), answer.nbytes) == ([C - 1] * 4, 8 + 4 * each)
    assert consensus_of(np.array([[1] * 2 + [0] * 253]), 1).tolist() == [255]  # there is room for "none"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (HardLabels(0, classes(0, 1, 2)), r"shape \(3,\); expected \(4,\)"),
        (HardLabels(0, classes(0, 1, 2, 3)), "class 3; expected 0..2"),
        (HardLabels(0, np.array([0, 1, 2, -1])), "dtype int64"),
        (HardLabels(0, np.full(4, 0.3)), "dtype float64"),
        (HardLabels(0, None), "NoneType"),
        (HardLabels(2, classes(0, 0, 0, 0)), "of round 2; expected 0"),
    ],
)
def test_a_bad_client_is_recorded_and_the_others_vote(bad, reason):
    side = server_side(FedCT())
    good = HardLabels(0, classes(0, 1, 1, 2))
    answers = side.step(iter({"a": good, "b": bad, "c": good}.items()))
    assert set(answers) == {"a", "b", "c"}
    assert answers["b"].labels.tolist() == [0, 1, 1, 2]
    (rejection,) = side.rejections
    assert (rejection.round, rejection.client) == (0, "b")
    assert re.search(reason, rejection.reason)
    with pytest.raises(InvalidMessageError, match="none of 1 messages was accepted"):
        side.step([("a", bad)])


# --- training ---


def test_private_and_public_samples_are_trained_on_together_with_hard_labels():
    # Caught: one set after the other; the public set alone; soft labels.
    learner = Recorder()
    side = client_side(FedCT(local_epochs=3), learner)
    side.step(ConsensusLabels(0, None))
    assert side.step(ConsensusLabels(1, classes(2, 1, 0, 2))).round == 1
    (alone, _, _), (inputs, labels, epochs) = learner.fits
    np.testing.assert_array_equal(alone, X)
    np.testing.assert_array_equal(inputs, np.concatenate([X, PUBLIC.inputs]))
    assert labels.tolist() == [*Y.tolist(), 2, 1, 0, 2]
    assert (labels.dtype, epochs) == (np.int64, 3)


def test_samples_without_consensus_are_not_trained_on():
    # Caught: a label for "none" that is trained on as if it were a class.
    learner = Recorder()
    side = client_side(FedCT(quorum=0.7), learner)
    side.step(ConsensusLabels(1, classes(2, 3, 3, 1)))
    inputs, labels, _ = learner.fits[-1]
    np.testing.assert_array_equal(inputs[len(X) :], PUBLIC.inputs[[0, 3]])
    assert labels[len(X) :].tolist() == [2, 1]
    side.step(ConsensusLabels(2, classes(3, 3, 3, 3)))
    assert len(learner.fits[-1][0]) == len(X)


def test_between_two_votes_the_last_consensus_stays_in_use():
    # Caught: a consensus that is used once only, so that other rounds train alone; or that is lost with the process.
    method = FedCT(period=2)
    server, learners = server_side(method, ["a", "b"]), {"a": Recorder(), "b": Recorder((0.3, 0.4, 0.3))}
    downlinks, states, sent = {id: ConsensusLabels(0, None) for id in learners}, {}, []
    for _ in range(5):
        uplinks = []
        for id, learner in learners.items():
            side = client_side(method, learner, id=id)
            if id in states:
                side.restore(states[id])
            uplinks.append((id, side.step(downlinks[id])))
            states[id] = side.state()
        sent.append([message.labels is not None for _, message in uplinks])
        downlinks = server.step(iter(uplinks))
    assert sent == [[False] * 2, [True] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert [len(inputs) for inputs, _, _ in learners["b"].fits] == [5, 5, 9, 9, 9]


def test_the_model_after_joint_training_is_the_one_that_is_measured_and_kept():
    learner = Recorder()
    side = client_side(FedCT(), learner, test=([[0.0, 0.0]], [1]))
    side.step(ConsensusLabels(0, None))
    side.step(ConsensusLabels(1, classes(2, 1, 0, 2)))
    side.finish(ConsensusLabels(2, classes(2, 1, 0, 2)))
    assert len(learner.fits) == 2
    moments = [(m.round, m.moment) for m in side.measurements]
    assert moments == [(round, moment) for round in (0, 1) for moment in ("client_after_fit", "client")]


@pytest.mark.parametrize("bad", [{"quorum": -0.1}, {"quorum": 1.5}, {"period": 0}, {"local_epochs": 0}])
def test_hyper_parameters_are_checked(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        FedCT(**bad)


# --- as a whole ---


def test_clients_with_like_data_gain_on_digits():
    federation = digits_federation(groups=1)
    run = FedCT(local_epochs=20, period=2).fit(federation.clients, federation.public, rounds=3)
    assert run.accuracy("local").mean == pytest.approx(56.76, abs=1.5)
    assert run.accuracy("client").mean == pytest.approx(75.98, abs=1.5)


def test_models_of_any_kind_take_part_and_the_number_of_workers_changes_nothing(public):
    one = FedCT(quorum=0.5).fit(three_kinds(), public, rounds=2)
    two = FedCT(quorum=0.5).fit(three_kinds(), public, rounds=2, workers=2)
    for id in "abc":
        np.testing.assert_array_equal(one.model(id).predict_proba(public), two.model(id).predict_proba(public))
    assert one.measurements == two.measurements
    assert [(t.uplink, t.downlink) for t in one.traffic if t.client == "a"] == [(68, 76), (68, 68), (68, 68)]
