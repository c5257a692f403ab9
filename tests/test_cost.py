"""What a run will cost."""

from __future__ import annotations

import pytest

from cosmosfl import cost
from cosmosfl.config import ExperimentConfig
from cosmosfl.console import cost_table
from cosmosfl.cost import Speed, estimate
from cosmosfl.experiment import Federation, build_federation
from cosmosfl.methods import METHODS


@pytest.fixture
def known_speed(monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda learner, inputs, n_classes: Speed(0.001, 0.0001, 1000, True))


def configured(**changes) -> ExperimentConfig:
    base = {
        "rounds": 1,
        "workers": 1,
        "clients": {"models": ["mlp"]},
        "partition": {"clients": 4, "groups": 2, "samples_per_client": 10, "test_samples_per_client": 20},
        "dataset": {"public_samples": 50},
    }
    base["method"] = {"local_epochs": 3, "distill_epochs": 2, "server_epochs": 4} if "method" not in changes else {}
    return ExperimentConfig.parse(changes, base)


def of(config: ExperimentConfig, federation: Federation | None = None):
    return estimate(config, federation or build_federation(config))


def test_the_sum_is_that_of_the_docstring(known_speed):
    found = of(configured())
    client = (3 * 10 + 2 * 50) * 0.001 + (50 + 2 * 20) * 0.0001
    server = 2 * (4 * 50 * 0.001 + (50 + 4 * 20) * 0.0001)
    assert found.clients == pytest.approx(4 * (2 * client + 4 * 10 * 0.001))  # and 4 joint epochs: one per public batch
    assert found.server == pytest.approx(2 * server)
    assert found.baseline == pytest.approx(2 * 4 * (3 * 10 * 0.001 + 20 * 0.0001))
    assert found.seconds == found.clients + found.server + found.baseline
    assert (found.uplink, found.downlink, found.exchanges) == (50 * 11 * 4, 50 * 10 * 4, 8)  # up: log density ratios
    assert found.disk == 4000


def test_what_is_not_done_costs_nothing(known_speed):
    alone = of(configured(method={"name": "local"}))
    assert (alone.server, alone.baseline, alone.uplink, alone.clusters) == (0, 0, 0, 0)
    assert of(configured(local_baseline=False)).baseline == 0


def test_only_a_recipe_and_models_that_end_jointly_cost_more_at_the_end(known_speed):
    epochs = {"local_epochs": 3, "distill_epochs": 2, "server_epochs": 4}
    forests = {"models": ["random-forest"]}
    joint = of(configured(method=epochs)).clients
    paper = of(configured(method={**epochs, "recipe": "paper"})).clients
    assert joint - paper == pytest.approx(4 * 4 * 10 * 0.001)
    joint, paper = (
        of(configured(clients=forests, method={**epochs, "recipe": recipe})).clients
        for recipe in ("experts+joint", "paper")
    )
    assert joint == paper


def test_two_workers_share_the_time_and_need_the_memory(known_speed):
    one, two = of(configured()), of(configured(workers=2))
    assert two.clients == pytest.approx(one.clients / 2)
    assert two.memory > 2 * one.memory


def test_a_model_that_is_fitted_anew_does_not_count_epochs(monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda *arguments: Speed(0.001, 0.0, 1000, in_epochs=False))
    forests = {"models": ["random-forest"]}
    few, many = (of(configured(clients=forests, method={"local_epochs": e, "distill_epochs": 2})) for e in (1, 9))
    assert few.clients == pytest.approx(2 * 4 * 2 * (10 + 50) * 0.001) == many.clients


def test_real_models_are_timed_and_stay_as_they_are():
    config = configured(clients={"models": ["mlp", "random-forest"]})
    federation = build_federation(config)
    found = of(config, federation)
    assert {kind: n for kind, (n, _) in found.speeds.items()} == {
        "TorchLearner(mlp)": 2, "SklearnLearner(RandomForestClassifier)": 2, "server": 2,
    }  # fmt: skip
    assert all(speed.train > 0 and speed.predict > 0 and speed.state_bytes > 0 for _, speed in found.speeds.values())
    with pytest.raises(ValueError, match="has not learned anything yet"):
        federation.clients[0].learner.state()
    assert cost_table(found).row_count == 12


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("fedavg", 3 * 10),
        ("ditto", 2 * 3 * 10),
        ("fedrep", (3 + 10) * 10),
        ("fedbabu", (3 + 5) * 10),
        ("pfedme", 5 * 3 * 10),
        ("comet", 2 * 3 * 10),
        ("fedct", 3 * (10 + 50)),
        ("fedmd", 3 * 10 + 1 * 20),
        ("dsfl", 3 * 10 + 5 * 20),
    ],
)
def test_every_method_says_what_a_round_of_a_client_trains_on(method, trained):
    part = {"subset": 20} if method in ("fedmd", "dsfl") else {}
    assert METHODS[method](local_epochs=3, **part).training_samples(private=10, public=50) == trained


def test_and_what_it_sends():
    sizes = {name: METHODS[name]().message_bytes(50, 10, 1000) for name in METHODS}
    assert sizes["fedmd"] == 50 * 10 * 4
    assert sizes["cosmos"] == sizes["fedmd"] + 50 * 4  # log density ratios
    assert METHODS["cosmos"]().of_predictions_alone().message_bytes(50, 10, 1000) == sizes["fedmd"]
    assert sizes["fedavg"] == sizes["pfedme"] == 1000
    assert sizes["fedct"] == 50
    assert sizes["local"] == sizes["centralized"] == 0
