"""The server's side on Flower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy.typing as npt
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from cosmosfl.data.sets import PublicSet
from cosmosfl.flower.client import Given, value_of
from cosmosfl.flower.strategy import MethodStrategy
from cosmosfl.methods import Cosmos
from cosmosfl.protocol import Method


class Options(BaseModel):
    """What the run configuration of the app may set."""

    model_config = ConfigDict(frozen=True, strict=True)

    rounds: NonNegativeInt
    seed: NonNegativeInt
    min_clients: PositiveInt
    quorum: Annotated[float, Field(gt=0, le=1)]
    round_timeout: PositiveFloat
    wait: NonNegativeFloat
    directory: str


def server_app(
    *,
    public: Given[PublicSet | npt.ArrayLike],
    n_classes: int,
    method: Given[Method | None] = None,
    rounds: int = 3,
    directory: str | Path | None = None,
    seed: int = 0,
    min_clients: int = 2,
    quorum: float = 0.5,
    round_timeout: float = 3600.0,
    wait: float = 600.0,
    workers: int | Literal["auto"] = 1,
    threads: int = 1,
) -> ServerApp:
    """Return the Flower app of the server: it runs a method with the parties that come, and writes a run directory.

    The keys ``rounds``, ``seed``, ``min-clients``, ``quorum``, ``round-timeout``, ``wait`` and ``directory`` of the run
    configuration (in pyproject.toml, or ``flwr run --run-config "rounds=5"``) take the place of the arguments.

    Parameters
    ----------
    public
        The unlabelled public set, or a function of the app's `flwr.app.Context` that returns it.
    n_classes
        C; all parties' labels are 0..C-1.
    method
        What to run, `Cosmos()` by default; any method that exchanges predictions.
    rounds
        Rounds after the first training.
    directory
        Of the run. A directory that holds an unfinished federation is taken up where it was.
    seed
        The one seed.
    min_clients, quorum, wait, workers, threads
        As `MethodStrategy` takes them.
    round_timeout
        Deadline of a round, in seconds.

    Returns
    -------
    flwr.serverapp.ServerApp
        Give it a name in a module, and name that in the app's pyproject.toml.
    """
    app = ServerApp()
    given = {
        "rounds": rounds,
        "seed": seed,
        "min_clients": min_clients,
        "quorum": quorum,
        "round_timeout": round_timeout,
        "wait": wait,
        "directory": None if directory is None else str(directory),
    }

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        set_now = {key: context.run_config[as_key(key)] for key in given if as_key(key) in context.run_config}
        options = checked_options({**given, **set_now})
        strategy = MethodStrategy(
            value_of(method, context) or Cosmos(),
            public(context) if callable(public) else public,
            n_classes=n_classes,
            directory=options.directory,
            seed=options.seed,
            min_clients=options.min_clients,
            quorum=options.quorum,
            wait=options.wait,
            workers=workers,
            threads=threads,
        )
        strategy.start(grid, num_rounds=options.rounds, timeout=options.round_timeout)

    return app


def as_key(name: str) -> str:
    """Return a name as the run configuration has it."""
    return name.replace("_", "-")


def checked_options(values: Mapping[str, object]) -> Options:
    """Return the options.

    Raises
    ------
    ValueError
        If one is missing or out of its range.
    """
    try:
        return Options(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = as_key(str(first["loc"][0]))
        raise ValueError(
            f"{key}: {first['input']!r}; {first['msg'].lower()}; set it with flwr run --run-config '{key}=...'"
        ) from None
