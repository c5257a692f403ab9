"""From a configuration to a federation, and from there to a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits

from cosmosfl.config import ExperimentConfig
from cosmosfl.data.partition import grouped_dirichlet, take_public
from cosmosfl.data.sets import PublicSet
from cosmosfl.data.sources import load_source
from cosmosfl.events import Callback
from cosmosfl.protocol import Client, ClientId
from cosmosfl.randomness import stream
from cosmosfl.run import Run


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
    source = load_source(config.dataset.name)
    settings = config.partition
    public, rest = take_public(source.train_labels, config.dataset.public_fraction, stream(config.seed, "public set"))
    partition = grouped_dirichlet(
        source.train_labels[rest],
        source.test_labels,
        n_clients=settings.clients,
        n_groups=settings.groups,
        alpha=settings.alpha,
        mixing=settings.mixing,
        samples_per_client=settings.samples_per_client,
        rng=stream(config.seed, "partition"),
    )
    ids = [f"client-{i:0{len(str(settings.clients - 1))}d}" for i in range(settings.clients)]
    models = config.clients.models
    turn = stream(config.seed, "client models").permutation(settings.clients)
    clients = [
        Client(
            ids[i],
            config.clients.learner(models[turn[i] % len(models)]),
            source.train_inputs[rest[partition.train[i]]],
            source.train_labels[rest[partition.train[i]]],
            test=(source.test_inputs[partition.test[i]], source.test_labels[partition.test[i]]),
        )
        for i in range(settings.clients)
    ]
    groups = None if partition.groups is None else dict(zip(ids, partition.groups, strict=True))
    return Federation(clients, PublicSet(source.train_inputs[public]), len(source.class_names), groups)


def run_experiment(
    config: ExperimentConfig, federation: Federation | None = None, callbacks: Sequence[Callback] = ()
) -> Run:
    """Run what a configuration describes, in this process.

    Parameters
    ----------
    config
        The configuration.
    federation
        Built from it beforehand, to be able to say what is wrong before anything is written.
    callbacks
        Called with every event.
    """
    federation = federation or build_federation(config)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with threadpool_limits(config.threads):
            run = config.method.fit(
                federation.clients,
                federation.public,
                config.rounds,
                seed=config.seed,
                n_classes=federation.n_classes,
                local_baseline=config.local_baseline,
                callbacks=callbacks,
            )
    finally:
        torch.set_num_threads(threads)
    return dataclasses.replace(run, config=config.to_dict(), groups=federation.groups, dataset=config.dataset.name)
