"""What a run leaves behind: models to use, clusters, measurements; in memory or in a directory."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.numpy import load_file, save_file

from cosmosfl.evaluation.metrics import MOMENTS, Measurement, Moment, Summary, at_moment
from cosmosfl.events import Event, Traffic
from cosmosfl.protocol import TRAINING_PREFIX, ClientId, Clustering, Learner, Rejection
from cosmosfl.store import SCHEMA, RunDirectory, RunDirectoryError, write_atomically


@runtime_checkable
class BuiltInLearner(Protocol):
    """A learner that can be made again from its saved state and what it says of itself."""

    def saved_as(self) -> dict[str, Any]:
        """Return its kind and, for kinds with several models, which; names that are built in only, never code."""


class ModelNotLoadedError(RuntimeError):
    """A saved model that was not loaded; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Run:
    """The result of a federation.

    Attributes
    ----------
    config
        Configuration: the method with its hyper-parameters, rounds, seed.
    method, rounds, seed, n_classes
        What was run.
    models
        Each client's own trained model, by id; after a run, read from disk anew each time it is asked for.
    cluster_models
        The server's models, by index into `clusters`.
    clustering
        Who learned with whom and why; None in methods without clusters.
    history
        Measurements, traffic, rejections and the clustering, in the order in which they happened.
    wall_seconds
        Time that the federation took, in seconds, without the local baseline.
    groups
        The true group of each client, where it is known; used for `adjusted_rand_index` only.
    dataset
        Name of the data set, where there is one.
    """

    config: dict[str, Any]
    method: str
    rounds: int
    seed: int
    n_classes: int
    models: Mapping[ClientId, Learner]
    cluster_models: Mapping[int, Learner]
    clustering: Clustering | None
    history: list[Event]
    wall_seconds: float
    groups: Mapping[ClientId, int] | None = None
    dataset: str | None = None
    not_loaded: Mapping[ClientId | int, str] = field(default_factory=dict, repr=False)

    @property
    def clusters(self) -> list[list[ClientId]]:
        """Ids of each cluster's members; empty in methods without clusters."""
        return [list(members) for members in self.clustering.clusters] if self.clustering else []

    @property
    def measurements(self) -> list[Measurement]:
        """All measurements."""
        return [event for event in self.history if isinstance(event, Measurement)]

    @property
    def traffic(self) -> list[Traffic]:
        """Bytes by client and round."""
        return [event for event in self.history if isinstance(event, Traffic)]

    @property
    def rejections(self) -> list[Rejection]:
        """Messages that the server did not accept."""
        return [event for event in self.history if isinstance(event, Rejection)]

    def model(self, id: ClientId) -> Learner:
        """Return the personal model of a client.

        Raises
        ------
        KeyError
            If there is no such client.
        ModelNotLoadedError
            If the run was loaded from a directory without this model.
        """
        if id in self.not_loaded:
            raise ModelNotLoadedError(f"the model of client {id!r} was not loaded: {self.not_loaded[id]}")
        if id not in self.models:
            raise KeyError(f"no client {id!r}; there are {', '.join(self.models)}")
        return self.models[id]

    def cluster_model(self, k: int) -> Learner:
        """Return the server's model of cluster `k`, an index into `clusters`.

        Raises
        ------
        IndexError
            If there is no such cluster model.
        ModelNotLoadedError
            If the run was loaded from a directory without this model.
        """
        if k in self.not_loaded:
            raise ModelNotLoadedError(f"cluster model {k} was not loaded: {self.not_loaded[k]}")
        if k not in self.cluster_models:
            raise IndexError(f"no cluster model {k}; there are {len(self.cluster_models)}")
        return self.cluster_models[k]

    def accuracy(self, moment: Moment = "client", *, round: int | None = None, metric: str = "top1") -> Summary | None:
        """Summarise accuracy over clients, in percent.

        Parameters
        ----------
        moment
            Which model, when: see `cosmosfl.evaluation.metrics`.
        round
            By default the last one.
        metric
            ``"top1"`` or ``"top5"``.

        Returns
        -------
        Summary or None
            None if nothing was measured at that moment.
        """
        return at_moment(self.measurements, moment, round, metric)

    @property
    def adjusted_rand_index(self) -> float | None:
        """Agreement of the clusters with the true groups (1 the same, 0 chance); None where those are not known."""
        if self.groups is None or self.clustering is None:
            return None
        from sklearn.metrics import adjusted_rand_score  # a second to import, for experiments only

        label = {id: k for k, members in enumerate(self.clustering.clusters) for id in members}
        ids = list(label)
        return float(adjusted_rand_score([self.groups[id] for id in ids], [label[id] for id in ids]))

    def summary(self) -> dict[str, Any]:
        """Return the content of summary.json. Accuracies in percent, sizes in bytes, times in seconds."""

        def accuracies(metric: str) -> dict[str, Any]:
            found = {moment: self.accuracy(moment, metric=metric) for moment in MOMENTS}
            return {moment: asdict(summary) if summary else None for moment, summary in found.items()}

        exchanges = max(len(self.traffic), 1)
        return {
            "schema": SCHEMA,
            "method": self.method,
            "dataset": self.dataset,
            "seed": self.seed,
            "rounds": self.rounds,
            "clients": len(self.models) + sum(isinstance(name, str) for name in self.not_loaded),
            "accuracy": accuracies("top1"),
            "accuracy_top5": accuracies("top5"),
            "clusters": self.clusters,
            "threshold": self.clustering.threshold if self.clustering else None,
            "adjusted_rand_index": self.adjusted_rand_index,
            "bytes": {
                "uplink_per_client_round": sum(t.uplink for t in self.traffic) / exchanges,
                "downlink_per_client_round": sum(t.downlink for t in self.traffic) / exchanges,
            },
            "rejections": len(self.rejections),
            "wall_seconds": self.wall_seconds,
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the run to a directory, with a report to look at, and return the path of the report.

        Models are stored without pickle, and without the private samples that refitted models keep for further
        training.

        Raises
        ------
        RunDirectoryError
            If the directory is not empty and `overwrite` is false.
        """
        target = RunDirectory.create(directory, self.config, overwrite=overwrite)
        for event in self.history:
            target.record(event)
        return self.finish(target)

    def finish(self, directory: RunDirectory) -> Path:
        """Write what comes at the end of a run whose events are recorded already: summary, models, report."""
        from cosmosfl.report.page import write_report  # plotly takes half a second to import

        _save_models(self, directory.path / "models")
        directory.write_environment()
        directory.write_summary(self.summary())
        return write_report(directory)


def load(
    directory: str | Path,
    *,
    learners: Mapping[ClientId | int, Learner] | None = None,
    trusted: bool = False,
) -> Run:
    """Load a saved run.

    Parameters
    ----------
    directory
        Where `Run.save` or ``cosmosfl run`` wrote it.
    learners
        Learners to restore those models into that cannot be rebuilt from the files alone: torch modules that are not
        built in, and learners of your own. By client id, or by index for cluster models.
    trusted
        Whether the files come from a place that you trust. scikit-learn models made of compiled parts (trees, nearest
        neighbours) can be crafted to do harm, so they are loaded only from trusted places. Torch, linear and boosting
        models are always loaded.

    Returns
    -------
    Run
        Models that could not be loaded raise `ModelNotLoadedError`, with the reason, when they are asked for.

    Raises
    ------
    RunDirectoryError
        If the directory is not that of a finished run.
    """
    source = RunDirectory.open(directory)
    summary, clustering = source.summary(), source.clustering()
    index = _read_index(source.path / "models")
    entries: dict[ClientId | int, dict[str, Any]] = {**index["clients"], **dict(enumerate(index["cluster_models"]))}
    models: dict[ClientId | int, Learner] = {}
    not_loaded: dict[ClientId | int, str] = {}
    for key, entry in entries.items():
        try:
            models[key] = _load_model(source.path / "models", entry, (learners or {}).get(key), trusted)
        except ModelNotLoadedError as error:
            not_loaded[key] = str(error)
    return Run(
        config=source.config(),
        method=summary["method"],
        rounds=summary["rounds"],
        seed=summary["seed"],
        n_classes=index["n_classes"],
        models={key: model for key, model in models.items() if isinstance(key, str)},
        cluster_models={key: model for key, model in models.items() if isinstance(key, int)},
        clustering=clustering,
        history=[*source.history(), *([clustering] if clustering else [])],
        wall_seconds=summary["wall_seconds"],
        groups=index["groups"],
        dataset=summary["dataset"],
        not_loaded=not_loaded,
    )


def _read_index(directory: Path) -> dict[str, Any]:
    if not (directory / "index.json").is_file():
        raise RunDirectoryError(
            f"{directory.parent} holds no models: the run is not finished, or it is a comparison's cell, which keeps "
            "them with --save-models only"
        )
    content = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _save_models(run: Run, directory: Path) -> None:
    def save(learner: Learner, file: str) -> dict[str, Any]:
        state = {k: np.asarray(v, order="C") for k, v in learner.state().items() if not k.startswith(TRAINING_PREFIX)}
        save_file(state, directory / file)
        return {"file": file, **_describe(learner)}

    index = {
        "n_classes": run.n_classes,
        "groups": dict(run.groups) if run.groups is not None else None,
        # numbered, since the id of a client may be no file name
        "clients": {id: save(m, f"client-{n:04d}.safetensors") for n, (id, m) in enumerate(run.models.items())},
        "cluster_models": [save(m, f"cluster-{k:04d}.safetensors") for k, m in sorted(run.cluster_models.items())],
    }
    write_atomically(directory / "index.json", json.dumps(index, indent=1) + "\n")


def _describe(learner: Learner) -> dict[str, Any]:
    """Return what is needed, beside its state, to make this learner again."""
    if isinstance(learner, BuiltInLearner):
        return learner.saved_as()
    return {"kind": "custom", "type": type(learner).__qualname__}


def _load_model(directory: Path, entry: dict[str, Any], given: Learner | None, trusted: bool) -> Learner:
    state = load_file(directory / entry["file"])
    if entry["kind"] == "sklearn":
        from cosmosfl.learners import SklearnLearner

        if not trusted and (types := SklearnLearner.untrusted_types(state)):
            raise ModelNotLoadedError(
                f"it holds {', '.join(types)}, which a crafted file can use to do harm; if you trust where the files "
                "come from: load(..., trusted=True)"
            )
        if given is None:
            return SklearnLearner.from_state(state)
    learner = copy.deepcopy(given) if given is not None else _rebuild(entry)
    learner.restore(state)
    return learner


def _is_built_in(model: str | None) -> bool:
    """Say whether a name is that of a built-in model, perhaps with a size; no other is looked up for a saved file."""
    from cosmosfl.models import MODELS  # and torch, which whoever loads another kind of model need not load

    name, at, size = (model or "").partition("@")
    return name in MODELS and (not at or re.fullmatch("[1-9][0-9]{0,3}", size) is not None)


def _rebuild(entry: dict[str, Any]) -> Learner:
    from cosmosfl import learners  # each brings its library, so only what is needed

    match entry["kind"]:
        case "torch" if _is_built_in(entry["model"]):
            return learners.TorchLearner(entry["model"])
        case "boosting":
            return learners.BoostingLearner(entry["library"])
        case "torch":
            what = "a torch module that is not built in"
        case _:
            what = f"a {entry['type']}, a learner of your own"
    raise ModelNotLoadedError(f"it is {what}; pass a learner to restore it into: load(..., learners={{id: learner}})")
