"""Learners by name."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.config import ConfigError, ExperimentConfig
from cosmosfl.learners import LEARNERS, learner_by_name
from cosmosfl.protocol import Learner
from cosmosfl.randomness import stream


@pytest.mark.parametrize("name", LEARNERS)
def test_every_name_makes_a_new_learner(name):
    assert isinstance(learner_by_name(name), Learner)
    assert learner_by_name(name) is not learner_by_name(name)
    assert LEARNERS[name].summary


def test_a_built_in_model_can_see_its_images_at_another_size():
    images = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
    plain, larger = learner_by_name("cnn-s"), learner_by_name("cnn-s@16")
    for learner in (plain, larger):
        learner.fit(images, np.array([0, 1, 0, 1]), n_classes=2, epochs=1, rng=stream(0))
    assert type(larger.module).__name__ == "Resized"
    assert larger.predict_proba(images).shape == plain.predict_proba(images).shape


def test_a_configuration_takes_models_from_elsewhere():
    config = ExperimentConfig.parse({"clients": {"models": ["conftest:tiny", "mlp"]}})
    assert config.clients.models == ("conftest:tiny", "mlp")
    assert config.clients.learner("conftest:tiny").model == "conftest:tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random-forrest", "did you mean 'random-forest'"),
        ("conftest:huge", "conftest"),
        ("nowhere:net", "nowhere"),
        ("cnn-s@big", "expected a number of pixels"),
        ("cnn-x@16", "did you mean"),
    ],
)
def test_mistakes_in_names_are_found_before_anything_is_trained(name, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.parse({"teacher": {"model": name}})
