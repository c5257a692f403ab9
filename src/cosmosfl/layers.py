"""Partial configurations where several methods are run with the same ones: in a comparison, or a search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cosmosfl.config import ConfigError, known_keys
from cosmosfl.methods import METHODS
from cosmosfl.naming import unknown

Layer = Mapping[str, Any]
"""A partial configuration: nested tables."""
NOT_DECIDING = frozenset({("workers",), ("dataset", "data_dir")})
"""Paths of keys that change no result: with other values, what was run is still the same."""


def for_method(layer: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return what a layer, written for any method, says to this one, so that all can be run with the same layers.

    A ``[method]`` table without a name is meant for every method that has its keys. One with a name, as presets have,
    is meant for that method; others take its numbers of epochs only, which are the budget that all share. The name
    itself is left out, and so is `research_code.known_groups` for methods that do not search for clusters.

    Raises
    ------
    ConfigError
        If the method is no table.
    """
    table = layer.get("method", {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"method: {table!r}; expected a table of settings, such as method.local_epochs = 5")
    own = known_keys(["method"], method)[1:]
    named = table.get("name")
    if named == method:
        kept = {key: value for key, value in table.items() if key != "name"}
    else:
        kept = {k: v for k, v in table.items() if k in own and (named is None or k.endswith("_epochs"))}
    result = {**layer, "method": kept}
    if "n_clusters" not in own and isinstance(switches := layer.get("research_code"), Mapping):
        result["research_code"] = {key: value for key, value in switches.items() if key != "known_groups"}
    return result


def choose_methods(names: str) -> tuple[tuple[str, ...], bool]:
    """Return the methods that ``"all"``, or names with commas between them, stand for; and whether they were named.

    Raises
    ------
    ConfigError
        If there are none, or one is not known; the message names the nearest.
    """
    if names.strip() == "all":
        return tuple(METHODS), False
    chosen = tuple(dict.fromkeys(filter(None, map(str.strip, names.split(",")))))
    if not chosen:
        raise ConfigError("methods: none; expected 'all', or names with commas between them")
    for name in chosen:
        if name not in METHODS:
            raise ConfigError(unknown("methods", name, ["all", *METHODS]))
    return chosen, True


def check_method_keys(methods: Sequence[str], layers: Iterable[Layer]) -> None:
    """Refuse ``method.*`` keys that none of these methods has: they would be without effect.

    A ``[method]`` table with a name is left to the method of this name.

    Raises
    ------
    ConfigError
        If there is one; the message names the nearest.
    """
    known = sorted({key for method in methods for key in known_keys(["method"], method)[1:]})
    for layer in layers:
        table = layer.get("method", {})
        for key in table if "name" not in table else ():
            if key not in known:
                raise ConfigError(unknown(f"method.{key}", key, known))


def flat(tables: Layer, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the value of every key in nested tables."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key), value
