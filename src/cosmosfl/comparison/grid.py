"""What is compared: methods × seeds × points of a grid, each cell with a validated configuration of its own.

All methods get the same data, models, rounds and epochs, unless settings of one method say otherwise. From the first to
the last precedence, a cell's configuration comes from

1. the cell: seed and method; no `local_baseline`, since ``local`` is a method of the comparison;
2. the point of the grid;
3. what was set by hand (``--set``, ``--data-dir``);
4. the method's own settings: ``--tuned DIR``, then ``[methods.NAME]`` of the grid file;
5. ``--config``, then the grid file;
6. a preset, that of the point if it has one.

`cosmosfl.layers.for_method` says what of such a layer concerns which method.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cosmosfl.config import ConfigError, ExperimentConfig, read_preset
from cosmosfl.evaluation.metrics import Moment
from cosmosfl.layers import Layer, check_method_keys, for_method
from cosmosfl.methods import METHODS
from cosmosfl.methods.local import Local

Labels = tuple[str | None, ...]
"""A place in the grid, a label per axis; None where the axis has no effect on the method."""
Metric = Literal["top1", "top5"]

_SET_BY_COMPARISON = {
    "seed": "the seeds are given with --seeds",
    "local_baseline": "'local' is a method of every comparison",
    "workers": "the number of processes is given with --workers",
    "method": "the methods are given with --methods, their settings as method.KEY",
    "method.name": "the methods are given with --methods",
}
_LONGEST_NAME = 120


class GridError(ConfigError):
    """A grid that cannot run: all that is wrong with it, in one line."""


@dataclass(frozen=True)
class Axis:
    """Something that varies.

    Attributes
    ----------
    name
        A key of the configuration (``partition.alpha``), ``preset``, or the name of a table of variants.
    levels
        Label -> partial configuration, which may name a `preset`.
    values
        Label -> what stands in tables: the number where it is one, else the label.
    """

    name: str
    levels: Mapping[str, Layer]
    values: Mapping[str, float | int | str]

    @classmethod
    def of_key(cls, key: str, values: Sequence[Any]) -> Axis:
        """Return the axis of a key of the configuration, or of ``preset``.

        Raises
        ------
        GridError
            If the comparison sets this key itself, or there are no values or two that are the same.
        """
        if not isinstance(values, list | tuple) or not values:
            raise GridError(f"grid: {key}: {values!r}; expected a list of values")
        if key in _SET_BY_COMPARISON:
            raise GridError(f"grid: {key}: {_SET_BY_COMPARISON[key]}")
        if not all(key.split(".")):
            raise GridError(f"grid: {key!r}; expected a key of the configuration, such as partition.alpha")
        levels: dict[str, Layer] = {}
        labelled: dict[str, float | int | str] = {}
        for value in values:
            label = value_label(value)
            if label in levels:
                raise GridError(f"grid: {key}: {label} stands there twice; expected different values")
            levels[label] = _nested(key, value)
            labelled[label] = value if isinstance(value, int | float) and not isinstance(value, bool) else label
        return cls(key, levels, labelled)

    @classmethod
    def of_variants(cls, name: str, variants: Mapping[str, Layer]) -> Axis:
        """Return the axis of named partial configurations.

        Raises
        ------
        GridError
            If there are none, or one sets what the comparison sets itself.
        """
        if not variants:
            raise GridError(f"variants: {name}: no variants; expected tables [variants.{name}.LABEL]")
        for label, layer in variants.items():
            check_layer(layer, f"variants.{name}.{label}")
        return cls(name, variants, {label: label for label in variants})


@dataclass(frozen=True)
class Cell:
    """One run: a method at a point of the grid with a seed. `name` is that of its directory."""

    name: str
    method: str
    seed: int
    labels: Labels
    config: ExperimentConfig


@dataclass(frozen=True)
class Grid:
    """What is compared. `cells` are the runs that it takes.

    Attributes
    ----------
    methods
        Names, ``local`` among them.
    seeds
        One run each.
    axes
        What else varies.
    by_name
        Whether the methods were named one by one, so that one that cannot run is an error.
    assigned
        Set by hand.
    files
        Partial configurations below it; the first has precedence.
    preset
        Name of one below those; None for none.
    own
        Method -> its own partial configurations; the first has precedence.
    reference
        The method that the others are compared with.
    title, moment, metric
        For the report: its headline, which of a client's models counts, and ``top1`` or ``top5``.
    notes
        What a reader has to know.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    axes: tuple[Axis, ...] = ()
    by_name: bool = True
    assigned: Layer = field(default_factory=dict)
    files: tuple[Layer, ...] = ()
    preset: str | None = None
    own: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)
    reference: str = Local.name
    title: str = ""
    moment: Moment = "client"
    metric: Metric = "top1"
    notes: tuple[str, ...] = ()

    def points(self) -> Iterator[tuple[str, ...]]:
        """Yield the points: a label per axis; one empty point where nothing varies."""
        yield from itertools.product(*(axis.levels for axis in self.axes))

    def cells(self) -> list[Cell]:
        """Return all runs, seed by seed, so that whatever is finished after an interruption can be compared.

        Raises
        ------
        GridError
            With everything that is wrong with any of them.
        """
        levels = (level for axis in self.axes for level in axis.levels.values())
        check_method_keys(self.methods, (self.assigned, *self.files, *levels))
        cells, errors = [], _Errors()
        taken: set[str] = set()
        for seed in self.seeds:
            done: set[tuple[str, Labels]] = set()
            for point in self.points():
                for method in self.methods:
                    labels = self.labels_for(method, point)
                    if (method, labels) in done:
                        continue
                    done.add((method, labels))
                    name = self._name(method, labels, seed, taken)
                    try:
                        cells.append(Cell(name, method, seed, labels, self.config(method, seed, labels)))
                    except ConfigError as error:
                        errors.add(str(error), name)
        errors.raise_if_any(len(cells) + len(errors))
        return cells

    def labels_for(self, method: str, point: Sequence[str]) -> Labels:
        """Return a point without the axes that have no effect on a method."""
        return tuple(
            label if self._has_effect(axis, method) else None for axis, label in zip(self.axes, point, strict=True)
        )

    def config(self, method: str, seed: int, labels: Labels) -> ExperimentConfig:
        """Return the configuration of a cell.

        Raises
        ------
        ConfigError
            If it is not valid.
        """
        levels = [dict(axis.levels[label]) for axis, label in zip(self.axes, labels, strict=True) if label is not None]
        presets = [level.pop("preset") for level in levels if "preset" in level]
        if len(presets) > 1:
            raise ConfigError(f"grid: two presets at once, {' and '.join(map(str, presets))}; expected one")
        preset = presets[0] if presets else self.preset
        layers: list[Layer] = [
            *(for_method(layer, method) for layer in (*levels, self.assigned)),
            *self.own.get(method, ()),
            *(for_method(layer, method) for layer in self.files),
            for_method(read_preset(preset), method) if preset else {},
        ]
        cell = {"seed": seed, "local_baseline": False, "workers": 1, "method": {"name": method}}
        return ExperimentConfig.parse(cell, *layers)

    def _has_effect(self, axis: Axis, method: str) -> bool:
        levels = []
        for level in axis.levels.values():
            effective = for_method(level, method)
            if "teacher" not in METHODS[method].model_fields:
                effective.pop("teacher", None)
            levels.append({key: value for key, value in effective.items() if value != {}})
        return len(levels) == 1 or any(level != levels[0] for level in levels)

    def _name(self, method: str, labels: Labels, seed: int, taken: set[str]) -> str:
        titles = axis_titles([axis.name for axis in self.axes])
        parts = [f"{titles[axis.name]}={label}" for axis, label in zip(self.axes, labels, strict=True) if label]
        whole = "_".join([method, *parts, f"seed={seed}"])
        name = re.sub(r"[^A-Za-z0-9.+=_-]+", "-", whole)
        if len(name) > _LONGEST_NAME or name.casefold() in taken:
            name = f"{name[:_LONGEST_NAME]}-{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"
        taken.add(name.casefold())
        return name


class _Errors:
    """Messages, and which cells have them."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.found.values()))

    def add(self, message: str, cell: str) -> None:
        self.found.setdefault(message, []).append(cell)

    def raise_if_any(self, n_cells: int) -> None:
        if not self.found:
            return
        lines = []
        for message, names in self.found.items():
            more = f" and {len(names) - 2} more" if len(names) > 3 else ""
            where = "" if len(names) == n_cells else f" (cells {', '.join(names[: 2 if more else 3])}{more})"
            lines.append(message + where)
        raise GridError("; ".join(lines))


def _method_keys(method: str) -> set[str]:
    return set(METHODS[method].model_fields) - {"teacher"}


def axis_titles(names: Sequence[str]) -> dict[str, str]:
    """Return short titles of axes: the last part of a name, where only one ends like this."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)}


def value_label(value: Any) -> str:
    """Return a value in as few letters as will tell it from others: ``0.1``, ``cnn-s+mlp``, ``true``."""
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case list() | tuple():
            return "+".join(map(value_label, value))
        case dict():
            return json.dumps(value)
    return str(value)


def _nested(key: str, value: Any) -> Layer:
    for step in reversed(key.split(".")):
        value = {step: value}
    assert isinstance(value, dict)
    return value


def check_layer(layer: Layer, where: str) -> None:
    """Refuse, in what is written for a comparison, what the comparison sets itself."""
    for key, reason in _SET_BY_COMPARISON.items():
        table, _, name = key.rpartition(".")
        parent = layer.get(table, {}) if table else layer
        if key == "method" and isinstance(layer.get("method", {}), dict):
            continue
        if isinstance(parent, dict) and name in parent:
            raise GridError(f"{where}: {key}: {reason}")
