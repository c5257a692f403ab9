"""What clients have to keep between two messages, on disk: memory does not grow with the number of clients."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from cosmosfl.protocol import Client, ClientId, Learner, State, restore_learner


def write_state(path: Path, state: State) -> None:
    """Write arrays to a safetensors file, so that a reader finds the whole of it or nothing.

    Raises
    ------
    TypeError
        If a value is not an array of numbers or bytes.
    """
    arrays = {}
    for key, value in state.items():
        array = np.asarray(value, order="C")
        if array.dtype.kind not in "biuf":
            raise TypeError(f"state {key!r} has dtype {array.dtype}; expected an array of numbers, or bytes as uint8")
        arrays[key] = array
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(arrays, temporary)
    os.replace(temporary, path)


def read_state(path: Path) -> State:
    """Read what `write_state` wrote."""
    state: State = load_file(path)
    return state


class StateFiles:
    """A directory of client states, one file for each client and step; it ends with this object.

    A step reads one file and writes the next, so that one that was cut off can be done again.

    Parameters
    ----------
    clients
        Ids; a client's files are numbered by its place among them, since an id may be no file name.
    directory
        Where to make the directory; by default where temporary files go.
    """

    def __init__(self, clients: Sequence[ClientId], directory: Path | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cosmosfl-states-", dir=directory))
        self._number = {id: n for n, id in enumerate(clients)}
        self._version = dict.fromkeys(clients, 0)
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)

    def current(self, client: ClientId) -> Path | None:
        """Return the file of a client's last step; None before the first."""
        version = self._version[client]
        return self._path(client, version) if version else None

    def following(self, client: ClientId) -> Path:
        """Return the file that the next step is to write."""
        return self._path(client, self._version[client] + 1)

    def advance(self, client: ClientId) -> None:
        """Make the following file the current one."""
        before = self.current(client)
        self._version[client] += 1
        if before is not None:
            before.unlink()

    def _path(self, client: ClientId, version: int) -> Path:
        return self.directory / f"{self._number[client]:06d}-{version:06d}.safetensors"


class StoredModels(Mapping[ClientId, Learner]):
    """The clients' trained learners, read from their state when they are asked for.

    Parameters
    ----------
    clients
        With the learners as they were before the run; they stay as they are.
    states
        Where the trained ones are.
    """

    def __init__(self, clients: Sequence[Client], states: StateFiles) -> None:
        self._learners = {client.id: client.learner for client in clients}
        self._states = states

    def __getitem__(self, client: ClientId) -> Learner:
        learner = copy.deepcopy(self._learners[client])
        if path := self._states.current(client):
            restore_learner(learner, read_state(path))
        return learner

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._learners)

    def __len__(self) -> int:
        return len(self._learners)
