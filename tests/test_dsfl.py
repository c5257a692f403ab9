"""DS-FL: what the paper's algorithm promises. Comments name the mistake that a test is there to catch."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

import cosmosfl as cf
from conftest import digits_federation, three_kinds
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.dsfl import DSFL, sharpened
from cosmosfl.methods.predictions import PseudoLabels, TeacherLabels
from cosmosfl.protocol import Task

TASK = Task(n_classes=2, seed=0)
PUBLIC = PublicSet(np.arange(40, dtype=np.float32).reshape(20, 2))


def entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)


def labels(rows: int, p: float) -> np.ndarray:
    return np.tile(np.float32([p, 1 - p]), (rows, 1))


def test_the_labels_have_less_entropy_than_the_mean_of_clients_that_disagree():
    # Caught: softmax(mean) without T, or with T the other way round; both make it flatter.
    rng = np.random.default_rng(0)
    votes = np.where(rng.random((5, 50)) < 0.6, rng.integers(10, size=50), rng.integers(10, size=(5, 50)))
    mean = (0.7 * np.eye(10)[votes] + 0.03).mean(axis=0).astype(np.float32)
    mean = mean[mean.max(axis=1) > 0.4]  # most of them have a first class
    assert 30 < len(mean) < 50
    assert (entropy(sharpened(mean, 0.1)) < entropy(mean)).all()
    assert (sharpened(mean, 0.1).argmax(axis=1) == mean.argmax(axis=1)).all()


def test_the_labels_are_the_softmax_of_the_mean_over_the_temperature():
    # Caught: mean ** (1 / T), which is 1 and 0 here; each client sharpened before the mean, which is 0.51 and 0.49.
    side = DSFL(subset=5).server_side(PUBLIC, TASK)
    side.open(["a", "b", "late"])
    downlinks = side.step([("a", PseudoLabels(0, labels(5, 0.9))), ("b", PseudoLabels(0, labels(5, 0.3)))])
    assert set(downlinks) == {"a", "b", "late"}
    expected = 1 / (1 + np.exp(-(0.6 - 0.4) / 0.1))
    np.testing.assert_allclose(downlinks["late"].probabilities, labels(5, expected), atol=1e-6)


def test_with_a_hundred_classes_the_papers_temperature_flattens_a_mean_that_is_not_sure():
    mean = np.full((1, 100), 0.6 / 99, np.float32)
    mean[0, 3] = 0.4
    assert entropy(sharpened(mean, 0.1)) > entropy(mean)
    assert entropy(sharpened(mean, 0.01)) < entropy(mean)


def test_a_round_is_train_predict_aggregate_distil_on_a_fresh_part():
    # Caught: a model that is measured, or ends, before it has learned from the labels.
    calls = []

    class Recorder:
        def fit(self, inputs, labels, *, n_classes, epochs, rng):
            calls.append(f"fit {epochs}")

        def distill(self, inputs, probabilities, *, epochs, rng):
            calls.append(f"distill {epochs} {inputs[:, 0].tolist()}")

        def predict_proba(self, inputs):
            calls.append(f"predict {inputs[:, 0].tolist()}")
            return np.full((len(inputs), 2), 0.5, np.float32)

        def state(self):
            return {}

        def restore(self, state): ...

    method = DSFL(subset=5, local_epochs=3, distill_epochs=2)
    client = cf.Client("a", Recorder(), np.zeros((3, 2)), [0, 1, 1], test=([[7.0, 7.0]], [1]))
    side = method.client_side(client, PUBLIC, TASK)
    side.step(TeacherLabels(0, None))
    side.step(TeacherLabels(0, labels(5, 0.9)))
    side.finish(TeacherLabels(1, labels(5, 0.9)))
    part = [PUBLIC.inputs[method.drawn(PUBLIC, TASK, round), 0].tolist() for round in (0, 1)]
    assert part[0] != part[1]
    test = "predict [7.0]"
    assert calls == [
        "fit 3", test, f"predict {part[0]}", f"distill 2 {part[0]}", test,
        "fit 3", test, f"predict {part[1]}", f"distill 2 {part[1]}", test,
    ]  # fmt: skip
    moments = [(m.round, m.moment) for m in side.measurements]
    assert moments == [(round, moment) for round in (0, 1) for moment in ("client_after_fit", "client")]


@pytest.mark.parametrize("temperature", [0, -0.1, float("inf"), float("nan")])
def test_the_temperature_has_to_be_positive(temperature):
    with pytest.raises(ValidationError, match="temperature"):
        DSFL(temperature=temperature)


# --- as a whole ---


def test_clients_with_like_data_gain_on_digits():
    federation = digits_federation(groups=1)
    run = DSFL(local_epochs=10).fit(federation.clients, federation.public, rounds=3)
    assert run.accuracy("local").mean == pytest.approx(56.46, abs=1.5)
    assert run.accuracy("client").mean == pytest.approx(85.11, abs=1.5)


def test_models_of_any_kind_take_part_and_the_number_of_workers_changes_nothing(public):
    one = DSFL(subset=30).fit(three_kinds(), public, rounds=2)
    two = DSFL(subset=30).fit(three_kinds(), public, rounds=2, workers=2)
    for id in "abc":
        np.testing.assert_array_equal(one.model(id).predict_proba(public), two.model(id).predict_proba(public))
    assert one.measurements == two.measurements
    size = 8 + 30 * 4 * 4
    assert [(t.uplink, t.downlink) for t in one.traffic if t.client == "a"] == [(size, size + 8), *[(size, size)] * 2]
