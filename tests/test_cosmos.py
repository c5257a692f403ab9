"""COSMOS: what the paper's algorithm promises."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from conftest import make_clients
from cosmosfl.data.sets import PublicSet
from cosmosfl.events import Traffic
from cosmosfl.methods.predictions import PredictionClient, PseudoLabels, TeacherLabels
from cosmosfl.protocol import InvalidMessageError, Task

TASK = Task(n_classes=2, seed=0)
PUBLIC = PublicSet(np.arange(12, dtype=np.float32).reshape(6, 2))


class Recorder:
    """A learner that writes down what it is given and answers with what it was told last."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.targets: list[np.ndarray] = []

    def fit(self, inputs, labels, *, n_classes, epochs, rng):
        self.calls.append(f"fit {epochs}")

    def distill(self, inputs, probabilities, *, epochs, rng):
        self.calls.append(f"distill {epochs}")
        self.targets.append(probabilities)

    def predict_proba(self, inputs):
        self.calls.append("predict")
        return self.targets[-1] if self.targets else np.full((len(inputs), 2), 0.5, np.float32)

    def state(self):
        return {}

    def restore(self, state): ...


def labels(p: float) -> np.ndarray:
    return np.tile(np.float32([p, 1 - p]), (6, 1))


def server(**options):
    method = cf.Cosmos(teacher=Recorder(), **({"threshold": 0.5, "distance": "l2"} | options))
    return method.server_side(PUBLIC, TASK)


def answers(values: dict[str, float], round: int = 0) -> list[tuple[str, PseudoLabels]]:
    return [(id, PseudoLabels(round, labels(p))) for id, p in values.items()]


GROUPS = {"a": 0.9, "b": 0.1, "c": 0.7, "d": 0.3}


def test_the_cluster_model_learns_the_mean_of_its_members_and_answers_them_only():
    side = server()
    downlinks = side.step(answers(GROUPS))
    assert side.clustering.clusters == (("a", "c"), ("b", "d"))
    np.testing.assert_allclose(side.cluster_models[0].targets[0], labels(0.8), rtol=1e-3)
    np.testing.assert_allclose(downlinks["c"].probabilities, labels(0.8), rtol=1e-3)
    np.testing.assert_allclose(downlinks["b"].probabilities, labels(0.2), rtol=1e-3)


def test_clients_are_clustered_once_and_cluster_models_go_on_learning():
    side = server()
    side.step(answers(GROUPS))
    models, clustering = side.cluster_models, side.clustering
    side.step(answers(dict.fromkeys(GROUPS, 0.5), round=1))
    assert side.clustering is clustering
    assert side.cluster_models is models
    assert [len(model.targets) for model in models] == [2, 2]


def test_every_cluster_has_a_model_of_its_own():
    side = server()
    side.step(answers(GROUPS))
    assert side.cluster_models[0] is not side.cluster_models[1]


def test_a_client_distils_then_fits_then_predicts_and_measures_at_both_moments():
    learner = Recorder()
    client = cf.Client("a", learner, PUBLIC.inputs, [0, 1] * 3, test=(PUBLIC.inputs, [0, 1] * 3))
    side = PredictionClient(cf.Cosmos(local_epochs=3, distill_epochs=4), client, PUBLIC, TASK)
    assert side.step(TeacherLabels(0, None)).round == 0
    assert side.step(TeacherLabels(0, labels(0.5))).round == 1
    side.finish(TeacherLabels(1, labels(0.6)))
    assert [call for call in learner.calls if call != "predict"] == ["fit 3", "distill 4", "fit 3", "distill 4"]
    assert [(m.round, m.moment) for m in side.measurements] == [
        (0, "client_after_fit"), (0, "client"), (1, "client_after_fit"), (1, "client"),
    ]  # fmt: skip


def test_messages_hold_predictions_and_the_round_only():
    assert set(PseudoLabels.__dataclass_fields__) == {"round", "probabilities"}
    assert set(TeacherLabels.__dataclass_fields__) == {"round", "probabilities"}


def test_a_search_for_a_number_of_clusters_and_the_fixed_threshold():
    side = server(n_clusters=4)
    side.step(answers(GROUPS))
    assert len(side.clustering.clusters) == 4
    side = server(threshold=0.0)
    side.step(answers(GROUPS))
    assert len(side.clustering.clusters) == 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (PseudoLabels(0, labels(0.9)[:3]), r"shape \(3, 2\); expected \(6, 2\)"),
        (PseudoLabels(0, labels(np.nan)), "NaN"),
        (PseudoLabels(0, labels(0.9) * 2), "values from 0.2 to 1.8"),
        (PseudoLabels(4, labels(0.9)), "are of round 4; expected 0"),
        (PseudoLabels(0, None), "NoneType"),
    ],
)
def test_a_bad_client_is_recorded_and_the_others_go_on(bad, reason):
    side = server()
    side.open(list(GROUPS))
    downlinks = side.step(iter({**dict(answers(GROUPS)), "b": bad}.items()))
    assert {id for id, message in downlinks.items() if message.probabilities is not None} == {"a", "c", "d"}
    (rejection,) = side.rejections
    assert (rejection.round, rejection.client) == (0, "b")
    assert re.search(reason, rejection.reason)


def test_a_member_that_is_missing_in_a_later_round_still_gets_the_labels_of_its_cluster():
    side = server()
    side.step(answers(GROUPS))
    downlinks = side.step(answers({"a": 0.9, "b": 0.1, "d": 0.3}, round=1))
    np.testing.assert_allclose(downlinks["c"].probabilities, labels(0.9), rtol=1e-3)


def test_a_round_in_which_nobody_is_accepted_is_an_error_with_all_reasons():
    with pytest.raises(InvalidMessageError, match="none of 1 messages was accepted; client 'a': .*round 9"):
        server().step(answers({"a": 0.5}, round=9))


@pytest.mark.parametrize("aggregation", ["mean", "median"])
def test_a_client_that_the_clusters_do_not_know_joins_the_nearest_or_makes_a_new_one(aggregation):
    side = server(threshold=0.3, aggregation=aggregation)
    side.open(["a", "b", "c", "d", "late", "other"])
    asked = side.step(answers(GROUPS))["late"]
    assert (asked.round, asked.probabilities) == (1, None)
    downlinks = side.step(answers({**GROUPS, "late": 0.85, "other": 0.5}, round=1))
    assert side.clustering.clusters == (("a", "c", "late"), ("b", "d"), ("other",))
    np.testing.assert_allclose(downlinks["late"].probabilities, labels(0.8), rtol=1e-3)
    np.testing.assert_allclose(downlinks["other"].probabilities, labels(0.5), rtol=1e-3)
    assert len(side.cluster_models) == 3


@pytest.mark.parametrize("aggregation", ["mean", "median"])
def test_predictions_in_a_file_give_the_same_as_in_memory(aggregation, monkeypatch):
    def labels_after_two_rounds():
        side = server(aggregation=aggregation)
        side.step(answers(GROUPS))
        return side.step(answers({**GROUPS, "a": 0.8}, round=1))

    in_memory = labels_after_two_rounds()
    monkeypatch.setattr("cosmosfl.methods.predictions.LARGE", 50)
    assert all(
        np.array_equal(m.probabilities, in_memory[id].probabilities) for id, m in labels_after_two_rounds().items()
    )


def test_hyper_parameters_are_checked_and_frozen():
    with pytest.raises(ValidationError, match="threshold"):
        cf.Cosmos(threshold="automatic")
    with pytest.raises(ValidationError, match="tresh"):
        cf.Cosmos(tresh=1)
    with pytest.raises(ValidationError, match="frozen"):
        cf.Cosmos().threshold = 1
    with pytest.raises(ValidationError, match="teacher"):
        cf.Cosmos(teacher=LogisticRegression())


# --- as a whole ---


def test_a_federation_helps_clients_that_have_little(public):
    clients = make_clients(6, samples=3)
    run = cf.Cosmos(teacher=cf.SklearnLearner(LogisticRegression())).fit(clients, public, rounds=1)
    assert sorted(run.clusters) == [["a", "c", "e"], ["b", "d", "f"]]
    assert run.accuracy("client").mean >= run.accuracy("local").mean
    assert run.accuracy("client").mean > 90


def test_the_default_teacher_fits_flat_features_and_images(clients, public):
    assert repr(cf.Cosmos().fit(clients, public, rounds=0).cluster_model(0)) == "TorchLearner(mlp)"
    images = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)
    client = cf.Client("a", cf.SklearnLearner(LogisticRegression()), images, [0, 1] * 4)
    assert repr(cf.Cosmos().fit([client], images, rounds=0).cluster_model(0)) == "TorchLearner(cnn-s)"


def test_bytes_are_counted_from_the_messages_of_every_round(clients, public):
    run = cf.Cosmos(teacher=cf.SklearnLearner(LogisticRegression())).fit(clients, public, rounds=2)
    size = 8 + 60 * 4 * 4
    assert [t for t in run.traffic if t.client == "a"] == [
        Traffic(0, "a", size, size + 8), Traffic(1, "a", size, size), Traffic(2, "a", size, size),
    ]  # fmt: skip
