"""Cells in worker processes, each a run directory; what is finished is not run again.

A comparison is a directory:

=================== =================================================================================================
``comparison.json`` what is compared: methods, seeds, axes, cells, what was left out and why
``cells/NAME/``     the run directory of a cell (`cosmosfl.store`); without models, unless they were asked for, and
                    without ``report.html``, which ``cosmosfl report`` makes
``cells/NAME/error.json`` why a cell failed; it is run again the next time
=================== =================================================================================================

Everything else there is made of these by `cosmosfl.comparison.tables` and `cosmosfl.comparison.page`.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cosmosfl.comparison.grid import GridError
from cosmosfl.comparison.plan import Plan
from cosmosfl.config import ExperimentConfig
from cosmosfl.engine.pool import Pool, WorkerDiedError, n_workers
from cosmosfl.experiment import build_federation, run_experiment
from cosmosfl.layers import NOT_DECIDING, flat
from cosmosfl.store import RunDirectory, RunDirectoryError, write_atomically

SCHEMA = 1
FILE_NAME = "comparison.json"
State = Literal["finished", "failed", "begun", "missing"]
OnDone = Callable[[str, str | None], None]
"""on_done(cell, error): a cell is done; error is None if it is finished."""


@dataclass(frozen=True)
class _Job:
    """What a worker has to know of a cell."""

    path: Path
    config: Mapping[str, Any]
    save_models: bool


def cell_state(path: Path) -> State:
    """Say how far the cell in a directory is."""
    for name, state in (("summary.json", "finished"), ("error.json", "failed"), ("config.toml", "begun")):
        if (path / name).is_file():
            return state  # type: ignore[return-value]
    return "missing"


def open_comparison(plan: Plan, out: Path) -> None:
    """Make the directory of a comparison, or take up an earlier one, and write what is compared.

    Raises
    ------
    GridError
        If cells are finished there that have another configuration; nothing is written then.
    RunDirectoryError
        If the directory holds something else.
    """
    if out.is_file():
        raise RunDirectoryError(f"{out} is a file; expected a directory to write the comparison to")
    if out.is_dir() and any(out.iterdir()) and not (out / FILE_NAME).is_file():
        raise RunDirectoryError(f"{out} is not empty and holds no {FILE_NAME}; choose another directory")
    _check_finished(plan, out)
    (out / "cells").mkdir(parents=True, exist_ok=True)
    grid = plan.grid
    content = {
        "schema": SCHEMA,
        "title": grid.title,
        "reference": grid.reference,
        "moment": grid.moment,
        "metric": grid.metric,
        "methods": grid.methods,
        "seeds": grid.seeds,
        "axes": [{"name": axis.name, "values": dict(axis.values)} for axis in grid.axes],
        "cells": [
            {"name": cell.name, "method": cell.method, "seed": cell.seed, "labels": cell.labels} for cell in plan.cells
        ],
        "left_out": [asdict(entry) for entry in plan.left_out],
        "notes": grid.notes,
    }
    write_atomically(out / FILE_NAME, json.dumps(content, indent=1) + "\n")


def run_cells(
    plan: Plan,
    out: Path,
    *,
    workers: int | Literal["auto"] = "auto",
    save_models: bool = False,
    on_done: OnDone = lambda cell, error: None,
) -> None:
    """Run the cells that are not finished. An error of one is recorded in its directory, and the others go on.

    Parameters
    ----------
    plan, out
        As `open_comparison` took them.
    workers
        Processes. Whole cells run side by side where there are at least as many as workers; else they run one after
        the other, each with all workers. The results are the same.
    save_models
        Keep every cell's models.
    on_done
        Called after each cell, in the order of the plan.
    """
    waiting = [cell for cell in plan.cells if cell_state(out / "cells" / cell.name) != "finished"]
    n = n_workers(workers, 10**9)
    side_by_side = n if len(waiting) >= n else 1
    jobs = [
        _Job(
            out / "cells" / cell.name,
            {**cell.config.to_dict(), "workers": 1 if side_by_side > 1 else n},
            save_models,
        )
        for cell in waiting
    ]
    names = [cell.name for cell in waiting]
    with _locked(out), Pool(side_by_side) as pool:
        at = 0
        while at < len(jobs):
            try:
                for error in pool.imap(run_cell, jobs[at:], names[at:]):
                    on_done(names[at], error)
                    at += 1
            except WorkerDiedError as error:
                on_done(names[at], _record_error(jobs[at].path, error))
                at += 1


def run_cell(job: _Job) -> str | None:
    """Run a cell; return its error in one line, or None."""
    if cell_state(job.path) == "finished":  # before the worker of another cell died, which took this one's along
        return None
    try:
        config = ExperimentConfig.parse(job.config)
        directory = RunDirectory.create(job.path, config.to_dict(), overwrite=True)
        (job.path / "error.json").unlink(missing_ok=True)
        run = run_experiment(config, build_federation(config), [directory.record])
        if job.save_models:
            run.finish(directory)
        else:
            with suppress(OSError):  # files of an earlier attempt are not ours to judge
                (job.path / "models").rmdir()
            directory.write_summary(run.summary())
    except Exception as error:
        return _record_error(job.path, error)
    return None


def _record_error(path: Path, error: Exception) -> str:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    message = " ".join(f"{error}{notes}".split()) or type(error).__name__
    content = {
        "error": message,
        "type": type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
    }
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "error.json", json.dumps(content, indent=1) + "\n")
    return message


def _check_finished(plan: Plan, out: Path) -> None:
    """Refuse to take a finished cell for one of another configuration."""
    changed: dict[str, list[str]] = {}
    for cell in plan.cells:
        path = out / "cells" / cell.name
        if cell_state(path) == "finished":
            before, now = _deciding(RunDirectory(path).config()), _deciding(cell.config.to_dict())
            keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            if keys:
                key = keys[0]
                more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
                was, will = ("its default" if v is None else repr(v) for v in (before.get(key), now.get(key)))
                changed.setdefault(f"{'.'.join(key)} was {was} and is {will} now{more}", []).append(cell.name)
    if changed:
        found = "; ".join(f"{names[0]}: {what}" for what, names in changed.items())
        n = sum(map(len, changed.values()))
        raise GridError(
            f"{out}: {n} finished {'cell has' if n == 1 else 'cells have'} another configuration ({found}); choose "
            "another directory with --out, or remove what is to be run again from its cells/"
        )


def _deciding(config: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return what decides about the result, without what is None: TOML has no null."""
    return {path: value for path, value in flat(config) if value is not None and path not in NOT_DECIDING}


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second command out of the same cells: two of them would write into each other's files."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunDirectoryError(f"{out}: another cosmosfl compare is at work there; wait for it") from None
        yield


def read_error(path: Path) -> str:
    """Return why the cell in a directory failed, in one line."""
    content = json.loads((path / "error.json").read_text(encoding="utf-8"))
    return str(content["error"])


def last_round(path: Path) -> int | None:
    """Return the round of the last thing measured in a cell that is being run; None before the first."""
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 1000))
            lines: Sequence[bytes] = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):  # cut off at its beginning, or not yet at its end
            return int(json.loads(line)["round"])
    return None
