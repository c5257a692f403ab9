"""A comparison in a terminal: what will be run, how far it is, and what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cosmosfl.comparison.grid import Cell
from cosmosfl.comparison.outcome import METRIC_WORDS, Comparison
from cosmosfl.comparison.plan import Plan, where
from cosmosfl.comparison.runner import cell_state, last_round
from cosmosfl.comparison.tables import difference_words, p_words, spread
from cosmosfl.report.results import duration, plural, size

MOST_POINTS = 6
"""Points of a grid that have a column of their own in a terminal."""
_MOST_RUNNING = 8


def plan_lines(plan: Plan) -> list[str]:
    """Return what will be run, and what will not and why, a line each."""
    grid = plan.grid
    axes = "".join(f", {axis.name} {', '.join(axis.levels)}" for axis in grid.axes)
    methods = sorted({cell.method for cell in plan.cells}, key=grid.methods.index)
    lines = [
        f"{plural(len(plan.cells), 'cell')}: {', '.join(methods)}{axes}, seed{'' if len(grid.seeds) == 1 else 's'} "
        f"{', '.join(map(str, grid.seeds))}"
    ]
    lines += [f"{where(grid, entry)}: not applicable: {entry.reason}" for entry in plan.left_out]
    return [*lines, *grid.notes]


class LiveCells:
    """Shows how many cells are done, and the rounds of those that are being run, from their files.

    `done` is the callback of `run_cells`. Without a terminal there is a line per cell instead; nothing if `quiet`.
    """

    def __init__(self, console: Console, cells: Sequence[Cell], directory: Path, *, quiet: bool = False) -> None:
        self.console = console
        self.directory = directory
        self.quiet = quiet
        self.waiting = {c.name: c for c in cells if cell_state(directory / c.name) != "finished"}
        self.total = len(cells)
        self.finished_before = self.total - len(self.waiting)
        self.since = time.time()
        self.reported = 0
        self.live = Live(get_renderable=self._state, console=console, refresh_per_second=1, transient=True)

    def __enter__(self) -> LiveCells:
        if self.finished_before and not self.quiet:
            self.console.print(f"{self.finished_before} of {self.total} cells are finished already", highlight=False)
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def done(self, name: str, error: str | None) -> None:
        """Take note of a cell that is done."""
        self.reported += 1
        if self.quiet or (error is None and self.console.is_terminal):
            return
        state = f"{self.finished_before + self.reported}/{self.total}{'' if error is None else ' failed'}"
        self.console.print(f"{state} {escape(name)}", highlight=False, soft_wrap=True)

    def _state(self) -> RenderableType:
        states = {name: cell_state(self.directory / name) for name in self.waiting if self._is_of_now(name)}
        done = sum(state in ("finished", "failed") for state in states.values())
        left = ""
        if done:
            seconds = (time.time() - self.since) / done * (len(self.waiting) - done)
            left = f"about {duration(seconds)} left"
        n = self.finished_before + done
        bar = Table.grid(padding=(0, 1))
        bar.add_row(f"{n} of {plural(self.total, 'cell')}", ProgressBar(self.total, n, width=24), left)
        running = [f"  {name}  {self._round(self.waiting[name])}" for name, state in states.items() if state == "begun"]
        return Group(bar, *running[:_MOST_RUNNING])

    def _is_of_now(self, name: str) -> bool:
        """Say whether a cell was begun since this command was: it may have files of an earlier attempt."""
        try:
            return (self.directory / name / "config.toml").stat().st_mtime >= self.since - 1
        except OSError:
            return False

    def _round(self, cell: Cell) -> str:
        round = last_round(self.directory / cell.name)
        return "begins" if round is None else f"round {round} of {cell.config.rounds}"


def outcome_tables(comparison: Comparison) -> list[RenderableType]:
    """Return the methods in order and the differences from the reference; where there is a grid, methods × points."""
    deviation = "mean ± standard deviation over seeds" if len(comparison.seeds) > 1 else "one seed"
    what = f"{METRIC_WORDS[comparison.metric]} of the moment {comparison.moment!r}, %, {deviation}"
    if comparison.axes:
        return [_titled(f"{what} (their number, where some are missing); last round", _matrix(comparison))]
    return [_titled(what, _ranking(comparison)), *_contrasts(comparison)]


def _titled(title: str, table: Table) -> RenderableType:
    return Group(Text(title, style="italic"), table)  # a title of its own would be as narrow as the table


def _table(*columns: str) -> Table:
    result = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for n, column in enumerate(columns):
        result.add_column(column, justify="right" if n else "left", no_wrap=True)
    return result


def _ranking(comparison: Comparison) -> Table:
    result = _table("method", "last round", "best", "worst client", "up", "down", "time")
    planned = len(comparison.seeds)
    for row in comparison.rows(comparison.points[0]):
        if row.last is None:
            result.add_row(row.method, f"[dim]{escape(row.why_not)}[/]")
            continue
        fewer = f" ({row.n} of {planned})" if row.n < planned else ""
        cells = [spread(row.last) + fewer, *(spread(value) if value else "–" for value in (row.best, row.worst))]
        cells += [size(sent.mean) if sent else "–" for sent in (row.uplink, row.downlink)]
        cells.append(duration(row.seconds.mean) if row.seconds else "–")
        result.add_row(row.method, *cells, style=_style(comparison, row.method))
    return result


def _contrasts(comparison: Comparison) -> list[RenderableType]:
    contrasts = comparison.contrasts(comparison.points[0])
    if not contrasts:
        return []
    tested = any(contrast.test.n > 1 for contrast in contrasts)
    title = f"{comparison.reference} minus it, points, paired by seed" + (" [95 % interval]" if tested else "")
    result = _table("method", "difference", *(["p, t-test (Holm)"] if tested else []), "seeds")
    for contrast in reversed(contrasts):
        p = [p_words(contrast)[0]] if tested else []
        result.add_row(contrast.method, escape(difference_words(contrast)), *p, str(contrast.test.n))
    return [_titled(title, result)]


def _matrix(comparison: Comparison) -> Table:
    result = _table("method")
    points = comparison.points[:MOST_POINTS]
    for point in points:
        result.add_column(escape(comparison.describe(point)), justify="right")
    found = {(row.method, point): row for point in points for row in comparison.rows(point)}
    for method in comparison.methods:
        cells = []
        for point in points:
            row = found[method, point]
            fewer = f" ({row.n})" if row.last and row.n < len(comparison.seeds) else ""
            cells.append(spread(row.last) + fewer if row.last else f"[dim]{escape(row.why_not)}[/]")
        result.add_row(method, *cells, style=_style(comparison, method))
    if len(comparison.points) > len(points):
        result.caption = f"and {plural(len(comparison.points) - len(points), 'more point')} in summary.csv"
    return result


def _style(comparison: Comparison, method: str) -> str | None:
    return "bold" if method == comparison.reference else None
