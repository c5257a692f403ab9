"""The loop in one process."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import nn

import cosmosfl as cf
from conftest import blobs, make_clients
from cosmosfl.data.sources import Source
from cosmosfl.engine.local import LocalEngine
from cosmosfl.evaluation.metrics import MOMENTS
from cosmosfl.events import ClientDone, PhaseStarted, Started
from cosmosfl.protocol import Clustering, InvalidMessageError

FAST = {"local_epochs": 1, "server_epochs": 1, "distill_epochs": 1}


def mixed_clients() -> list[cf.Client]:
    makers = itertools.cycle(
        [
            lambda: cf.TorchLearner("mlp"),
            lambda: cf.SklearnLearner(RandomForestClassifier(5)),
            lambda: cf.TorchLearner(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 4))),
            lambda: cf.SklearnLearner(LogisticRegression()),
        ]
    )
    return make_clients(4, learner=lambda: next(makers)())


def outcome(run: cf.Run) -> tuple:
    probe = np.linspace(-3, 3, 40, dtype=np.float32).reshape(20, 2)
    models = {id: run.model(id).predict_proba(probe).tobytes() for id in sorted(run.models)}
    clusters = [run.cluster_model(k).predict_proba(probe).tobytes() for k in range(len(run.clusters))]
    measured = {(m.round, m.moment, m.client): m.top1 for m in run.measurements}
    return models, clusters, measured, sorted(map(tuple, run.clusters)), run.clustering.threshold


def test_the_same_seed_gives_the_same_result_bit_for_bit_in_whatever_order_clients_step(public):
    first = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=1, seed=4)
    again = cf.Cosmos(**FAST).fit(mixed_clients()[::-1], public, rounds=1, seed=4)
    assert outcome(first) == outcome(again)
    other = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=1, seed=5)
    assert outcome(first)[0] != outcome(other)[0]


def test_the_number_of_workers_changes_nothing(public):
    one = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=2, seed=4, workers=1)
    two = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=2, seed=4, workers=2)
    assert outcome(one) == outcome(two)
    assert [type(e) for e in one.history] == [type(e) for e in two.history]


def test_an_error_in_a_worker_says_whose_it_is(public):
    clients = [*make_clients(2), cf.Client("broken", Hapless(), *blobs(12, (0, 1), np.random.default_rng(0)))]
    with pytest.raises(RuntimeError, match="no luck") as caught:
        cf.Cosmos(**FAST).fit(clients, public, rounds=0, workers=2, local_baseline=False)
    assert caught.value.__notes__ == ["in round 0, at client 'broken'"]


def test_states_lie_in_files_that_end_with_the_run(public, tmp_path):
    engine = LocalEngine(scratch=tmp_path)
    run = engine.run(cf.Cosmos(**FAST), mixed_clients(), public, 1, local_baseline=False)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    first, again = run.model("a"), run.model("a")
    assert first is not again
    np.testing.assert_array_equal(first.predict_proba(public), again.predict_proba(public))
    del run
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_no_array_of_numbers_is_an_error_that_names_it(public):
    class Careless(Hapless):
        def fit(self, *args, **kwargs): ...

        def predict_proba(self, inputs):
            return np.full((len(inputs), 4), 0.25, np.float32)

        def state(self):
            return {"notes": np.array("text")}

    clients = [*make_clients(2), cf.Client("careless", Careless(), *blobs(12, (0, 1), np.random.default_rng(0)))]
    with pytest.raises(TypeError, match="state 'learner.notes' has dtype <U4"):
        cf.Cosmos(**FAST).fit(clients, public, rounds=0, local_baseline=False)


class Hapless:
    def fit(self, inputs, labels, *, n_classes, epochs, rng):
        raise RuntimeError("no luck")

    def distill(self, inputs, probabilities, *, epochs, rng): ...

    def predict_proba(self, inputs): ...

    def state(self):
        return {}

    def restore(self, state): ...


def test_running_twice_with_the_same_objects_gives_the_same_result(public):
    clients, method = mixed_clients(), cf.Cosmos(teacher=cf.TorchLearner("mlp"), **FAST)
    assert outcome(method.fit(clients, public, rounds=1)) == outcome(method.fit(clients, public, rounds=1))


def test_a_callback_cannot_change_the_result(public):
    seen = []
    watched = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=1, callbacks=[seen.append])
    assert outcome(watched) == outcome(cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=1))
    assert isinstance(seen[0], Started)
    phases = [(e.round, e.phase) for e in seen if isinstance(e, PhaseStarted)]
    rounds = [(r, phase) for r in (0, 1) for phase in ("clients", "server")]
    assert phases == [(0, "baseline"), *rounds, (1, "final")]
    assert sum(isinstance(e, ClientDone) for e in seen) == 4 * 2 * (
        2 + 1
    )  # alone and together: two rounds and the last distillation
    assert sum(isinstance(e, Clustering) for e in seen) == 1


def test_every_moment_is_measured_for_every_client_in_every_round(public):
    run = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=2)
    measured = {(m.round, m.moment, m.client) for m in run.measurements}
    assert measured == set(itertools.product(range(3), MOMENTS, "abcd"))
    assert len(run.measurements) == len(measured)


def test_the_oracle_is_never_below_the_own_cluster_model(public):
    run = cf.Cosmos(threshold=0.0, **FAST).fit(mixed_clients(), public, rounds=1)
    own, best = run.accuracy("cluster").per_client, run.accuracy("oracle").per_client
    assert all(best[id] >= own[id] for id in own)
    assert any(best[id] > own[id] for id in own)


def test_alone_and_federated_are_the_same_until_the_first_exchange(public):
    run = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=1)
    assert run.accuracy("local", round=0) == run.accuracy("client_after_fit", round=0)


def test_the_baseline_equals_the_method_local(public):
    run = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=2)
    alone = cf.Local(local_epochs=1).fit(mixed_clients(), public, rounds=2)
    assert run.accuracy("local") == alone.accuracy("client")
    assert alone.clusters == []
    assert sum(t.uplink + t.downlink for t in alone.traffic) == 0


def test_without_test_sets_nothing_is_measured_and_no_baseline_is_run(public):
    events = []
    run = cf.Cosmos(**FAST).fit(make_clients(2, test=False), public, rounds=0, callbacks=[events.append])
    assert run.measurements == []
    assert run.accuracy() is None
    assert not any(isinstance(e, PhaseStarted) and e.phase == "baseline" for e in events)


def test_no_rounds_is_pre_training_and_one_exchange(public):
    run = cf.Cosmos(**FAST).fit(mixed_clients(), public, rounds=0)
    assert {m.round for m in run.measurements} == {0}
    assert len(run.traffic) == 4


def test_one_client_is_a_federation(public):
    run = cf.Cosmos(**FAST).fit(make_clients(1), public, rounds=1)
    assert run.clusters == [["a"]]


def test_one_private_sample_and_one_class_are_enough(public):
    first, *others = make_clients(3)
    lonely = cf.Client("lonely", cf.TorchLearner("mlp"), first.private.inputs[:1], first.private.labels[:1])
    run = cf.Cosmos(**FAST).fit([lonely, *others], public, rounds=1)
    assert np.isfinite(run.model("lonely").predict_proba(public)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": []}, "clients: none; expected at least one"),
        ({"clients": make_clients(1) * 2}, "client 'a': there are two clients with this id"),
        ({"rounds": -1}, "rounds: -1; expected a whole number of at least 0"),
        ({"rounds": 1.5}, "rounds: 1.5; expected a whole number"),
        ({"seed": -1}, "seed: -1; expected a whole number of at least 0"),
        ({"n_classes": 3}, r"client 'b': label 3; expected 0..2"),
        ({"n_classes": 1}, "n_classes: 1; expected at least 2"),
        (
            {"public": np.zeros((5, 3))},
            r"client 'a': private set has samples of shape \(2,\), float32; expected \(3,\)",
        ),
        ({"public": np.zeros((5, 2), np.uint8)}, "float32; expected .* uint8, as in the public set"),
        ({"public": np.zeros((1, 2))}, "public set: 1 samples; expected at least 2"),
        ({"public": np.full((5, 2), np.nan)}, "public set: 5 of 5 samples hold NaN"),
        ({"public": np.zeros((0, 2))}, "public set: 0 samples"),
    ],
)
def test_parties_that_do_not_fit_together_are_refused_before_training(public, change, message):
    trained = []
    arguments = {"clients": make_clients(2), "public": public, "rounds": 1} | change
    with pytest.raises(ValueError, match=message):
        cf.Cosmos(**FAST).fit(**arguments, callbacks=[trained.append])
    assert trained == []


class Broken(cf.TorchLearner):
    """Learns well and predicts badly."""

    def __init__(self, spoil) -> None:
        super().__init__("mlp")
        self.spoil = spoil

    def predict_proba(self, inputs):
        return self.spoil(super().predict_proba(inputs))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda P: P[:, :-1], r"client 'bad': predict_proba returned shape \(60, 3\); expected \(60, 4\)"),
        (lambda P: P[:-1], r"client 'bad': predict_proba returned shape \(59, 4\); expected \(60, 4\)"),
        (lambda P: P * 0.5, "client 'bad': predict_proba returned rows that do not sum to one"),
        (lambda P: P * np.nan, "client 'bad': predict_proba returned NaN or infinity"),
        (lambda P: P.tolist(), "client 'bad': predict_proba returned list"),
    ],
)
def test_a_learner_that_predicts_badly_is_named(public, spoil, message):
    good = make_clients(2)
    bad = cf.Client("bad", Broken(spoil), good[0].private.inputs, good[0].private.labels)
    with pytest.raises(InvalidMessageError, match=message):
        cf.Cosmos(**FAST).fit([*good, bad], public, rounds=0)


def test_an_error_inside_a_learner_says_whose_it_is(public):
    def explode(P):
        raise RuntimeError("out of ideas")

    good = make_clients(2)
    bad = cf.Client("bad", Broken(explode), good[0].private.inputs, good[0].private.labels)
    with pytest.raises(RuntimeError, match="out of ideas") as caught:
        cf.Cosmos(**FAST).fit([*good, bad], public, rounds=0)
    assert caught.value.__notes__ == ["in round 0, at client 'bad'"]


def test_public_labels_cannot_change_anything(monkeypatch):
    """Shuffle the labels of exactly those samples that become public: not one bit of the result may move."""
    from cosmosfl import experiment
    from cosmosfl.config import ExperimentConfig
    from cosmosfl.data.partition import take_public
    from cosmosfl.randomness import stream

    config = ExperimentConfig.parse(
        {
            "rounds": 1,
            "method": FAST,
            "partition": {"clients": 4},
            "clients": {"models": ["mlp", "logistic-regression"]},
        }
    )
    original = experiment.load_source("digits")
    public, rest = take_public(original.train_labels, config.dataset.public_fraction, stream(0, "public set"))
    wrong = original.train_labels.copy()
    wrong[public] = np.random.default_rng(0).permutation(wrong[public])
    assert (wrong != original.train_labels).sum() > 300
    monkeypatch.setattr(experiment, "take_public", lambda labels, fraction, rng: (public, rest))

    def run(labels: np.ndarray) -> cf.Run:
        source = Source(
            "digits",
            original.train_inputs,
            labels,
            *[getattr(original, f) for f in ("test_inputs", "test_labels", "class_names")],
        )
        monkeypatch.setattr(experiment, "load_source", lambda name, data_dir: source)
        return experiment.run_experiment(config)

    first, second = run(original.train_labels), run(wrong)
    assert first.measurements == second.measurements
    for id in first.models:
        probe = original.test_inputs[:50]
        assert np.array_equal(first.model(id).predict_proba(probe), second.model(id).predict_proba(probe))
