"""The command line; thin. ``cosmosfl --help``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cosmosfl import __version__
from cosmosfl.federation_cli import app as federation_app

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
        from cosmosfl.experiment import build_federation, run_experiment
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


@app.command()
def compare(
    grid_file: Annotated[Path | None, typer.Argument(help="Grid file, such as experiments/figure2.toml.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods (cosmosfl methods), such as cosmos,fedmd.  \\[default: all]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="One run for each.  \\[default: 0,1,2]")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", "-g", metavar="KEY=VALUES", help="Vary a key: partition.alpha=1,5,100. Repeatable."),
    ] = None,
    scale: Annotated[str | None, typer.Option(help="Scale of the grid file: full, or a table \\[scale.NAME].")] = None,
    tuned: Annotated[Path | None, typer.Option(help="Directory with settings METHOD.toml of single methods.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Method that the others are compared with.  \\[default: cosmos]")
    ] = None,
    moment: Annotated[str | None, typer.Option(help="Which model counts.  \\[default: client]")] = None,
    metric: Annotated[str | None, typer.Option(help="top1 or top5.  \\[default: top1]")] = None,
    config: ConfigOption = None,
    set: SetOption = None,
    preset: PresetOption = None,
    data_dir: DataDirOption = None,
    workers: Annotated[str | None, typer.Option(help="Processes, or auto.  \\[default: one per CPU]")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory; cells finished there are not run again.")
    ] = None,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep the models of every cell.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run, stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the directory only.")] = False,
) -> None:
    """Run methods × seeds × a grid, test the differences, and write tables and a page. Can be taken up again.

    The exit status is 1 if cells failed; they are run again by the same command.
    """
    with errors_in_one_line():
        from cosmosfl.comparison.console import LiveCells, outcome_tables, plan_lines
        from cosmosfl.comparison.outcome import Comparison
        from cosmosfl.comparison.page import write_page
        from cosmosfl.comparison.plan import make_plan
        from cosmosfl.comparison.reading import FULL, make_grid, read_grid_file
        from cosmosfl.comparison.runner import open_comparison, run_cells
        from cosmosfl.comparison.tables import write_tables
        from cosmosfl.engine.pool import n_workers

        asked: Any = int(workers) if workers and workers.isdigit() else workers or "auto"
        processes = n_workers(asked, n_jobs=10**9)
        if scale is not None and grid_file is None:
            raise ValueError(f"--scale: {scale!r}; without a grid file there is nothing to scale")
        wanted = make_grid(
            read_grid_file(grid_file, scale or FULL) if grid_file else None,
            methods=methods,
            seeds=seeds,
            axes=grid or (),
            assignments=set or (),
            config=config,
            preset=preset,
            data_dir=data_dir,
            tuned=tuned,
            reference=reference,
            moment=moment,
            metric=metric,
        )
        with nullcontext() if quiet else out.status("checking that every cell can run"):
            plan = make_plan(wanted)
        where = out_dir or new_directory(grid_file.stem if grid_file else "comparison", wanted.reference)
        for line in () if quiet else plan_lines(plan):
            out.print(escape(line), highlight=False, soft_wrap=True)
        if dry_run:
            return
        open_comparison(plan, where)
        live, interrupted = LiveCells(out, plan.cells, where / "cells", quiet=quiet), False
        try:
            with live:
                run_cells(plan, where, workers=processes, save_models=save_models, on_done=live.done)
        except KeyboardInterrupt:
            interrupted = True
        comparison = Comparison.read(where)
        notes = write_tables(comparison, where)
        page = write_page(comparison, where)
    if quiet:
        print(where)
    else:
        for table in outcome_tables(comparison):
            out.print()
            out.print(table)
        out.print()
        out.print(f"page        {page}", highlight=False, soft_wrap=True)
        out.print(f"tables      {where / 'tables.md'}, tables.tex, *.csv", highlight=False, soft_wrap=True)
    for note in notes:
        err.print(escape(note), highlight=False, soft_wrap=True)
    for cell in comparison.failed:
        err.print(f"[red]failed[/] {cell.name}: {escape(cell.error or '')}", highlight=False, soft_wrap=True)
    if interrupted:
        done = f"{len(comparison.finished)} of {len(comparison.cells)} cells are finished"
        err.print(f"interrupted; {done}, and the same command with --out {where} goes on", soft_wrap=True)
        raise typer.Exit(130)
    if comparison.failed:
        raise typer.Exit(1)


@app.command()
def tune(
    out_dir: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for METHOD.toml; trials finished there are not run again.")
    ],
    methods: Annotated[str, typer.Option(help="Methods (cosmosfl methods), such as cosmos,fedmd, or all.")] = "all",
    trials: Annotated[int, typer.Option(help="Trials of each method.")] = 5,
    span: Annotated[float, typer.Option(help="Search from the configured rate / SPAN to the rate * SPAN.")] = 10.0,
    validation: Annotated[float, typer.Option(help="Part of each client's private set to validate on.")] = 0.25,
    config: ConfigOption = None,
    set: SetOption = None,
    preset: PresetOption = None,
    data_dir: DataDirOption = None,
    seed: SeedOption = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that train side by side, or auto.  \\[default: one per CPU]")
    ] = None,
) -> None:
    """Search the learning rate of each method, alike for all, on a part of the training data. Can be taken up again.

    The result is a small file for each method, to run it with (cosmosfl run --config) or to compare all with
    (cosmosfl compare --tuned). Needs Optuna, the extra "tune".
    """
    with errors_in_one_line():
        from cosmosfl.config import parse_assignments, read_preset, read_toml
        from cosmosfl.events import PhaseStarted
        from cosmosfl.tuning import NotTuned, TrialStarted, Tuned, check_optuna, describe_rates, plan_search, run_search

        check_optuna()
        options = {
            "dataset.data_dir": str(data_dir) if data_dir else None,
            "seed": seed,
            "workers": int(workers) if workers and workers.isdigit() else workers,
        }
        search = plan_search(
            methods,
            [_nested({k: v for k, v in options.items() if v is not None}), parse_assignments(set or [])],
            [read_toml(config) if config else {}, read_preset(preset) if preset else {}],
            trials=trials,
            span=span,
            validation=validation,
        )
        clients, some = search.federation.clients, next(iter(search.configs.values()))
        out.print(
            f"{trials} trials of each of {len(search.configs)} methods on {some.dataset.name}: {len(clients)} clients "
            f"with {sum(len(c.private) for c in clients):,} samples to train on and "
            f"{sum(len(c.test) for c in clients if c.test):,} to validate on, {some.rounds} rounds after the first, "
            f"seed {some.seed}",
            highlight=False,
            soft_wrap=True,
        )
        with out.status("") as status:
            trial = ""

            def show(event: object) -> None:
                nonlocal trial
                match event:
                    case TrialStarted():
                        trial = f"{event.method}, trial {event.number} of {event.of}: {describe_rates(event.rates)}"
                        status.update(trial)
                    case PhaseStarted():
                        status.update(f"{trial}, round {event.round} of {some.rounds}")
                    case Tuned():
                        edge = f", the {event.edge} that was tried" if event.edge else ""
                        line = f"{event.best.accuracy:5.1f} %  {describe_rates(event.best.rates)}{edge}"
                        out.print(f"{event.method:<12}{line}", highlight=False, soft_wrap=True)
                    case NotTuned():
                        out.print(f"{event.method:<12}  –      {escape(event.reason)}", highlight=False, soft_wrap=True)

            for entry in search.left_out:
                show(entry)
            command = shlex.join(["cosmosfl", *sys.argv[1:]])
            try:
                run_search(search, out_dir, command=command, callbacks=[show])
            except KeyboardInterrupt:
                err.print("interrupted; the same command goes on after the trials that are finished")
                raise typer.Exit(130) from None
    out.print(f"written     {escape(str(out_dir / 'METHOD.toml'))}", highlight=False, soft_wrap=True)


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
        _nested({key: value for key, value in options.items() if value is not None}),
        parse_assignments(assignments or []),
    ]
    files = [read_toml(config) if config else {}, read_preset(preset) if preset else {}]

    def named(layer: dict[str, Any]) -> Any:
        table = layer.get("method", {})
        return table.get("name") if isinstance(table, dict) else None

    name = next((found for layer in [*given, *files] if (found := named(layer))), None)
    if name in METHODS:  # a preset for one method serves others too
        files = [layer if named(layer) in (None, name) else for_method(layer, name) for layer in files]
    return ExperimentConfig.parse(*given, *files)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
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


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    app()
