"""Before anything is trained: which cells can run, and everything that is wrong with those that cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cosmosfl.comparison.grid import Cell, Grid, GridError, Labels, axis_titles
from cosmosfl.config import ExperimentConfig
from cosmosfl.experiment import build_federation, check_models
from cosmosfl.protocol import NotApplicableError


@dataclass(frozen=True)
class LeftOut:
    """A method that cannot run at a place in the grid, with these seeds, and why."""

    method: str
    labels: Labels
    seeds: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """The cells of a grid that can run, and what was left out since it cannot."""

    grid: Grid
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...] = ()


def make_plan(grid: Grid, progress: Callable[[int, int], None] | None = None) -> Plan:
    """Validate every cell, build each different federation once, and ask every method whether it can run there.

    Parameters
    ----------
    grid
        What is to be compared.
    progress
        Called with the number of federations built so far and of all.

    Raises
    ------
    GridError
        With all that is wrong, with any cell: a configuration that is not valid, data that cannot be had or split, and
        methods that cannot run if they were named (with ``all`` these are left out).
    """
    cells = grid.cells()
    by_data: dict[str, list[Cell]] = {}
    for cell in cells:
        by_data.setdefault(_data_key(cell.config), []).append(cell)
    broken: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for n, sharing in enumerate(by_data.values()):
        if progress:
            progress(n, len(by_data))
        try:
            federation = build_federation(sharing[0].config)
        except (ValueError, OSError, ImportError) as error:
            broken.setdefault(str(error), []).append(sharing[0].name)
            continue
        for cell in sharing:
            try:
                check_models(cell.config, federation)
                cell.config.method.prepare(federation.clients)
            except NotApplicableError as error:
                reasons[cell.name] = str(error)
            except ValueError as error:
                broken.setdefault(str(error), []).append(cell.name)
    if broken:
        raise GridError("; ".join(f"{message} (as in cell {names[0]})" for message, names in broken.items()))
    left_out = _grouped([cell for cell in cells if cell.name in reasons], reasons)
    if left_out and grid.by_name:
        found = "; ".join(f"{where(grid, entry)}: {entry.reason}" for entry in left_out)
        raise GridError(f"methods: {len(reasons)} of {len(cells)} cells cannot run: {found}")
    return Plan(grid, tuple(cell for cell in cells if cell.name not in reasons), left_out)


def where(grid: Grid, entry: LeftOut) -> str:
    """Return the method and the place in words: ``fedavg at models=cnn-s+mlp``."""
    place = describe_labels([axis.name for axis in grid.axes], entry.labels)
    few = f" with seed {', '.join(map(str, entry.seeds))}" if len(entry.seeds) < len(grid.seeds) else ""
    return f"{entry.method}{f' at {place}' if place else ''}{few}"


def describe_labels(axes: Sequence[str], labels: Labels) -> str:
    """Return a place in a grid in words: ``alpha=1, models=cnn-s+mlp``; empty if nothing varies there."""
    titles = axis_titles(axes)
    return ", ".join(f"{titles[name]}={label}" for name, label in zip(axes, labels, strict=True) if label is not None)


def _data_key(config: ExperimentConfig) -> str:
    """Return what decides about data and kinds of models.

    How these are trained is left out: it does not decide about whether a method can run, and with settings tuned for
    each method there would be as many federations to build as cells.
    """
    tables = config.to_dict()
    kept = {key: tables[key] for key in ("seed", "dataset", "partition", "research_code")}
    return json.dumps({**kept, "models": tables["clients"]["models"]}, sort_keys=True)


def _grouped(cells: Sequence[Cell], reasons: dict[str, str]) -> tuple[LeftOut, ...]:
    """Return one entry for all seeds of a method at a place, with the reason of the first."""
    places: dict[tuple[str, Labels], list[Cell]] = {}
    for cell in cells:
        places.setdefault((cell.method, cell.labels), []).append(cell)
    return tuple(
        LeftOut(method, labels, tuple(cell.seed for cell in own), reasons[own[0].name])
        for (method, labels), own in places.items()
    )
