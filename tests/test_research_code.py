"""Each departure of the research code changes what it says when it is on, and nothing when it is off."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import blobs
from cosmosfl import TorchLearner
from cosmosfl.config import ConfigError, ExperimentConfig, ResearchCodeConfig, presets, read_preset
from cosmosfl.distillation import ordered_batches, second_softmax
from cosmosfl.experiment import build_federation, run_experiment
from cosmosfl.learners.torch import Departures
from cosmosfl.randomness import stream

X, Y = blobs(40, (0, 1, 2, 3), np.random.default_rng(0))
SOFT = np.eye(4, dtype=np.float32)[Y] * 0.9 + 0.025
SWITCHES = tuple(ResearchCodeConfig.model_fields)
SMALL = {
    "rounds": 0,
    "local_baseline": False,
    "partition": {"clients": 4},
    "clients": {"models": ["mlp"]},
    "teacher": {"model": "mlp", "consistency": 5.0},
    "method": {"local_epochs": 1, "server_epochs": 1, "distill_epochs": 1},
}


def parse(*switches: str, **tables) -> ExperimentConfig:
    return ExperimentConfig.parse({"research_code": dict.fromkeys(switches, True)}, tables, SMALL)


def distilled(departures: Departures | None = None, targets: np.ndarray = SOFT, epochs: int = 1, **options):
    """Return the weights of a fresh MLP after distillation."""
    learner = TorchLearner("mlp", departures=departures, **options)
    learner.distill(X, targets, epochs=epochs, rng=stream(0, "distill"))
    return learner.state()


def same(a, b) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in a)


def weights(run, client: str = "client-0"):
    return run.models[client].state()


# --- known_groups ---


def test_known_groups_searches_for_as_many_clusters_as_there_are_groups():
    assert parse().method.n_clusters is None
    assert parse("known_groups", partition={"groups": 3}).method.n_clusters == 3
    run = run_experiment(parse("known_groups", partition={"groups": 3}))
    assert len(run.clustering.clusters) == 3


def test_known_groups_is_not_written_as_a_number_so_that_it_can_be_switched_off():
    resolved = parse("known_groups").to_dict()
    assert resolved["method"].get("n_clusters") is None
    assert ExperimentConfig.parse(resolved).method.n_clusters == 2
    assert ExperimentConfig.parse({"research_code": {"known_groups": False}}, resolved).method.n_clusters is None


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"partition": {"name": "iid"}}, "known_groups: a 'iid' partition has no groups"),
        ({"method": {"name": "local", "local_epochs": 1}}, "known_groups: 'local' searches for no clusters"),
        (
            {"method": {"n_clusters": 3}},
            "method.n_clusters: research_code.known_groups makes it 2, as partition.groups; leave out one",
        ),
    ],
)
def test_known_groups_needs_groups_and_clusters_and_no_other_number(tables, message):
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.parse({"research_code": {"known_groups": True}}, tables)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- consistency_without_gradient ---


def test_the_weight_of_a_consistency_term_without_gradient_changes_nothing():
    constant = Departures(consistency_without_gradient=True)
    unweighted = distilled(consistency=0, epochs=3)
    assert same(distilled(constant, consistency=5, epochs=3), unweighted)  # every step's gradient is the same
    assert not same(distilled(consistency=5, epochs=3), unweighted)


# --- second_softmax ---


def test_a_second_softmax_makes_certain_targets_nearly_uniform():
    flat = second_softmax(torch.eye(4))
    torch.testing.assert_close(flat.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(flat[0, 0] / flat[0, 1], torch.tensor(np.e, dtype=torch.float32))


def test_the_second_softmax_comes_after_the_temperature_and_changes_the_targets_only():
    departure = Departures(second_softmax=True)
    one_hot = np.eye(4, dtype=np.float32)[SOFT.argmax(axis=1)]
    by_hand = second_softmax(torch.from_numpy(one_hot)).numpy()
    assert same(distilled(departure, temperature=0), distilled(targets=by_hand))
    assert not same(distilled(departure), distilled())


# --- shared_initialisation ---


def test_an_initial_seed_replaces_the_initialisation_and_no_other_draw():
    def built(rng_key: str, seed: int | None):
        rng = stream(0, rng_key)
        learner = TorchLearner("mlp", departures=Departures(initial_seed=seed))
        learner.distill(X, SOFT, epochs=0, rng=rng)
        return learner.state(), rng.random()

    (a, after_a), (b, after_b) = built("a", 7), built("b", 7)
    assert same(a, b)
    (own_a, after_own_a), (own_b, _) = built("a", None), built("b", None)
    assert not same(own_a, own_b)
    assert after_a == after_own_a != after_b


def test_clients_of_one_architecture_share_their_initialisation_and_the_teacher_does_not():
    def initial_seeds(*switches: str, **tables) -> set[int | None]:
        config = parse(*switches, clients={"models": ["mlp", "cnn-s"]}, **tables)
        assert config.method.teacher.departures.initial_seed is None
        return {client.learner.departures.initial_seed for client in build_federation(config).clients}

    (shared,) = initial_seeds("shared_initialisation")
    assert shared is not None
    assert initial_seeds("shared_initialisation", seed=1) != {shared}
    assert initial_seeds() == {None}


# --- ordered_public ---


def test_ordered_batches_are_full_and_in_order():
    assert [part.tolist() for part in ordered_batches(7, 3)] == [[0, 1, 2], [3, 4, 5]]
    assert [part.tolist() for part in ordered_batches(6, 3)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="2 samples do not fill a batch of 3"):
        next(ordered_batches(2, 3))


def test_ordered_distillation_never_sees_the_tail_and_fit_does():
    ordered = Departures(ordered_distillation=True)
    other_tail = SOFT.copy()
    other_tail[32:] = 0.25
    assert same(distilled(ordered, epochs=2), distilled(ordered, other_tail, epochs=2))
    assert not same(distilled(epochs=2), distilled(targets=other_tail, epochs=2))

    def fitted(departures: Departures | None):
        learner = TorchLearner("mlp", departures=departures)
        learner.fit(X, Y, n_classes=4, epochs=1, rng=stream(0, "fit"))
        return learner.state()

    assert same(fitted(ordered), fitted(None))


# --- frozen_augmentation ---


def test_frozen_augmentation_moves_every_image_once_and_leaves_who_holds_what():
    def images(*switches: str, **tables) -> tuple[list[np.ndarray], list[np.ndarray]]:
        built = build_federation(parse(*switches, **tables))
        labels = [part.labels for client in built.clients for part in (client.private, client.test)]
        inputs = [part.inputs for client in built.clients for part in (client.private, client.test)]
        return [built.public.inputs, *inputs], labels

    (plain, labels), (moved, same_labels) = images(), images("frozen_augmentation")
    for before, after in zip(plain, moved, strict=True):
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert set(np.unique(after)) <= set(np.unique(before))  # pixels are moved, not mixed
        changed = (after != before).any(axis=(1, 2, 3)).mean()
        assert changed > 0.8
    assert all(np.array_equal(a, b) for a, b in zip(labels, same_labels, strict=True))
    again, _ = images("frozen_augmentation")
    assert all(np.array_equal(a, b) for a, b in zip(moved, again, strict=True))
    assert not np.array_equal(images("frozen_augmentation", seed=1)[0][0], moved[0])


def test_frozen_augmentation_takes_the_place_of_the_fresh_one():
    def augmentations(*switches: str) -> set[object]:
        fresh = {"models": ["mlp"], "augment": "flip-crop"}
        config = parse(*switches, clients=fresh, teacher={"model": "mlp", "augment": "flip-crop"})
        learners = [config.method.teacher, *(client.learner for client in build_federation(config).clients)]
        return {learner.augment for learner in learners}

    assert None not in augmentations()
    assert augmentations("frozen_augmentation") == {None}


# --- all of them ---


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_alone_reaches_the_run_and_reads_back(switch):
    config = parse(switch, partition={"groups": 3})
    assert config.to_dict()["research_code"] == {name: name == switch for name in SWITCHES}
    assert ExperimentConfig.parse(config.to_dict()).to_dict() == config.to_dict()
    plain = run_experiment(parse(partition={"groups": 3}))
    assert not same(weights(run_experiment(config)), weights(plain))


def test_switches_are_off_by_default():
    assert not any(parse().research_code.model_dump().values())
    assert TorchLearner("mlp").departures == Departures()


def test_trees_and_linear_models_take_no_departures():
    tables = {"clients": {"models": ["random-forest"]}}
    assert repr(build_federation(parse(*SWITCHES, **tables)).clients[0].learner).startswith("SklearnLearner")


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("research-code/")])
def test_the_presets_are_those_of_the_paper_with_every_switch_on(name):
    preset = read_preset(name)
    assert preset.pop("research_code") == dict.fromkeys(SWITCHES, True)
    assert preset == read_preset(name.replace("research-code", "paper"))
    assert preset["clients"]["distill_learning_rate"] == preset["teacher"]["learning_rate"] == 1e-4
