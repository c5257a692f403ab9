"""A run is a directory. This module is its format; everything else is derived from these files.

==================== ================================================================================================
``config.toml``      the fully resolved configuration
``environment.json`` machine and versions
``metrics.jsonl``    one JSON object per event, appended and flushed as it happens (measurements, traffic, rejections)
``clustering.json``  who learns with whom, and the distances that this was decided on
``summary.json``     the outcome (see `summary`); its keys are stable under one ``schema`` number
``models/``          the personal and the cluster models, in safetensors, with ``index.json``
``report.html``      the picture
==================== ================================================================================================
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.events import Event, Traffic
from cosmosfl.protocol import Clustering, Rejection

SCHEMA = 1
_KINDS: dict[str, type[Measurement] | type[Traffic] | type[Rejection]] = {
    "measurement": Measurement,
    "traffic": Traffic,
    "rejection": Rejection,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class RunDirectoryError(ValueError):
    """A directory that cannot be used as a run directory, or is not one."""


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader finds the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run. `record` is a callback: it writes events while they happen."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False) -> RunDirectory:
        """Make the directory and write configuration and environment.

        Raises
        ------
        RunDirectoryError
            If the directory holds anything and `overwrite` is false, or holds something that is not a run.
        """
        path = Path(path)
        if path.is_file():
            raise RunDirectoryError(f"{path} is a file; expected a directory to write the run to")
        if path.is_dir() and any(path.iterdir()):
            if not overwrite:
                raise RunDirectoryError(f"{path} is not empty; choose another directory or allow overwriting")
            if not (path / "config.toml").is_file():
                raise RunDirectoryError(f"{path} holds files but no config.toml, so it is not a run; not overwritten")
            for name in ("metrics.jsonl", "summary.json", "clustering.json", "report.html"):
                (path / name).unlink(missing_ok=True)
            for file in (path / "models").glob("*"):
                file.unlink()
        (path / "models").mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.toml", tomli_w.dumps(_without_none(config)))
        (path / "metrics.jsonl").touch()
        directory = cls(path)
        directory.write_environment()
        return directory

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open the directory of a finished run.

        Raises
        ------
        RunDirectoryError
            If a file that every finished run has is missing.
        """
        path = Path(path)
        if not path.is_dir():
            raise RunDirectoryError(f"{path} does not exist; expected the directory of a run")
        for name in ("config.toml", "metrics.jsonl", "summary.json"):
            if not (path / name).is_file():
                raise RunDirectoryError(f"{path} has no {name}; expected the directory of a finished run")
        return cls(path)

    def record(self, event: Event) -> None:
        """Append a measurement, traffic or rejection to metrics.jsonl; write a clustering to clustering.json."""
        if isinstance(event, Clustering):
            self._write_json("clustering.json", _clustering_to_json(event))
        elif type(event) in _NAMES:
            assert isinstance(event, Measurement | Traffic | Rejection)
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": _NAMES[type(event)], **asdict(event)}) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write_json("summary.json", summary)

    def history(self) -> list[Measurement | Traffic | Rejection]:
        """Read metrics.jsonl."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [_event_from_json(json.loads(line)) for line in lines]

    def forget_after(self, n_events: int) -> list[Measurement | Traffic | Rejection]:
        """Cut metrics.jsonl off after so many events, which are returned: what came later will happen again."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:n_events]
        write_atomically(path, "".join(lines))
        return self.history()

    def config(self) -> dict[str, Any]:
        """Read config.toml."""
        return tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))

    def environment(self) -> dict[str, Any]:
        """Read environment.json."""
        return self._read_json("environment.json")

    def write_environment(self) -> None:
        """Write environment.json; at the end of a run again, when all that it used is imported."""
        write_atomically(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """Read summary.json."""
        return self._read_json("summary.json")

    def clustering(self) -> Clustering | None:
        """Read clustering.json; None in a run that had no clusters."""
        if not (self.path / "clustering.json").is_file():
            return None
        data = self._read_json("clustering.json")
        return Clustering(
            clients=tuple(data["clients"]),
            distances=np.array(data["distances"], dtype=np.float64),
            metric=data["metric"],
            threshold=data["threshold"],
            clusters=tuple(tuple(members) for members in data["clusters"]),
        )

    def _read_json(self, name: str) -> dict[str, Any]:
        content = json.loads((self.path / name).read_text(encoding="utf-8"))
        assert isinstance(content, dict)
        return content

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Return machine and versions: what a reader needs to know to repeat or to doubt a number."""
    packages = ("cosmosfl", "numpy", "torch", "scikit-learn", "skops", "safetensors", "lightgbm", "xgboost-cpu")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    torch = sys.modules.get("torch")  # who has not imported it does not use it
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name(0) if torch and torch.cuda.is_available() else None,
        "packages": versions,
    }


def _clustering_to_json(clustering: Clustering) -> dict[str, Any]:
    return {**asdict(clustering), "distances": np.round(clustering.distances, 6).tolist()}


def _event_from_json(line: dict[str, Any]) -> Measurement | Traffic | Rejection:
    kind = _KINDS[line.pop("event")]
    return kind(**line)


def _without_none(value: Any) -> Any:
    """TOML has no null: leave such keys out."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_without_none(v) for v in value]
    return value
