"""Grids from files and options: what a user writes, checked, with errors of one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from cosmosfl.comparison.grid import Axis, Grid, GridError, Metric, check_layer
from cosmosfl.config import ExperimentConfig, parse_assignments, read_toml
from cosmosfl.evaluation.metrics import Moment
from cosmosfl.layers import Layer, choose_methods, flat
from cosmosfl.methods import METHODS
from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.methods.local import Local
from cosmosfl.naming import unknown

FULL = "full"
"""The scale that a grid file itself has."""
OWN_TABLES = ("clients", "teacher")
OWN_KEYS = ("rounds", *OWN_TABLES, "method")
"""What one method may have for itself. Data and seed are the same for all, or pairs would be no pairs."""


class _GridTables(BaseModel):
    """The keys of a grid file that are not those of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    compare: Literal["all"] | tuple[str, ...] = "all"
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    reference: str | None = None
    moment: Moment = "client"
    metric: Metric = "top1"
    preset: str | None = None
    grid: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class GridFile:
    """A grid file that was read: its own keys, and the layers of configuration (that of the scale first)."""

    tables: _GridTables
    axes: Mapping[str, Axis]
    layers: tuple[Layer, ...]
    own: Mapping[str, tuple[Layer, ...]]


def read_grid_file(path: str | Path, scale: str = FULL) -> GridFile:
    """Read a grid file: a configuration in TOML with these keys beside its own.

    ``title``, ``compare`` (``"all"`` or a list of methods), ``seeds``, ``reference``, ``moment``, ``metric``,
    ``preset``; ``[grid]``: a list of values for each key that varies; ``[variants.AXIS.LABEL]``: partial configurations
    to choose between; ``[methods.NAME]``: a method's own hyper-parameters, with tables `clients` and `teacher` and
    `rounds` of its own; ``[scale.NAME]``: all of these again, over those above. Values and variants of an axis are
    replaced as a whole, all else key by key.

    Raises
    ------
    ConfigError
        If it cannot be read, there is no such scale, or a key is not known or has a wrong value.
    """
    content = read_toml(path)
    scales = content.pop("scale", {})
    if not isinstance(scales, dict) or not all(isinstance(overlay, dict) for overlay in scales.values()):
        raise GridError(f"{path}: scale: expected tables [scale.NAME]")
    if scale != FULL and scale not in scales:
        raise GridError(f"{path}: {unknown('scale', scale, [FULL, *scales])}")
    parts = [scales[scale], content] if scale != FULL else [content]
    merged: dict[str, Any] = {}
    layers: list[Layer] = []
    own: dict[str, list[Layer]] = {}
    grid: dict[str, Any] = {}
    for part in reversed(parts):
        for key in part:
            if key not in _GridTables.model_fields and key not in ExperimentConfig.model_fields:
                names = ["scale", *_GridTables.model_fields, *ExperimentConfig.model_fields]
                raise GridError(f"{path}: {unknown(key, key, names)}")
        for key in ("grid", "variants", "methods"):
            if not isinstance(part.get(key, {}), dict):
                raise GridError(f"{path}: {key}: {part[key]!r}; expected a table [{key}]")
        layer = {key: value for key, value in part.items() if key in ExperimentConfig.model_fields}
        check_layer(layer, str(path))
        layers.insert(0, layer)
        given = {key: value for key, value in part.items() if key in _GridTables.model_fields}
        # partition.alpha without quotes is a table `partition`
        grid |= {".".join(path): values for path, values in flat(given.pop("grid", {}))}
        variants = given.pop("variants", {})
        for method, settings in given.pop("methods", {}).items():
            own.setdefault(method, []).insert(0, _own_layer(method, settings, f"{path}: methods.{method}"))
        merged = {**merged, **given, "variants": {**merged.get("variants", {}), **variants}}
    try:
        tables = _GridTables.model_validate({**merged, "grid": grid})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"] if step not in ("literal['all']", "tuple[str, ...]"))
        expected = first["msg"][0].lower() + first["msg"][1:]
        message = f"{path}: {key}: {first['input']!r}; {expected.replace('input should be', 'expected')}"
        raise GridError(message) from None
    axes = [Axis.of_key(key, values) for key, values in tables.grid.items()]
    axes += [Axis.of_variants(name, variants) for name, variants in tables.variants.items()]
    return GridFile(
        tables, {axis.name: axis for axis in axes}, tuple(layers), {m: tuple(found) for m, found in own.items()}
    )


def make_grid(
    file: GridFile | None = None,
    *,
    methods: str | None = None,
    seeds: str | None = None,
    axes: Sequence[str] = (),
    assignments: Sequence[str] = (),
    config: str | Path | None = None,
    preset: str | None = None,
    data_dir: str | Path | None = None,
    tuned: str | Path | None = None,
    reference: str | None = None,
    moment: str | None = None,
    metric: str | None = None,
) -> Grid:
    """Return the grid that options and a grid file describe; options have precedence.

    Parameters
    ----------
    file
        See `read_grid_file`.
    methods
        ``"all"``, or names with commas between them. ``local`` is added if it is missing.
    seeds
        Numbers with commas between them; 0, 1 and 2 by default.
    axes
        ``"partition.alpha=1,5,100"``: see `parse_axis`. One of a name that the file has too takes its place.
    assignments
        ``"partition.alpha=1"``, for every cell.
    config, preset, data_dir
        As of ``cosmosfl run``.
    tuned
        Directory of partial configurations, ``NAME.toml`` for a method, as ``cosmosfl tune`` writes them.
    reference
        The method that the others are compared with; by default ``cosmos``, or else the first one.
    moment, metric
        For the report.

    Raises
    ------
    ConfigError
        One line that says what is wrong.
    """
    tables = file.tables if file else _GridTables()
    compared, by_name = _methods(methods, tables.compare)
    varied = dict(file.axes) if file else {}
    for axis in map(parse_axis, axes):
        varied[axis.name] = axis
    assigned = parse_assignments(assignments)
    check_layer(assigned, "--set")
    if data_dir is not None:
        assigned = {**assigned, "dataset": {**assigned.get("dataset", {}), "data_dir": str(data_dir)}}
    for name in varied:
        if _is_set(assigned, name):
            raise GridError(f"--set {name}: the grid varies it; leave out one of them")
    if preset is not None and any("preset" in level for axis in varied.values() for level in axis.levels.values()):
        raise GridError(f"--preset: {preset!r}; the grid varies the preset, so there can be no other")
    own: dict[str, tuple[Layer, ...]] = {}
    notes = []
    if file:
        for method in file.own:
            if method not in METHODS:
                raise GridError(unknown("methods", method, METHODS))
        own = {method: found for method, found in file.own.items() if method in compared}
    if tuned is not None:
        found, missing = read_tuned(tuned, compared)
        for method, layer in found.items():
            own[method] = (layer, *own.get(method, ()))
        notes.append(f"tuned settings from {tuned}: {', '.join(found)}")
        if missing:
            notes.append(f"no tuned settings for {', '.join(missing)}: {tuned} has no file for them")
    files = (*((read_toml(config),) if config else ()), *(file.layers if file else ()))
    if any(not isinstance(layer.get("method", {}), dict) for layer in files):
        raise GridError(f"{config}: method: expected a table of settings")
    chosen = reference or tables.reference or (Cosmos.name if Cosmos.name in compared else compared[0])
    if chosen not in compared:
        raise GridError(unknown("reference", chosen, compared))
    return Grid(
        methods=compared,
        seeds=_seeds(seeds) if seeds is not None else _different(tables.seeds),
        axes=tuple(varied.values()),
        by_name=by_name,
        assigned=assigned,
        files=files,
        preset=preset or tables.preset,
        own=own,
        reference=chosen,
        title=tables.title,
        moment=_choice("moment", moment, Moment) or tables.moment,
        metric=_choice("metric", metric, Metric) or tables.metric,
        notes=tuple(notes),
    )


def parse_axis(assignment: str) -> Axis:
    """Turn ``"partition.alpha=1,5,100"`` into an axis.

    Values are TOML with commas between them, or a TOML list of values where these are lists themselves
    (``clients.models=[["cnn-s"],["cnn-s","mlp"]]``); what is not TOML is text (``preset=cpu/emnist,cpu/cifar100``).

    Raises
    ------
    GridError
        If it has no ``=``, no key, or no values.
    """
    key, equals, given = assignment.partition("=")
    if not equals or not key.strip() or not given.strip():
        raise GridError(f"--grid {assignment}; expected KEY=VALUE,VALUE, such as partition.alpha=1,5,100")
    values = _toml(f"[{given}]")
    if values is None and not set(given) & set("[]{}"):
        parsed = [(part.strip(), _toml(part)) for part in given.split(",") if part.strip()]
        values = [word if value is None else value for word, value in parsed]
    if values is None:
        raise GridError(f"--grid {assignment}; {given} is not TOML: expected values with commas between them")
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return Axis.of_key(key.strip(), values)


def read_tuned(directory: str | Path, methods: Iterable[str]) -> tuple[dict[str, Layer], list[str]]:
    """Return the tuned settings of methods, and the methods that the directory has no file for.

    ``local`` and all others are looked for as ``NAME.toml``.

    Raises
    ------
    ConfigError
        If there is no such directory, it has no file for any of them, or a file holds more than a method may have for
        itself.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise GridError(f"--tuned: {directory} is no directory; expected one with files METHOD.toml")
    found: dict[str, Layer] = {}
    missing = []
    for method in methods:
        path = directory / f"{method}.toml"
        if not path.is_file():
            missing.append(method)
            continue
        content = read_toml(path)
        for key in content:
            if key not in OWN_KEYS:
                raise GridError(
                    f"{path}: {key}; a method may have {', '.join(OWN_KEYS)} of its own, all else is shared"
                )
        table = content.get("method", {})
        if not isinstance(table, dict) or table.get("name", method) != method:
            raise GridError(f"{path}: method: expected a table of settings of {method!r}")
        found[method] = {**content, "method": {key: value for key, value in table.items() if key != "name"}}
    if not found:
        raise GridError(f"--tuned: {directory} has no file for {', '.join(missing)}; expected METHOD.toml")
    return found, missing


def _methods(option: str | None, compare: Literal["all"] | tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Return the names of the methods, always with ``local``, and whether they were given one by one."""
    listed = compare if compare == "all" else ",".join(compare)
    methods, by_name = choose_methods(listed if option is None else option)
    return tuple(dict.fromkeys([*methods, Local.name])), by_name


def _seeds(option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in option.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise GridError(f"seeds: {option!r}; expected whole numbers with commas between them, such as 0,1,2")
    return _different(tuple(map(int, parts)))


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise GridError(f"seeds: {', '.join(map(str, seeds))}; expected each once")
    return seeds


def _choice(name: str, given: str | None, kind: Any) -> Any:
    if given is not None and given not in kind.__args__:
        raise GridError(unknown(name, given, kind.__args__))
    return given


def _toml(text: str) -> Any:
    """Return a TOML value, or None (which TOML does not have) if the text is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None


def _is_set(layer: Any, key: str) -> bool:
    for step in key.split("."):
        if not isinstance(layer, dict) or step not in layer:
            return False
        layer = layer[step]
    return True


def _own_layer(method: str, settings: Any, where: str) -> Layer:
    """Turn ``[methods.fedprox] mu = 0.1`` into a partial configuration."""
    if not isinstance(settings, dict):
        raise GridError(f"{where}: {settings!r}; expected a table")
    layer: dict[str, Any] = {"method": {}}
    for key, value in settings.items():
        if key in OWN_TABLES or key == "rounds":
            layer[key] = value
        elif isinstance(value, dict):
            raise GridError(f"{where}: {unknown(key, key, OWN_TABLES)}")
        else:
            layer["method"][key] = value
    return layer
