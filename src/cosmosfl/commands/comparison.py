"""``cosmosfl compare`` and ``cosmosfl tune``."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cosmosfl.commands.terminal import (
    ConfigOption,
    DataDirOption,
    PresetOption,
    SeedOption,
    SetOption,
    err,
    errors_in_one_line,
    nested,
    new_directory,
    out,
)


def compare(
    grid_file: Annotated[Path | None, typer.Argument(help="Grid file, such as experiments/figure2.toml.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods (cosmosfl methods), such as cosmos,fedmd.  \\[default: all]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="One run for each.  \\[default: 0,1,2]")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            "-g",
            metavar="KEY=VALUES",
            help="Vary a key: partition.alpha=1,5,100. Repeatable. Or a grid file.",
        ),
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
        files = [value for value in grid or () if value.endswith(".toml") and "=" not in value]
        axes = [value for value in grid or () if value not in files]
        files = [*([str(grid_file)] if grid_file else []), *files]
        if len(files) > 1:
            raise ValueError(f"grid files: {', '.join(files)}; expected one")
        grid_file = Path(files[0]) if files else None
        if scale is not None and grid_file is None:
            raise ValueError(f"--scale: {scale!r}; without a grid file there is nothing to scale")
        wanted = make_grid(
            read_grid_file(grid_file, scale or FULL) if grid_file else None,
            methods=methods,
            seeds=seeds,
            axes=axes,
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
            [nested({k: v for k, v in options.items() if v is not None}), parse_assignments(set or [])],
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
