"""Names whose modules are imported when they are first used.

torch and scikit-learn each take longer to import than a small party works in a round, and a party on Flower is a new
process for every message. So they are imported by whoever uses them: packages export the classes that need them with
`exported`, and a `Registry` imports an entry when it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

Value = TypeVar("Value")


def exported(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` (PEP 562) of a package with names from modules that are imported late.

    The package repeats the imports under ``if TYPE_CHECKING``, for type checkers and editors.

    Parameters
    ----------
    package
        Its ``__name__``.
    modules
        Name -> the module that it is defined in.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = _imported(modules[name], name)
        setattr(sys.modules[package], name, value)  # from now on it is found without a call
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names


class Registry(MutableMapping[str, Value]):
    """A dict in which each value is imported when it is asked for; its keys need no import.

    Parameters
    ----------
    where
        Key -> module and name of the value there.
    """

    def __init__(self, where: Mapping[str, tuple[str, str]]) -> None:
        self._get: dict[str, Callable[[], Value]] = {key: partial(_imported, *place) for key, place in where.items()}

    def __getitem__(self, key: str) -> Value:
        return self._get[key]()

    def __setitem__(self, key: str, value: Value) -> None:
        self._get[key] = lambda: value

    def __delitem__(self, key: str) -> None:
        del self._get[key]

    def __contains__(self, key: object) -> bool:
        return key in self._get

    def __iter__(self) -> Iterator[str]:
        return iter(self._get)

    def __len__(self) -> int:
        return len(self._get)


def _imported(module: str, name: str) -> Any:
    return getattr(import_module(module), name)
