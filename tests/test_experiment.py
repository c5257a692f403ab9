"""From a configuration to clients and a public set."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.config import ExperimentConfig
from cosmosfl.data.sources import source_from_arrays
from cosmosfl.experiment import build_federation


def federation(**tables):
    return build_federation(ExperimentConfig.parse(tables))


def fingerprints(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_the_demonstration_is_what_the_readme_says():
    built = federation()
    assert len(built.clients) == 10
    assert {len(client.private) for client in built.clients} == {15}
    assert len(built.public) == 430
    assert sorted(built.groups.values()) == [0] * 5 + [1] * 5
    kinds = {repr(client.learner) for client in built.clients}
    assert len(kinds) == 4


def test_public_private_and_test_samples_do_not_overlap():
    built = federation(partition={"samples_per_client": "all"})
    parts = [built.public.inputs, *(c.private.inputs for c in built.clients), *(c.test.inputs for c in built.clients)]
    seen = [print_ for part in parts for print_ in fingerprints(part)]
    assert len(seen) == 1797  # all of digits, none of it twice
    assert len(set(seen)) == len(seen)


def test_models_are_dealt_out_evenly_in_an_order_of_the_seed():
    def models(seed: int) -> list[str]:
        tables = {"partition": {"clients": 6}, "clients": {"models": ["mlp", "cnn-s"]}, "seed": seed}
        return [client.learner.model for client in federation(**tables).clients]

    assert sorted(models(0)) == ["cnn-s"] * 3 + ["mlp"] * 3
    assert models(0) == models(0)
    assert len({tuple(models(seed)) for seed in range(5)}) > 1


def test_limits_are_kept():
    built = federation(
        dataset={"public_samples": 50}, partition={"samples_per_client": 3, "test_samples_per_client": 4}
    )
    assert len(built.public) == 50
    assert {(len(c.private), len(c.test)) for c in built.clients} == {(3, 4)}


@pytest.mark.parametrize("name", ["iid", "dirichlet", "pathological", "quantity-skew"])
def test_partitions_of_flower_have_no_groups(name):
    built = federation(partition={"name": name, "clients": 10, "samples_per_client": "all"})
    assert built.groups is None
    assert sum(len(c.private) for c in built.clients) <= 647


def test_the_public_set_can_be_another_data_set(monkeypatch):
    from cosmosfl import experiment

    rng = np.random.default_rng(0)

    def source(name: str, shape: tuple[int, ...]):
        images = rng.integers(0, 255, (60, *shape), dtype=np.uint8)
        labels = np.arange(60) % 3
        return source_from_arrays(name, images, labels, images, labels)

    sources = {
        "ours": source("ours", (1, 8, 8)),
        "theirs": source("theirs", (1, 8, 8)),
        "large": source("large", (1, 9, 9)),
    }
    monkeypatch.setattr(experiment, "load_source", lambda name, data_dir: sources[name])
    partition = {"clients": 2, "groups": 1, "samples_per_client": "all"}
    clients = {"models": ["mlp"]}
    built = federation(dataset={"name": "ours", "public": "theirs"}, partition=partition, clients=clients)
    assert set(fingerprints(built.public.inputs)) == set(fingerprints(sources["theirs"].train_inputs))
    assert sum(len(c.private) for c in built.clients) == 60  # nothing is set aside
    with pytest.raises(
        ValueError, match=r"dataset.public: inputs of 'large' have the shape \(1, 9, 9\); expected \(1, 8, 8\)"
    ):
        federation(dataset={"name": "ours", "public": "large"}, partition=partition, clients=clients)


def test_the_seed_decides_the_split():
    def first(seed: int) -> bytes:
        return federation(seed=seed).clients[0].private.inputs.tobytes()

    assert first(0) == first(0) != first(1)
