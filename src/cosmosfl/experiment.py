"""From a configuration to a federation, and from there to a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from cosmosfl.config import ExperimentConfig, TorchConfig
from cosmosfl.data.partition import Partition, grouped_dirichlet, take_public
from cosmosfl.data.sets import InputArray, IntArray, PublicSet
from cosmosfl.data.sources import Source, load_source
from cosmosfl.distillation import flip_crop
from cosmosfl.engine.local import LocalEngine
from cosmosfl.events import Callback
from cosmosfl.learners import TorchLearner
from cosmosfl.protocol import Client, ClientId
from cosmosfl.randomness import draw_seed, stream
from cosmosfl.run import Run

LARGEST_RATIO = 100
"""Of the standard deviations of two features, for torch models."""


@dataclass(frozen=True, eq=False)
class Federation:
    """Clients, public set, number of classes, and the true group of each client where there are groups."""

    clients: list[Client]
    public: PublicSet
    n_classes: int
    groups: dict[ClientId, int] | None


def build_federation(config: ExperimentConfig) -> Federation:
    """Load the data, split it, and give every client its model. The labels of the public set end here.

    Raises
    ------
    ValueError
        If the data set is not known or cannot be split as configured.
    """
    source = _source(config, config.dataset.name)
    public, rest = _public_set(config, source)
    partition = partition_of(config, source.train_labels[rest], source.test_labels)
    settings = config.partition
    ids = [f"client-{i:0{len(str(settings.clients - 1))}d}" for i in range(settings.clients)]
    models = config.clients.models
    turn = stream(config.seed, "client models").permutation(settings.clients)
    shared = config.research_code.shared_initialisation
    initial_seed = draw_seed(stream(config.seed, "shared initialisation")) if shared else None
    clients = [
        Client(
            ids[i],
            config.research_code.learner(config.clients, models[turn[i] % len(models)], initial_seed),
            source.train_inputs[rest[partition.train[i]]],
            source.train_labels[rest[partition.train[i]]],
            test=(source.test_inputs[partition.test[i]], source.test_labels[partition.test[i]]),
        )
        for i in range(settings.clients)
    ]
    groups = None if partition.groups is None else dict(zip(ids, partition.groups, strict=True))
    return Federation(clients, public, len(source.class_names), groups)


def check_models(config: ExperimentConfig, federation: Federation) -> None:
    """Refuse models and settings for images where inputs are rows of features, and warn of features torch suffers from.

    Raises
    ------
    ValueError
        That names the key.
    """
    shape = federation.public.inputs.shape[1:]
    if len(shape) != 1:
        return
    deviations = federation.public.inputs.std(axis=0, dtype=np.float64)
    low, high = min(deviations[deviations > 0], default=1.0), deviations.max()
    if high > LARGEST_RATIO * low and any(isinstance(client.learner, TorchLearner) for client in federation.clients):
        warnings.warn(
            f"the standard deviations of the features of {config.dataset.name!r} go from {low:.3g} to {high:.3g}, and "
            "torch models learn badly from such: standardise the columns of the table",
            stacklevel=2,
        )
    wanted: list[tuple[str, TorchConfig, str]] = [
        ("clients.models", config.clients, model) for model in config.clients.models
    ]
    if getattr(config.method, "teacher", None) is not None:
        wanted.append(("teacher.model", config.teacher, config.teacher.model))
    for key, training, model in wanted:
        if training.augment != "none":
            raise ValueError(
                f"{key.split('.')[0]}.augment: {training.augment!r}, and {config.dataset.name!r} holds tables; only "
                "images can be augmented"
            )
        learner = training.learner(model)
        if isinstance(learner, TorchLearner):
            try:
                learner.build(shape, federation.n_classes, np.random.default_rng(0))
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{key}: {model!r}, and {config.dataset.name!r} holds tables: {error}") from error


def partition_of(config: ExperimentConfig, train_labels: IntArray, test_labels: IntArray) -> Partition:
    """Split labels (n,) among the clients as configured; flwr_datasets is needed for all but the paper's partition.

    Raises
    ------
    ValueError
        If they cannot be split like this.
    """
    settings = config.partition
    rng = stream(config.seed, "partition")
    split: Callable[..., Partition]
    if settings.name == "grouped-dirichlet":
        options = settings.options()
        split = partial(grouped_dirichlet, n_groups=options.pop("groups"), **options)
    else:
        from cosmosfl.data.flower_partitioners import partition_by_name  # takes seconds to import

        split = partial(partition_by_name, settings.name, **settings.options())
    limit, test_limit = _limit(settings.samples_per_client), _limit(settings.test_samples_per_client)
    result = split(train_labels, test_labels, n_clients=settings.clients, samples_per_client=limit, rng=rng)
    return replace(result, test=tuple(part[:test_limit] for part in result.test))


def _limit(samples: int | Literal["all"]) -> int | None:
    return None if samples == "all" else samples


def _source(config: ExperimentConfig, name: str) -> Source:
    source = load_source(name, config.dataset.data_dir)
    if not config.research_code.frozen_augmentation:
        return source
    if source.train_inputs.ndim == 2:
        raise ValueError(f"research_code.frozen_augmentation: {name!r} holds tables; only images can be augmented")
    return replace(
        source,
        train_inputs=augmented_once(source.train_inputs, stream(config.seed, "frozen augmentation", name, "train")),
        test_inputs=augmented_once(source.test_inputs, stream(config.seed, "frozen augmentation", name, "test")),
    )


def augmented_once(images: InputArray, rng: np.random.Generator) -> InputArray:
    """Return images (n, channels, height, width), each mirrored and shifted once; see `flip_crop`."""
    generator = torch.Generator().manual_seed(draw_seed(rng))
    result = np.empty_like(images)
    for start in range(0, len(images), 4096):  # as floats, which padding needs, all would take four times the memory
        part = torch.tensor(images[start : start + 4096], dtype=torch.float32)
        result[start : start + 4096] = flip_crop(part, generator).numpy()
    return result


def _public_set(config: ExperimentConfig, source: Source) -> tuple[PublicSet, IntArray]:
    """Return the public set, whose labels end here, and the indices of the training samples that are left."""
    settings, rng = config.dataset, stream(config.seed, "public set")
    if settings.public is None:
        inputs = source.train_inputs
        public, rest = take_public(source.train_labels, settings.public_fraction, rng)
    else:
        other = _source(config, settings.public)
        inputs = other.train_inputs
        if inputs.shape[1:] != source.train_inputs.shape[1:]:
            raise ValueError(
                f"dataset.public: inputs of {settings.public!r} have the shape {inputs.shape[1:]}; expected "
                f"{source.train_inputs.shape[1:]}, as in {settings.name!r}"
            )
        if source.feature_names is not None and other.feature_names is not None:
            differ = sorted(set(source.feature_names) ^ set(other.feature_names))
            if differ:
                raise ValueError(
                    f"dataset.public: {', '.join(map(repr, differ[:8]))} are columns of one of {settings.public!r} and "
                    f"{settings.name!r} only; expected the same columns"
                )
            inputs = inputs[:, [other.feature_names.index(name) for name in source.feature_names]]
        public, rest = rng.permutation(len(inputs)), np.arange(len(source.train_labels))
    return PublicSet(inputs[public[: _limit(settings.public_samples)]]), rest


def run_experiment(
    config: ExperimentConfig, federation: Federation | None = None, callbacks: Sequence[Callback] = ()
) -> Run:
    """Run what a configuration describes, on this machine.

    Parameters
    ----------
    config
        The configuration.
    federation
        Built from it beforehand, and checked with `check_models`, to say what is wrong before anything is written.
    callbacks
        Called with every event.
    """
    if federation is None:
        federation = build_federation(config)
        check_models(config, federation)
    engine = LocalEngine(callbacks, workers=config.workers, threads=config.threads)
    run = engine.run(
        config.method,
        federation.clients,
        federation.public,
        config.rounds,
        seed=config.seed,
        n_classes=federation.n_classes,
        local_baseline=config.local_baseline,
    )
    return replace(run, config=config.to_dict(), groups=federation.groups, dataset=config.dataset.name)
