"""COSMOS: what the paper's algorithm promises."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from conftest import make_clients
from cosmosfl.config import ExperimentConfig, read_preset
from cosmosfl.data.sets import PublicSet
from cosmosfl.events import Traffic
from cosmosfl.experiment import build_federation
from cosmosfl.methods.cosmos import CosmosLabels
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
    method = cf.Cosmos(teacher=Recorder(), **({"recipe": "paper", "threshold": 0.5, "distance": "l2"} | options))
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
    run = cf.Cosmos(teacher=cf.SklearnLearner(LogisticRegression()), recipe="paper").fit(clients, public, rounds=2)
    size = 8 + 60 * 4 * 4
    assert [t for t in run.traffic if t.client == "a"] == [
        Traffic(0, "a", size, size + 8), Traffic(1, "a", size, size), Traffic(2, "a", size, size),
    ]  # fmt: skip


# --- recipes ----------------------------------------------------------------------------------------------------------


def known(*likely: int, ratio: float = 19.0) -> np.ndarray:
    """Return normalised log ratios in which some public samples are so many times likelier than the others."""
    log_ratio = np.zeros(6, np.float32)
    log_ratio[list(likely)] = np.log(ratio)
    return log_ratio - np.log(np.exp(log_ratio).mean())


NOTHING = np.zeros(6, np.float32)


def told(values: dict[str, float], log_ratios: dict[str, object], round: int = 0) -> list[tuple[str, CosmosLabels]]:
    return [(id, CosmosLabels(round, labels(p), log_ratios.get(id, NOTHING))) for id, p in values.items()]


def test_by_the_experts_recipe_a_cluster_learns_what_all_say_each_as_far_as_it_knows():
    """Catches evidence that grows with the number of members, and the own cluster without its prior."""
    side = server(recipe="experts")
    for round in range(2):  # clusters are found in the first, and known in the second
        ratio = known(2, ratio=5.0)
        downlinks = side.step(told(GROUPS, {"b": ratio, "d": ratio}, round))
        evidence = np.exp(3 * ratio)  # of cluster (b, d), whose members say the same: as if there were one of them
        weight = 0.05 * evidence / (0.05 * evidence + 0.95)
        expected = 0.8 * (1 - weight) + 0.2 * weight
        np.testing.assert_allclose(downlinks["a"].probabilities[:, 0], expected, rtol=2e-3)
        weight = 0.95 * evidence / (0.95 * evidence + 0.05)
        np.testing.assert_allclose(downlinks["d"].probabilities[:, 0], 0.8 * (1 - weight) + 0.2 * weight, rtol=5e-3)


def test_who_claims_to_know_everything_is_not_listened_to():
    """Catches ratios that are not normalised at the door: a client would write the targets of all clusters."""
    side = server(recipe="experts")
    honest = server(recipe="experts").step(told(GROUPS, {}))
    boast = side.step(told(GROUPS, {"b": np.full(6, 9, np.float32)}))
    np.testing.assert_allclose(boast["a"].probabilities, honest["a"].probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "reason"),
    [
        ("much", r"str; expected floating point \(6,\)"),
        (np.zeros(5, np.float32), r"float32 \(5,\); expected"),
        (np.zeros(6, int), r"int64 \(6,\); expected"),
        (np.full(6, np.nan, np.float32), "up to nan; expected finite, at most 10"),
        (np.full(6, 51, np.float32), "up to 51; expected"),
    ],
)
def test_log_density_ratios_are_checked_at_the_door(log_ratio, reason):
    side = server(recipe="experts")
    side.open(list(GROUPS))
    side.step(told(GROUPS, {"b": log_ratio}))
    (rejection,) = side.rejections
    assert rejection.client == "b"
    assert re.search(reason, rejection.reason)


def test_who_sends_no_log_ratios_says_nothing_and_takes_part():
    """Catches a silent member that is rejected, or counted as one that knows nothing beside one that knows."""
    side, other = server(recipe="experts"), server(recipe="experts")
    silent = side.step(told(GROUPS, {"b": known(2), "d": None}))
    both = other.step(told(GROUPS, {"b": known(2), "d": known(2)}))
    assert not side.rejections
    np.testing.assert_allclose(silent["a"].probabilities, both["a"].probabilities, atol=1e-6)
    nobody = server(recipe="experts").step(told(GROUPS, dict.fromkeys(GROUPS)))
    np.testing.assert_allclose(nobody["a"].probabilities[:, 0], 0.95 * 0.8 + 0.05 * 0.2, atol=2e-3)


def test_a_newcomer_brings_its_evidence_with_it_only_where_its_predictions_count():
    def labels_of_a(value: float, log_ratio: np.ndarray) -> np.ndarray:
        side = server(threshold=0.3, recipe="experts")
        side.open([*GROUPS, "new"])
        side.step(told(GROUPS, {}))
        downlinks = side.step(told({**GROUPS, "new": value}, {"new": log_ratio}, 1))
        assert (side.clustering.clusters[-1] == ("new",)) == (value == 0.5)
        return downlinks["b"].probabilities[:, 0]

    # in a cluster of its own
    assert labels_of_a(0.5, known(3))[3] > labels_of_a(0.5, NOTHING)[3] + 0.02
    # in the cluster of others, whose mean this round is without it
    np.testing.assert_array_equal(labels_of_a(0.85, known(3)), labels_of_a(0.85, NOTHING))


def test_what_a_client_sends_is_what_the_recipe_says_and_computed_once(clients, public, monkeypatch):
    first = TeacherLabels(0, None)
    public, task = PublicSet(public), Task(4, 0)
    paper = cf.Cosmos(recipe="paper").client_side(clients[0], public, task).step(first)
    assert paper.log_ratio is None
    assert paper.nbytes == PseudoLabels(0, paper.probabilities).nbytes
    side = cf.Cosmos(recipe="experts").client_side(clients[0], public, task)
    sent = side.step(first)
    assert sent.nbytes == paper.nbytes + 4 * len(public)
    monkeypatch.setattr("cosmosfl.methods.cosmos.log_density_ratio", None)
    np.testing.assert_array_equal(side.step(TeacherLabels(0, sent.probabilities)).log_ratio, sent.log_ratio)


def test_by_the_joint_recipe_who_can_learns_from_both_sets_in_the_end():
    class Joint(Recorder):
        def fit_jointly(self, inputs, labels, public, probabilities, *, n_classes, epochs, rng):
            self.calls.append(f"joint {len(inputs)} {len(public)} {epochs}")

    for learner, recipe, last in [
        (Joint(), "joint", "joint 4 6 2"),
        (Joint(), "experts", "distill 2"),
        (Recorder(), "experts+joint", "distill 2"),
    ]:
        client = cf.Client("a", learner, PUBLIC.inputs[:4], [0, 1] * 2, test=(PUBLIC.inputs, [0, 1] * 3))
        side = cf.Cosmos(recipe=recipe, distill_epochs=2).client_side(client, PUBLIC, TASK)
        side.step(TeacherLabels(2, labels(0.6)))  # not yet
        side.finish(TeacherLabels(3, labels(0.6)))
        assert [call for call in learner.calls if call != "predict"] == ["distill 2", "fit 5", last]
        assert [(m.round, m.moment) for m in side.measurements][-1] == (3, "client")
        side.finish(TeacherLabels(3, None))
        assert len(side.measurements) == 3
    client = cf.Client("a", Joint(), PUBLIC.inputs[:4], [0, 1] * 2)
    cf.Cosmos(recipe="joint", distill_epochs=0).client_side(client, PUBLIC, TASK).finish(TeacherLabels(0, labels(0.6)))
    assert client.learner.calls == ["distill 0"]


def test_a_recipe_that_does_not_exist_is_refused():
    with pytest.raises(ValidationError, match="recipe"):
        cf.Cosmos(recipe="secret")


def test_our_recipe_is_better_than_the_papers_on_digits():
    """Half of what a client does not know is known to others: with the paper's recipe it stays unknown."""
    config = ExperimentConfig.parse(
        {"clients": {"models": ["mlp"]}, "teacher": {"model": "mlp"}}, read_preset("cpu/digits")
    )
    federation = build_federation(config)
    accuracy = {
        recipe: cf.Cosmos(recipe=recipe, teacher=config.method.teacher)
        .fit(federation.clients, federation.public, rounds=2, local_baseline=False)
        .accuracy("client")
        .mean
        for recipe in ("paper", "experts+joint")
    }
    assert accuracy["experts+joint"] > accuracy["paper"] + 2
