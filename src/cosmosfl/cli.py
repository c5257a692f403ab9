"""The command line; thin. ``cosmosfl --help``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cosmosfl import __version__
from cosmosfl.commands.comparison import compare, tune
from cosmosfl.commands.federation import app as federation_app
from cosmosfl.commands.terminal import (
    ClientsOption,
    ConfigOption,
    DataDirOption,
    DatasetOption,
    PresetOption,
    SeedOption,
    SetOption,
    err,
    errors_in_one_line,
    nested,
    new_directory,
    out,
)

if TYPE_CHECKING:
    from cosmosfl.config import ExperimentConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated learning in which only predictions cross the wire.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Look at data before training on them.")
app.add_typer(data_app, name="data")
app.add_typer(federation_app, name="federation")


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        err.print("interrupted; what was measured so far is in metrics.jsonl")
        raise typer.Exit(130) from None


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def run(
    config: ConfigOption = None,
    set: SetOption = None,
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    client_models: Annotated[
        str | None, typer.Option(help="The clients' models (cosmosfl models), such as cnn-s,mlp.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method (cosmosfl methods).")] = None,
    clients: ClientsOption = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds after the first.")] = None,
    seed: SeedOption = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that train side by side, or auto.  \\[default: one per CPU]")
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory.  \\[default: a new one in runs/]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Time a few steps, say what the run would cost, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the run directory only.")] = False,
) -> None:
    """Run a federation on this machine. Without options: ten clients with digits, four kinds of models.

    The command line has precedence over the file, the file over the preset, and that over the defaults.
    """
    with errors_in_one_line():
        from cosmosfl.console import LiveProgress, outcome_table
        from cosmosfl.experiment import build_federation, check_models, run_experiment
        from cosmosfl.store import RunDirectory

        options = {
            "dataset.name": dataset,
            "dataset.data_dir": str(data_dir) if data_dir else None,
            "clients.models": client_models.split(",") if client_models else None,
            "method.name": method,
            "partition.clients": clients,
            "rounds": rounds,
            "seed": seed,
            "workers": int(workers) if workers and workers.isdigit() else workers,
        }
        resolved = _resolve(options, set, config, preset)
        federation = build_federation(resolved)
        check_models(resolved, federation)
        if dry_run:
            from cosmosfl.console import cost_table
            from cosmosfl.cost import estimate

            out.print(cost_table(estimate(resolved, federation)))
            return
        where = out_dir or new_directory(resolved.dataset.name, resolved.method.name)
        directory = RunDirectory.create(where, resolved.to_dict(), overwrite=overwrite)
        if not quiet:
            out.print(
                f"{resolved.method.name} on {resolved.dataset.name}: {len(federation.clients)} clients, "
                f"{len(federation.public)} public samples, {federation.n_classes} classes, {resolved.rounds} rounds "
                f"after the first, seed {resolved.seed}",
                highlight=False,
            )
        progress = None if quiet else LiveProgress(out)
        with _interruptible(), progress or nullcontext():
            watchers: list[Any] = [directory.record, *([progress] if progress else [])]
            result = run_experiment(resolved, federation, watchers)
            report_path = result.finish(directory)
    if quiet:
        print(where)
        return
    out.print()
    if table := outcome_table(result):
        out.print(table)
    summary = result.summary()
    traffic = summary["bytes"]
    if result.clusters:
        index = summary["adjusted_rand_index"]
        found = "" if index is None else f" (adjusted Rand index against the true groups {index:.2f})"
        out.print(f"clusters    {len(result.clusters)}{found}", highlight=False)
    out.print(
        f"traffic     {traffic['uplink_per_client_round'] / 1024:.1f} KiB up and "
        f"{traffic['downlink_per_client_round'] / 1024:.1f} KiB down per client and round\n"
        f"time        {summary['wall_seconds']:.1f} s, without the local baseline\n"
        f"report      {report_path}",
        highlight=False,
        soft_wrap=True,
    )
    out.print(
        f"models      cosmosfl.load({str(where)!r}, trusted=True).model({next(iter(result.models))!r})",
        highlight=False,
        soft_wrap=True,
    )


@data_app.command()
def show(
    config: ConfigOption = None,
    set: SetOption = None,
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_dir: DataDirOption = None,
    clients: ClientsOption = None,
    seed: SeedOption = None,
    picture: Annotated[Path | None, typer.Option("--out", "-o", help="Also draw it, in this .html file.")] = None,
) -> None:
    """Show who holds what: the samples of each class that every client would train on in such a run."""
    with errors_in_one_line():
        if picture is not None and picture.suffix != ".html":  # or a slip would replace the file of --config
            raise ValueError(f"--out: {str(picture)!r}; expected a name that ends in .html")
        from cosmosfl.console import class_headings, holdings_table
        from cosmosfl.data.sources import load_source
        from cosmosfl.experiment import build_federation
        from cosmosfl.report.holdings import FEW_CLASSES, Holdings, holdings_facts, holdings_page
        from cosmosfl.store import write_atomically

        options = {
            "dataset.name": dataset,
            "dataset.data_dir": str(data_dir) if data_dir else None,
            "partition.clients": clients,
            "seed": seed,
        }
        resolved = _resolve(options, set, config, preset)
        federation = build_federation(resolved)
        names = load_source(resolved.dataset.name, resolved.dataset.data_dir).class_names
        holdings = Holdings.of(federation, names)
        facts = holdings_facts(resolved, federation, names)
        if picture is not None:
            page = holdings_page(holdings, resolved.dataset.name, [f"{key}: {fact}" for key, fact in facts.items()])
            write_atomically(picture, page.encode("utf-8", "replace").decode())
    for key, fact in facts.items():
        out.print(f"{key:<12}{escape(fact)}", highlight=False, soft_wrap=True)
    if len(names) <= FEW_CLASSES and class_headings(names) != list(names):
        numbered = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        out.print(f"{'classes':<12}{escape(numbered)}", highlight=False, soft_wrap=True)
    out.print()
    out.print(holdings_table(holdings))
    if picture is not None:
        out.print(f"\npicture     {escape(str(picture))}", highlight=False, soft_wrap=True)


app.command()(compare)
app.command()(tune)


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A finished run.")]) -> None:
    """Rebuild the report of a run from its files."""
    with errors_in_one_line():
        from cosmosfl.report.page import write_report
        from cosmosfl.store import RunDirectory

        print(write_report(RunDirectory.open(directory)))


@app.command()
def methods() -> None:
    """List the methods and their hyper-parameters."""
    from cosmosfl.methods import METHODS

    table = _table("method", "what it does", "hyper-parameters (method.KEY) and defaults")
    for name, method in METHODS.items():
        keys = ", ".join(f"{key}={field.default}" for key, field in method.model_fields.items() if key != "teacher")
        table.add_row(name, method.summary, keys)
    out.print(table)


@app.command()
def datasets() -> None:
    """List the data sets."""
    from cosmosfl.data.sources import SOURCES

    table = _table("dataset", "what it is")
    for name, entry in SOURCES.items():
        table.add_row(name, entry.summary)
    out.print(table)


@app.command()
def models() -> None:
    """List the models that can be had by name, for clients and for the server."""
    from cosmosfl.learners import LEARNERS

    table = _table("model", "library", "what it is")
    for name, entry in LEARNERS.items():
        table.add_row(name, entry.library, entry.summary)
    out.print(table)


@app.command()
def presets(
    show: Annotated[str | None, typer.Argument(help="Print this preset, to read or to copy.")] = None,
) -> None:
    """List the presets, or print one."""
    from cosmosfl.config import presets as all_presets
    from cosmosfl.naming import unknown

    known = all_presets()
    if show is not None:
        with errors_in_one_line():
            if show not in known:
                raise ValueError(unknown("preset", show, known))
        print(known[show], end="")
        return
    table = _table("preset", "what it is, and what it costs")
    for name, text in known.items():
        lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
        table.add_row(name, " ".join(line.removeprefix("#").strip() for line in lines))
    out.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])
    return table


def _resolve(
    options: dict[str, Any], assignments: list[str] | None, config: Path | None, preset: str | None
) -> ExperimentConfig:
    """Return the configuration: options (None: not given), then the file, the preset, and the defaults."""
    from cosmosfl.config import ExperimentConfig, parse_assignments, read_preset, read_toml
    from cosmosfl.layers import for_method
    from cosmosfl.methods import METHODS

    given = [
        nested({key: value for key, value in options.items() if value is not None}),
        parse_assignments(assignments or []),
    ]
    files = [read_toml(config) if config else {}, read_preset(preset) if preset else {}]

    def named(layer: dict[str, Any]) -> Any:
        table = layer.get("method", {})
        return table.get("name") if isinstance(table, dict) else None

    name = next((found for layer in [*given, *files] if (found := named(layer))), None)
    if isinstance(name, str) and name in METHODS:  # a preset for one method serves others too
        files = [layer if named(layer) in (None, name) else for_method(layer, name) for layer in files]
    return ExperimentConfig.parse(*given, *files)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    app()
