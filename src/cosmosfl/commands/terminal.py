"""What the commands have in common: options, output, errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)

# what decides about data, alike for every command
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file; see a run's config.toml.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set one key, such as partition.alpha=1. Repeatable."),
]
PresetOption = Annotated[str | None, typer.Option("--preset", "-p", help="A preset (cosmosfl presets).")]
DatasetOption = Annotated[str | None, typer.Option(help="Data set (cosmosfl datasets), or a directory.")]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Where data sets lie.  \\[default: the variable COSMOSFL_DATA]")
]
ClientsOption = Annotated[int | None, typer.Option(help="Number of clients.")]
SeedOption = Annotated[int | None, typer.Option(help="The one seed.")]


_MENDABLE: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, ArithmeticError)


@contextmanager
def errors_in_one_line(also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what the user can mend into one line and exit status 2; anything else is a bug and keeps its traceback."""
    mendable = (*_MENDABLE, *also)
    try:
        yield
    except mendable as error:
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        err.print(f"[red]error:[/] {escape(' '.join(f'{error}{where}'.split()))}", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from None


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Return dotted keys as nested tables."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        table, _, name = key.rpartition(".")
        (result.setdefault(table, {}) if table else result)[name] = value
    return result


def new_directory(dataset: str, method: str) -> Path:
    """Return the path of a run directory that is not there yet."""
    stem = f"{datetime.now():%Y-%m-%d-%H%M%S}-{Path(dataset).name}-{method}"
    candidates = (Path("runs") / (stem if n == 1 else f"{stem}-{n}") for n in range(1, 1000))
    return next(path for path in candidates if not path.exists())
