"""FedMD: what the paper's algorithm promises. Comments name the mistake that a test is there to catch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import cosmosfl as cf
from conftest import digits_federation, three_kinds
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.fedmd import FedMD, geometric_mean
from cosmosfl.methods.predictions import PseudoLabels, TeacherLabels
from cosmosfl.protocol import Task

TASK = Task(n_classes=2, seed=0)
PUBLIC = PublicSet(np.arange(40, dtype=np.float32).reshape(20, 2))


class Recorder:
    """A learner that writes down what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, np.ndarray]] = []

    def fit(self, inputs, labels, *, n_classes, epochs, rng):
        self.calls.append((f"fit {epochs}", inputs))

    def distill(self, inputs, probabilities, *, epochs, rng):
        self.calls.append((f"distill {epochs}", inputs))

    def predict_proba(self, inputs):
        self.calls.append(("predict", inputs))
        return np.full((len(inputs), 2), 0.5, np.float32)

    def state(self):
        return {}

    def restore(self, state): ...


def labels(rows: int, p: float) -> np.ndarray:
    return np.tile(np.float32([p, 1 - p]), (rows, 1))


def client_side(method: FedMD, *, test=None):
    learner = Recorder()
    client = cf.Client("a", learner, np.zeros((3, 2)), [0, 1, 1], test=test)
    return learner, method.client_side(client, PUBLIC, TASK)


def part(method: FedMD, round: int) -> np.ndarray:
    return PUBLIC.inputs[method.drawn(PUBLIC, TASK, round)]


def test_every_round_is_about_a_fresh_random_part_of_the_public_set():
    # Caught: the same first samples in every round.
    method = FedMD(subset=5)
    drawn = [tuple(method.drawn(PUBLIC, TASK, round)) for round in range(20)]
    assert len(set(drawn)) > 15
    assert set().union(*drawn) == set(range(20))
    assert all(len(set(indices)) == 5 for indices in drawn)
    assert drawn[0] != tuple(method.drawn(PUBLIC, Task(2, seed=1), 0))


@pytest.mark.parametrize(("subset", "size"), [(7, 7), (5000, 20), (0.25, 5), (1.0, 20), (1, 1), (0.001, 1)])
def test_the_part_is_a_number_of_samples_or_a_fraction(subset, size):
    assert len(FedMD(subset=subset).drawn(PUBLIC, TASK, 0)) == size


def test_what_is_digested_is_the_part_that_the_consensus_is_about_then_comes_the_private_set_then_the_next_part():
    # Caught: the consensus on one part fitted on another; digesting after the revisit, or before any consensus.
    method = FedMD(subset=5)
    learner, side = client_side(method)
    assert side.step(TeacherLabels(0, None)).round == 0
    answer = side.step(TeacherLabels(0, labels(5, 0.9)))
    assert (answer.round, answer.probabilities.shape) == (1, (5, 2))
    assert [name for name, _ in learner.calls] == ["fit 4", "predict", "distill 1", "fit 4", "predict"]
    expected = [side.private.inputs, part(method, 0), part(method, 0), side.private.inputs, part(method, 1)]
    for (_, inputs), wanted in zip(learner.calls, expected, strict=True):
        np.testing.assert_array_equal(inputs, wanted)


def test_the_consensus_is_the_plain_mean_for_everyone():
    # Caught: a mean weighted by the clients' samples; a second softmax over the mean; each client's own excluded.
    method = FedMD(subset=5)
    side = method.server_side(PUBLIC, TASK)
    side.open(["a", "b", "late"])
    downlinks = side.step([("a", PseudoLabels(0, labels(5, 0.9))), ("b", PseudoLabels(0, labels(5, 0.4)))])
    assert set(downlinks) == {"a", "b", "late"}
    np.testing.assert_allclose(downlinks["late"].probabilities, labels(5, 0.65), atol=1e-6)
    assert downlinks["a"].round == 0
    assert side.round == 1


def test_the_geometric_mean_is_the_softmax_of_the_mean_of_logits():
    # Caught: the mean of logarithms that is not brought back to sum to one; sums of logits instead of means.
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (3, 5, 4)))
    mean = geometric_mean(p.numpy().astype(np.float32) for p in logits.softmax(dim=2))
    np.testing.assert_allclose(mean, logits.mean(dim=0).softmax(dim=1), atol=1e-6)
    side = FedMD(subset=5, mean="geometric").server_side(PUBLIC, TASK)
    side.open(["a", "b"])
    answer = side.step([("a", PseudoLabels(0, labels(5, 0.9))), ("b", PseudoLabels(0, labels(5, 0.5)))])["a"]
    np.testing.assert_allclose(answer.probabilities, labels(5, 0.75), atol=1e-6)  # odds 9 and 1, so 3


def test_one_client_that_gives_a_class_no_chance_does_not_decide_alone():
    sure, others = np.float32([[0, 1]]), np.float32([[1 - 1e-6, 1e-6]])
    np.testing.assert_allclose(geometric_mean([sure, others]), [[0.5, 0.5]], atol=1e-3)


def test_a_round_ends_with_the_revisit_and_the_last_consensus_goes_unused():
    # Caught: measuring after the digestion, which is not the model that the paper's round ends with.
    learner, side = client_side(FedMD(subset=5), test=(PUBLIC.inputs, [0, 1] * 10))
    side.step(TeacherLabels(0, None))
    side.step(TeacherLabels(0, labels(5, 0.9)))
    before = len(learner.calls)
    side.finish(TeacherLabels(1, labels(5, 0.9)))
    assert len(learner.calls) == before
    moments = [(m.round, m.moment) for m in side.measurements]
    assert moments == [(round, moment) for round in (0, 1) for moment in ("client_after_fit", "client")]


def test_or_with_a_digestion_if_that_is_to_be_deployed():
    learner, side = client_side(FedMD(subset=5, deploy="digested"), test=(PUBLIC.inputs, [0, 1] * 10))
    side.step(TeacherLabels(0, None))
    side.finish(TeacherLabels(0, labels(5, 0.9)))
    assert [name for name, _ in learner.calls if name != "predict"] == ["fit 4", "distill 1"]
    assert [(m.round, m.moment) for m in side.measurements] == [(0, "client_after_fit"), (0, "client")]


def test_predictions_on_all_of_the_public_set_are_rejected_where_a_part_was_asked_for():
    side = FedMD(subset=5).server_side(PUBLIC, TASK)
    side.open(["a", "b"])
    side.step([("a", PseudoLabels(0, labels(5, 0.9))), ("b", PseudoLabels(0, labels(20, 0.4)))])
    assert [(r.client, "expected (5, 2)" in r.reason) for r in side.rejections] == [("b", True)]


@pytest.mark.parametrize(
    "bad", [{"subset": 0}, {"subset": -3}, {"subset": 1.5}, {"subset": 0.0}, {"subset": True}, {"subset": "all"}]
)
def test_a_part_has_to_be_a_positive_number_or_a_fraction(bad):
    with pytest.raises(ValidationError, match="subset"):
        FedMD(**bad)


def test_other_hyper_parameters_are_checked_too():
    with pytest.raises(ValidationError, match="arithmetic"):
        FedMD(mean="median")
    with pytest.raises(ValidationError, match="distill_epochs"):
        FedMD(distill_epochs=-1)
    with pytest.raises(ValidationError, match="digest_epochs"):
        FedMD(digest_epochs=1)


# --- as a whole ---


def test_clients_with_like_data_gain_on_digits():
    federation = digits_federation(groups=1)
    run = FedMD(local_epochs=10, distill_epochs=5).fit(federation.clients, federation.public, rounds=3)
    assert run.accuracy("local").mean == pytest.approx(56.46, abs=1.5)
    assert run.accuracy("client").mean == pytest.approx(64.84, abs=1.5)


def test_models_of_any_kind_take_part_and_the_number_of_workers_changes_nothing(public):
    one = FedMD(subset=0.5).fit(three_kinds(), public, rounds=2)
    two = FedMD(subset=0.5).fit(three_kinds(), public, rounds=2, workers=2)
    for id in "abc":
        np.testing.assert_array_equal(one.model(id).predict_proba(public), two.model(id).predict_proba(public))
    assert one.measurements == two.measurements
    size = 8 + 30 * 4 * 4
    assert [(t.uplink, t.downlink) for t in one.traffic if t.client == "a"] == [(size, size + 8), *[(size, size)] * 2]
