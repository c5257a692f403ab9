"""``cosmosfl federation``: federations between processes, on Flower."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cosmosfl.commands.terminal import errors_in_one_line, new_directory, out

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Federations between machines, on Flower.")


@app.command("try")
def try_(
    clients: Annotated[int, typer.Option(min=2, max=20, help="Number of clients, a SuperNode each.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the first.")] = 2,
    out_dir: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory.  \\[default: a new one in runs/]")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Directory to leave certificates, keys, client states and logs in.")
    ] = None,
) -> None:
    """Run a whole federation on this machine: a SuperLink over TLS, authenticated SuperNodes, digits, a report.

    Certificates and keys are made in a temporary directory, and every process ends with the command. Needs Flower, the
    extra "flower". For a federation between machines see examples/flower/README.md.
    """
    with errors_in_one_line():
        from cosmosfl.console import outcome_table
        from cosmosfl.flower import FederationError, demo
        from cosmosfl.flower.loopback import HOST, Loopback
        from cosmosfl.run import load

    with errors_in_one_line((FederationError,)):
        where = out_dir or new_directory("digits", "federation")
        with tempfile.TemporaryDirectory(prefix="cosmosfl-federation-") as temporary:
            directory = keep or Path(temporary)
            out.print(f"starting a SuperLink with TLS on {HOST}; files in {directory}", highlight=False)
            with Loopback(directory) as loopback:
                out.print(f"registering and starting {clients} SuperNodes, each with a key of its own", highlight=False)
                demo.run(loopback, clients, rounds, where)
        result = load(where)
    if table := outcome_table(result):
        out.print(table)
    out.print(f"report      {where / 'report.html'}", highlight=False, soft_wrap=True)
    if keep:
        out.print(f"models      each client's own is under {keep / 'states'}", highlight=False, soft_wrap=True)
