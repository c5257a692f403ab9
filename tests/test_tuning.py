"""`cosmosfl tune`: the same search for every method, on validation data only, that can be taken up again."""

from __future__ import annotations

import dataclasses
import sys
from typing import ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

from cosmosfl import experiment
from cosmosfl.cli import app
from cosmosfl.config import ConfigError, ExperimentConfig, read_preset, read_toml
from cosmosfl.layers import for_method
from cosmosfl.methods import METHODS
from cosmosfl.methods.local import Local, LocalClient
from cosmosfl.protocol import InvalidMessageError, Method, NotApplicableError
from cosmosfl.tuning import (
    NotTuned,
    Trial,
    TrialStarted,
    Tuned,
    TuningError,
    hold_out,
    plan_search,
    run_search,
    search_factors,
    split_validation,
)

TINY = {
    "rounds": 0,
    "workers": 1,
    "partition": {"clients": 2, "samples_per_client": 30},
    "dataset": {"public_samples": 50},
    "clients": {"models": ["mlp"]},
    "teacher": {"model": "mlp"},
    "method": {"local_epochs": 1},
}


def plan(methods="local", *layers, trials=3, **options):
    return plan_search(methods, [*layers, TINY], trials=trials, **options)


class Watcher:
    """Remembers the trials that were begun, and interrupts at one."""

    def __init__(self, interrupt_at=None):
        self.begun, self.outcomes, self.interrupt_at = [], [], interrupt_at

    def __call__(self, event):
        match event:
            case TrialStarted():
                if len(self.begun) == self.interrupt_at:
                    raise KeyboardInterrupt
                self.begun.append((event.method, *event.rates.values()))
            case Tuned() | NotTuned():
                self.outcomes.append(event)


def registered(monkeypatch, base=Local, *, side=None, **attributes):
    """Add a method ``fake`` and return its class."""
    if side is not None:
        attributes["client_side"] = lambda self, client, public, task: side(self, client, public, task)
    annotations = {"name": ClassVar[str], "tunable": ClassVar[tuple[str, ...]], **attributes.pop("fields", {})}
    cls = type("Fake", (base,), {"name": "fake", "__module__": __name__, "__annotations__": annotations, **attributes})
    monkeypatch.setitem(METHODS, "fake", cls)
    return cls


# --- the validation part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_validation_has_the_classes_in_proportion(seed):
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2, 3], [40, 20, 8, 1]))
    training, validation = split_validation(labels, 0.25, np.random.default_rng(seed))
    assert sorted([*training, *validation]) == list(range(69))
    assert len(validation) == 17
    counts = np.bincount(labels[validation], minlength=4)
    assert abs(counts - [10, 5, 2, 0]).max() <= 1
    assert counts[3] == 0  # the only sample of its class stays to be trained on


@pytest.mark.parametrize(("n", "fraction", "held"), [(2, 0.01, 1), (2, 0.99, 1), (4, 0.25, 1), (10, 0.99, 9)])
def test_both_parts_have_a_sample(n, fraction, held):
    training, validation = split_validation(np.arange(n), fraction, np.random.default_rng(0))
    assert (len(training), len(validation)) == (n - held, held)


def test_validation_takes_the_place_of_the_test_set():
    federation = experiment.build_federation(ExperimentConfig.parse(TINY))
    held = hold_out(federation, 0.2, seed=0)
    for before, after in zip(federation.clients, held.clients, strict=True):
        assert (len(before.private), len(after.private), len(after.test)) == (30, 24, 6)
        rows = np.concatenate([after.private.inputs, after.test.inputs]).reshape(30, -1)
        assert sorted(map(bytes, rows)) == sorted(map(bytes, before.private.inputs.reshape(30, -1)))
    again = hold_out(federation, 0.2, seed=0)
    assert np.array_equal(held.clients[0].test.inputs, again.clients[0].test.inputs)


def test_the_test_set_is_never_looked_at(tmp_path, monkeypatch):
    honest = run_search(plan("local,cosmos", trials=2), tmp_path / "honest")
    load = experiment.load_source

    def garbage(name, data_dir):
        source, rng = load(name, data_dir), np.random.default_rng(0)
        noise = rng.integers(0, 255, source.test_inputs.shape).astype(source.test_inputs.dtype)
        return dataclasses.replace(source, test_inputs=noise, test_labels=rng.permutation(source.test_labels))

    monkeypatch.setattr(experiment, "load_source", garbage)
    assert run_search(plan("local,cosmos", trials=2), tmp_path / "garbage") == honest
    for name in ("local.toml", "cosmos.toml"):
        assert (tmp_path / "garbage" / name).read_text() == (tmp_path / "honest" / name).read_text()


# --- the search -------------------------------------------------------------------------------------------------------


def test_the_factors_are_even_steps_around_the_configuration():
    assert search_factors(5, 10) == (0.1, 0.316228, 1, 3.16228, 10)
    assert search_factors(2, 4) == (0.25, 4)


def test_every_method_gets_the_same_trials():
    search = plan("all", trials=5)
    common = [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]
    for method, candidates in search.candidates.items():
        assert len(candidates) == 5
        if METHODS[method].tunable == Method.tunable:
            assert [c.rates for c in candidates] == [{"clients.learning_rate": rate} for rate in common]
            assert [c.config.clients.learning_rate for c in candidates] == common
        assert candidates[2].config.to_dict() == search.configs[method].to_dict()


@pytest.mark.parametrize("method", METHODS.values())
def test_a_method_with_learning_rates_of_its_own_says_which_are_searched(method):
    if any(field.endswith("learning_rate") for field in method.model_fields):
        assert method.tunable != Method.tunable


def test_several_rates_of_a_method_move_together(tmp_path, monkeypatch):
    fields = {"pace": 0.5, "inner_pace": 0.02}
    registered(monkeypatch, tunable=("method.pace", "method.inner_pace"), fields=dict.fromkeys(fields, float), **fields)
    search = plan("fake", trials=3)
    rates = [(c.config.method.pace, c.config.method.inner_pace) for c in search.candidates["fake"]]
    assert rates == [(0.05, 0.002), (0.5, 0.02), (5, 0.2)]
    run_search(search, tmp_path)
    # none of them has an effect here, so all are equally good
    expected = {"method": {"name": "fake", "pace": 0.5, "inner_pace": 0.02}}
    assert read_toml(tmp_path / "fake.toml") == expected


def test_of_equally_good_trials_the_one_nearest_to_the_configuration_is_best():
    trials = tuple(Trial(factor, {}, accuracy) for factor, accuracy in [(0.1, 50.0), (1, 70.0), (10, 70.0)])
    assert Tuned("local", trials).best.factor == 1
    assert Tuned("local", trials).edge is None
    assert Tuned("local", trials[:2]).edge == "highest"
    assert Tuned("local", trials[2:] + trials[:1]).edge == "highest"


def test_the_result_is_a_layer_that_a_run_can_read(tmp_path):
    (tuned,) = run_search(plan("local", {"method": {"local_epochs": 8}}), tmp_path, command="cosmosfl tune --out x")
    text = (tmp_path / "local.toml").read_text()
    layer = read_toml(tmp_path / "local.toml")
    assert layer == {"clients": {"learning_rate": 0.01}, "method": {"name": "local"}}
    assert ExperimentConfig.parse(layer).clients.learning_rate == 0.01
    assert "#   cosmosfl tune --out x\n" in text
    for trial in tuned.trials:
        assert f"{trial.accuracy:.2f} %" in text
    assert text.count("<- the best") == 1
    assert "highest that was tried" in text


# --- taking it up again -----------------------------------------------------------------------------------------------


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path):
    whole = Watcher()
    expected = run_search(plan("local,cosmos"), tmp_path / "whole", callbacks=[whole])
    first, second = Watcher(interrupt_at=4), Watcher()
    with pytest.raises(KeyboardInterrupt):
        run_search(plan("local,cosmos"), tmp_path / "parts", callbacks=[first])
    assert (tmp_path / "parts" / "local.toml").is_file()
    assert not (tmp_path / "parts" / "cosmos.toml").exists()
    assert run_search(plan("local,cosmos"), tmp_path / "parts", callbacks=[second]) == expected
    assert len(whole.begun) == 6
    assert sorted(first.begun + second.begun) == sorted(whole.begun)  # nothing twice, nothing left out
    third = Watcher()
    assert run_search(plan("local,cosmos"), tmp_path / "parts", callbacks=[third]) == expected
    assert third.begun == []


def test_trials_of_another_search_are_not_mixed_in(tmp_path):
    run_search(plan("local", trials=2), tmp_path)
    for other, message in [
        (plan("local", trials=3), "'local' from another search: trials was 2 and is 3 now; choose another"),
        (plan("cosmos", trials=3), "'local' from another search: trials was 2 and is 3"),  # all get the same number
        (plan("local", {"seed": 1}, trials=2), "seed was 0 and is 1"),
        (plan("cosmos", {"partition": {"clients": 3}}, trials=2), "partition.clients was 2 and is 3"),
        (plan("local", {"method": {"local_epochs": 2}}, trials=2), "method.local_epochs was 1 and is 2"),
    ]:
        with pytest.raises(TuningError, match=message):
            run_search(other, tmp_path)
    assert not (tmp_path / "cosmos.toml").exists()
    watcher = Watcher()
    same = plan("local", {"workers": 2, "dataset": {"data_dir": "elsewhere"}}, trials=2)
    run_search(same, tmp_path, callbacks=[watcher])
    assert len(watcher.outcomes) == 1
    assert watcher.begun == []


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "local.toml").write_text("mine")
    with pytest.raises(TuningError, match="is not empty and holds no trials.journal"):
        run_search(plan(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["local.toml"]


# --- what cannot be tuned ---------------------------------------------------------------------------------------------


def refuse(self, clients):
    raise NotApplicableError("method 'fake' cannot run here")


def test_a_method_that_cannot_run_is_left_out_or_an_error_if_it_was_named(monkeypatch):
    registered(monkeypatch, prepare=refuse)
    search = plan("all")
    assert search.left_out == (NotTuned("fake", "method 'fake' cannot run here"),)
    assert "fake" not in search.candidates
    with pytest.raises(TuningError, match="method 'fake' cannot run here"):
        plan("local,fake")


def test_so_is_one_that_finds_out_late(tmp_path, monkeypatch):
    class Side(LocalClient):
        def step(self, message):
            refuse(self, [])

    registered(monkeypatch, side=Side)
    for module in ("tuning", "layers"):
        monkeypatch.setattr(f"cosmosfl.{module}.METHODS", {name: METHODS[name] for name in ("fake", "local")})
    watcher = Watcher()
    assert [tuned.method for tuned in run_search(plan("all"), tmp_path / "all", callbacks=[watcher])] == ["local"]
    assert watcher.outcomes[0] == NotTuned("fake", "method 'fake' cannot run here")
    with pytest.raises(TuningError, match="method 'fake' cannot run here"):
        run_search(plan("fake,local"), tmp_path / "named")
    assert (tmp_path / "named" / "local.toml").is_file()  # the others have their result all the same


def test_training_that_diverges_is_a_trial_that_failed(tmp_path):
    wild = {"clients": {"optimizer": "sgd", "learning_rate": 1e15}, "method": {"local_epochs": 2}}
    (tuned,) = run_search(plan("local", wild, span=1e17), tmp_path)
    assert [trial.error is None for trial in tuned.trials] == [True, False, False]
    assert tuned.best.rates == {"clients.learning_rate": 0.01}
    assert "failed: training loss is nan" in (tmp_path / "local.toml").read_text()


def test_a_method_of_which_no_trial_succeeds_is_an_error_at_the_end(tmp_path, monkeypatch):
    class Side(LocalClient):
        def step(self, message):
            raise InvalidMessageError("weights: NaN or infinity")

    registered(monkeypatch, side=Side)
    with pytest.raises(TuningError, match="method 'fake': no trial of 2 succeeded; weights: NaN or infinity"):
        run_search(plan("fake,local", trials=2), tmp_path)
    assert [path.name for path in tmp_path.glob("*.toml")] == ["local.toml"]


def test_a_method_that_measures_nothing_to_deploy_is_an_error(tmp_path, monkeypatch):
    class Side(LocalClient):
        def measure(self, round, *moments):
            super().measure(round, "client_after_fit")

    registered(monkeypatch, side=Side)
    with pytest.raises(TuningError, match="method 'fake' does not measure the models that its clients would deploy"):
        run_search(plan("fake", trials=2), tmp_path)


def test_without_a_torch_model_there_is_nothing_to_search():
    with pytest.raises(TuningError, match="clients.learning_rate has no effect on any of the clients' models"):
        plan("local", {"clients": {"models": ["logistic-regression"]}})


def test_a_client_with_one_sample_cannot_be_validated():
    with pytest.raises(TuningError, match="client 'client-0': 1 private sample; expected 2, one of them to validate"):
        plan("local", {"partition": {"samples_per_client": 1}})


# --- configurations for several methods -------------------------------------------------------------------------------


def test_a_layer_for_all_methods_says_to_each_what_concerns_it():
    assert for_method({"method": {"local_epochs": 2, "server_epochs": 3}}, "local") == {"method": {"local_epochs": 2}}
    named = {"rounds": 5, "method": {"name": "cosmos", "local_epochs": 2, "server_epochs": 3, "distance": "l2"}}
    assert for_method(named, "cosmos") == {
        "rounds": 5,
        "method": {"local_epochs": 2, "server_epochs": 3, "distance": "l2"},
    }
    assert for_method(named, "local") == {"rounds": 5, "method": {"local_epochs": 2}}
    assert for_method({"research_code": {"known_groups": True, "second_softmax": True}}, "local") == {
        "method": {},
        "research_code": {"second_softmax": True},
    }
    with pytest.raises(ConfigError, match="method: 'local'; expected a table of settings"):
        for_method({"method": "local"}, "local")


def test_a_preset_for_one_method_serves_all():
    for name in METHODS:
        layer = for_method(read_preset("cpu/emnist"), name)
        config = ExperimentConfig.parse({"method": {"name": name}}, layer)
        assert (config.method.name, config.method.local_epochs, config.rounds) == (name, 5, 5)


def test_keys_that_no_method_has_name_the_nearest():
    with pytest.raises(ConfigError, match="method.server_epoch: 'server_epoch' is not known; did you mean 'server_epo"):
        plan("local,cosmos", {"method": {"server_epoch": 1}})
    with pytest.raises(ConfigError, match="method.server_epochs"):
        plan("local", {"method": {"server_epochs": 1}})
    # but one that a file has for another method is not meant for this one
    plan_search("local", [TINY], [{"method": {"name": "cosmos", "server_epochs": 1}}])


# --- the command ------------------------------------------------------------------------------------------------------

SETTINGS = ["rounds=0", "workers=1", "partition.clients=2", "clients.models=['mlp']", "method.local_epochs=1",
            "dataset.public_samples=50", "teacher.model=mlp"]  # fmt: skip
QUICK = ["tune", "--methods", "local,cosmos", "--trials", "2", *(word for key in SETTINGS for word in ("--set", key))]


def cosmosfl(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_what_came_out_and_where_it_lies(tmp_path):
    result = cosmosfl(*QUICK, "--out", tmp_path / "tuned")
    assert result.exit_code == 0, result.output
    assert "2 trials of each of 2 methods on digits: 2 clients with 22 samples to train on and 8" in result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert [line[0] for line in lines[1:]] == ["local", "cosmos", "written"]
    assert all("clients.learning_rate" in line for line in lines[1:3])
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == {"local.toml", "cosmos.toml", "trials.journal"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "cosmo"], "error: methods: 'cosmo' is not known; did you mean 'cosmos'?"),
        (["--methods", ","], "error: methods: none; expected 'all'"),
        (["--trials", 1], "error: trials: 1; expected at least 2"),
        (["--span", 1], "error: span: 1; expected a number above 1"),
        (["--validation", 1], "error: validation: 1; expected a fraction between 0 and 1"),
        (["--set", "method.name=local"], "error: method.name: the methods are given with --methods"),
        (["--set", "method=local"], "error: method: 'local'; expected a table"),
        (["--set", "rounds=-1"], "error: rounds: -1; expected"),
        (["--preset", "cpu/emnis"], "did you mean 'cpu/emnist'?"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(arguments, message, tmp_path):
    result = cosmosfl(*QUICK, *arguments, "--out", tmp_path / "tuned")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = cosmosfl(*QUICK, "--out", tmp_path / "tuned")
    assert result.exit_code == 2
    assert result.stderr == "error: optuna is not installed; pip install 'cosmosfl[tune]'\n"
