"""One validated configuration, and errors of one line."""

from __future__ import annotations

import pytest
import tomli_w

from cosmosfl.config import ConfigError, ExperimentConfig, parse_assignments, presets, read_preset, read_toml
from cosmosfl.methods import METHODS


def test_the_first_layer_has_precedence_key_by_key():
    config = ExperimentConfig.parse({"partition": {"alpha": 1}}, {"partition": {"alpha": 2, "groups": 5}, "rounds": 7})
    assert (config.partition.alpha, config.partition.groups, config.rounds) == (1, 5, 7)


def test_limits_that_are_lifted_stay_lifted_in_a_file():
    lifted = {"partition": {"samples_per_client": "all"}, "teacher": {"clip_norm": "none"}}
    config = ExperimentConfig.parse(ExperimentConfig.parse(lifted).to_dict())
    assert config.partition.samples_per_client == "all"
    assert config.method.teacher.clip_norm is None


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_valid_configuration(name):
    config = ExperimentConfig.parse(read_preset(name))
    assert ExperimentConfig.parse(config.to_dict()).to_dict() == config.to_dict()
    assert presets()[name].startswith("# ")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="preset: 'cpu/emnis' is not known; did you mean 'cpu/emnist'?"):
        read_preset("cpu/emnis")


def test_an_option_without_effect_is_refused():
    with pytest.raises(ConfigError, match="alpha has no effect on a 'iid' partition; it belongs to grouped-dirichlet"):
        ExperimentConfig.parse({"partition": {"name": "iid", "alpha": 1.0}})
    resolved = ExperimentConfig.parse({"partition": {"name": "iid"}}).to_dict()
    assert "alpha" not in resolved["partition"]
    ExperimentConfig.parse(resolved)


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_configuration_reads_back_as_itself(method, tmp_path):
    config = ExperimentConfig.parse({"method": {"name": method, "local_epochs": 2}, "teacher": {"consistency": 5}})
    resolved = config.to_dict()
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(_without_none(resolved)))
    assert ExperimentConfig.parse(read_toml(file)).to_dict() == resolved


def _without_none(value):
    return {k: _without_none(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def test_the_teacher_is_built_from_its_table():
    config = ExperimentConfig.parse({"teacher": {"model": "mlp", "consistency": 5, "learning_rate": 0.01}})
    teacher = config.method.teacher
    assert (teacher.model, teacher.consistency, teacher.learning_rate) == ("mlp", 5, 0.01)


def test_training_settings_reach_torch_clients_only():
    clients = ExperimentConfig.parse({"clients": {"batch_size": 7}}).clients
    assert clients.learner("mlp").batch_size == 7
    assert not hasattr(clients.learner("random-forest"), "batch_size")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"sed": 1}, "sed: no such key; did you mean 'seed'?"),
        ({"dataset": {"nam": "digits"}}, "dataset.nam: no such key; did you mean 'name'?"),
        ({"partition": {"zzz": 1}}, "partition.zzz: no such key; expected one of alpha, classes_per_client"),
        ({"method": {"treshold": 1}}, "method.treshold: no such key; did you mean 'threshold'?"),
        ({"method": {"name": "cosmoss"}}, "method.name: 'cosmoss' is not known; did you mean 'cosmos'?"),
        ({"method": "cosmos"}, "method: 'cosmos'; expected a table with a name"),
        ({"method": {"name": "local", "threshold": 1}}, "method.threshold: no such key"),
        ({"rounds": -1}, "rounds: -1; expected greater than or equal to 0"),
        ({"rounds": "many"}, "rounds: 'many'; expected a valid integer"),
        ({"partition": {"alpha": 0}}, "partition.alpha: 0; expected greater than 0"),
        ({"dataset": 3}, "dataset: 3; expected a valid dictionary"),
        ({"clients": {"models": []}}, "clients.models: [];"),
        ({"clients": {"models": ["mpl"]}}, "model: 'mpl' is not known; did you mean 'mlp'?"),
        ({"teacher": {"optimizer": "adma"}}, "teacher.optimizer: 'adma'; expected 'adam', 'adamw' or 'sgd'"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(layer, message):
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.parse(layer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_assignments_are_toml_values_or_strings():
    assert parse_assignments(["a.b=1", "a.c=x y", "d=[1, 2]", "e=true", "f=1e-3", "g="]) == {
        "a": {"b": 1, "c": "x y"}, "d": [1, 2], "e": True, "f": 1e-3, "g": "",
    }  # fmt: skip


@pytest.mark.parametrize("assignment", ["rounds", "=3", "a..b=1", ".=1"])
def test_what_is_no_assignment_is_named(assignment):
    with pytest.raises(ConfigError, match="expected key=value, such as partition.alpha=1"):
        parse_assignments([assignment])


def test_a_value_cannot_also_be_a_table():
    with pytest.raises(ConfigError, match="'a.b=2': a was set to a value before"):
        parse_assignments(["a=1", "a.b=2"])


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml: No such file"):
        read_toml(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    with pytest.raises(ConfigError, match=r"bad.toml: not a TOML file"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.toml: not a TOML file"):
        read_toml(tmp_path / "binary.toml")
