"""Decoded data sets on disk, so that nothing is decoded twice.

An entry is a directory of ``.npy`` files that are mapped into memory: many processes share one copy, and what
is not touched is not read. Its name ends in a fingerprint of the files that it came from. It is written beside
its place and renamed when it is complete, so that a reader sees all of it or nothing, whoever was killed or
came second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_FORMAT = 1  # raise it when decoding changes, and old entries are not read any more
_UNFINISHED = ".unfinished-"
_DAY = 24 * 3600


@dataclass(frozen=True, eq=False)
class Blocks:
    """An array that arrives in `blocks` along its first axis, so that it is never in memory as a whole."""

    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    blocks: Iterable[npt.NDArray[Any]]

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Blocks:
        """One block: an array that is there already."""
        return cls(array.shape, array.dtype, [array])


Build = Callable[[], Mapping[str, Blocks]]


def cache_directory() -> Path:
    """Return ``$COSMOSFL_CACHE``, ``$XDG_CACHE_HOME/cosmosfl`` or ``~/.cache/cosmosfl``."""
    if chosen := os.environ.get("COSMOSFL_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cosmosfl"


def fingerprint(files: Iterable[Path]) -> str:
    """Return a digest of paths, sizes and modification times: another one if any file changed."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def cached(label: str, key: Sequence[object], state: str, names: Sequence[str], build: Build) -> dict[str, Any]:
    """Return the arrays `names` of an entry, built and stored first if it is not there.

    Parameters
    ----------
    label
        Start of the entry's name, for people.
    key
        What the entry is: the source and how it is read.
    state
        The state of the source, such as its `fingerprint`. Entries of the same key and other states are
        removed.
    names
        The arrays to return; `build` makes these.
    build
        Called when there is no entry.

    Returns
    -------
    dict
        Name -> read-only array, mapped from disk; in memory, with a warning, if the cache cannot be written.
    """
    place = _place(label, key, state)
    found = _read(place, names)
    if found is not None:
        return found
    try:
        _write(place, names, build)
        with _writing():
            return _open(place, names)
    except _CannotWriteError as error:
        warnings.warn(
            f"the cache cannot be written ({error}); the inputs of {label!r} are kept in memory and "
            "decoded again next time; set COSMOSFL_CACHE to a directory that can",
            stacklevel=2,
        )
    return in_memory(build())


def is_cached(label: str, key: Sequence[object], state: str) -> bool:
    """Say whether there is an entry."""
    return _place(label, key, state).is_dir()


def _place(label: str, key: Sequence[object], state: str) -> Path:
    identity = hashlib.blake2b(json.dumps([_FORMAT, *key], default=str).encode(), digest_size=8).hexdigest()
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in label)
    return cache_directory() / f"{safe}-{identity}-{state}"


class _CannotWriteError(Exception):
    """About the cache, whereas an `OSError` while an entry is built is about the source."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _CannotWriteError(str(error)) from error


def _open(place: Path, names: Sequence[str]) -> dict[str, Any]:
    return {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names}


def _read(place: Path, names: Sequence[str]) -> dict[str, Any] | None:
    try:
        return _open(place, names)
    except (OSError, ValueError, EOFError):  # not there, or cut off by a crash of the machine
        return None


def _write(place: Path, names: Sequence[str], build: Build) -> None:
    with _writing():
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place.parent)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=place.parent))
    try:
        for name, array in build().items():
            _write_array(unfinished / f"{name}.npy", array)
        with _writing():
            _publish(unfinished, place, names)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, place: Path, names: Sequence[str]) -> None:
    """Move a complete entry to its place, unless another process put the same there; remove outdated ones."""
    if place.exists() and _read(place, names) is None:
        _discard(place)
    try:
        unfinished.rename(place)
    except OSError:
        if not place.is_dir():
            raise
    for old in place.parent.glob(f"{place.name.rpartition('-')[0]}-*"):
        if old != place:
            _discard(old)


def _write_array(path: Path, array: Blocks) -> None:
    # Through write() and not through a memory map: on a full disk the former raises and the latter kills.
    dtype = np.dtype(array.dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
    with _writing():
        file = path.open("wb")
    with file:
        with _writing():
            np.lib.format.write_array_header_1_0(file, header)
        for block in array.blocks:
            with _writing():
                file.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
        with _writing():
            file.flush()


def in_memory(arrays: Mapping[str, Blocks]) -> dict[str, Any]:
    """Put the blocks together, without a cache; the arrays are read-only as those from the cache are."""
    result = {}
    for name, array in arrays.items():
        result[name] = np.empty(array.shape, array.dtype)
        start = 0
        for block in array.blocks:
            result[name][start : start + len(block)] = block
            start += len(block)
        result[name].flags.writeable = False
    return result


def _discard(entry: Path) -> None:
    """Remove an entry so that nobody sees half of it."""
    doomed = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=entry.parent))
    with suppress(OSError):  # somebody else removed it
        entry.rename(doomed / entry.name)
    shutil.rmtree(doomed, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Remove what processes that were killed left behind, once nobody can be writing it any more."""
    for path in directory.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY:
                shutil.rmtree(path, ignore_errors=True)
