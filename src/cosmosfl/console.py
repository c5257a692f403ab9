"""What a run looks like in a terminal: who holds what, live progress, then who won and who lost."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cosmosfl.cost import Cost
from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.events import ClientDone, Event, PhaseStarted, Started
from cosmosfl.report.holdings import FEW_CLASSES, Holdings
from cosmosfl.run import Run

_PHASES = {"baseline": "clients alone", "clients": "clients", "server": "server", "final": "last distillation"}


class LiveProgress:
    """A callback that shows round, phase, clients done, accuracies so far and the time left."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self.console = console
        self.task = self.progress.add_task("starting", total=None)
        self.rounds = self.n_clients = self.baseline_steps = self.done = self.of = 0
        self.where = ""
        self.measured: dict[tuple[str, int], list[float]] = {}
        self.reported: set[int] = set()

    def __enter__(self) -> LiveProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Take an event of the run."""
        match event:
            case Started():
                self.rounds, self.n_clients = event.rounds, len(event.clients)
                # the server's work of a round counts as much as that of all clients, near enough
                federated = (2 * (self.rounds + 1) + 1) * self.n_clients
                self.baseline_steps = (self.rounds + 2) * event.baseline_clients
                self.progress.update(self.task, total=federated + self.baseline_steps)
            case PhaseStarted():
                if event.phase in ("server", "final"):
                    self.progress.advance(self.task, self.n_clients if event.phase == "server" else 0)
                self.done = 0
                at = f"round {event.round}/{self.rounds}, " if event.phase in ("clients", "server") else ""
                self.where = at + _PHASES[event.phase]
                self.of = {"baseline": self.baseline_steps, "server": 0}.get(event.phase, self.n_clients)
                self._describe()
            case ClientDone():
                self.progress.advance(self.task)
                self.done += 1
                self._describe()
            case Measurement():
                values = self.measured.setdefault((event.moment, event.round), [])
                values.append(event.top1)
                if event.moment == "client" and len(values) == self.n_clients:
                    self._report(event.round)

    def _describe(self) -> None:
        done = f" {self.done}/{self.of}" if self.of else ""
        self.progress.update(self.task, description=f"{self.where}{done}")

    def _report(self, round: int) -> None:
        def mean(moment: str) -> str:
            values = self.measured.get((moment, round))
            return f"{sum(values) / len(values):5.1f} %" if values else "    –  "

        self.console.print(
            f"round {round:>2}  alone {mean('local')}  after fit {mean('client_after_fit')}  "
            f"[bold]client {mean('client')}[/]  cluster {mean('cluster')}",
            highlight=False,
        )


def outcome_table(run: Run) -> Table | None:
    """Return *local only → method* per client and on average, best gain first; None if nothing was measured."""
    after = run.accuracy("client")
    if after is None:
        return None
    before = run.accuracy("local") if run.method != "local" else None
    cluster = {id: k for k, members in enumerate(run.clusters) for id in members}
    table = Table(
        title=f"top-1 accuracy on each client's own test set, %: local only → {run.method}", title_justify="left"
    )
    table.add_column("client")
    with_models = all(id in run.models for id in after.per_client)  # those of other machines stay there
    if with_models:
        table.add_column("model")
    if cluster:
        table.add_column("cluster", justify="right")
    if before:
        table.add_column("local only", justify="right")
    table.add_column(run.method, justify="right", style="bold")
    if before:
        table.add_column("points", justify="right")

    def add(name: str, model: str, k: str, old: float | None, new: float, style: str | None = None) -> None:
        cells = [name, *([model] if with_models else []), *([k] if cluster else [])]
        if old is None:
            table.add_row(*cells, f"{new:.1f}", style=style)
        else:
            colour = "green" if new > old else "red" if new < old else "default"
            table.add_row(*cells, f"{old:.1f}", f"{new:.1f}", f"[{colour}]{new - old:+.1f}[/]", style=style)

    def gain(id: str) -> float:
        return after.per_client[id] - (before.per_client[id] if before else 0)

    for id in sorted(after.per_client, key=gain, reverse=True):
        model = repr(run.models[id]).split("(")[-1].rstrip(")").removesuffix("Classifier") if with_models else ""
        add(id, model, str(cluster.get(id, "")), before.per_client[id] if before else None, after.per_client[id])
    table.add_section()
    add("mean", "", "", before.mean if before else None, after.mean, "bold")
    add("worst client", "", "", before.min if before else None, after.min)
    return table


def cost_table(cost: Cost) -> Table:
    """Return what a run would cost, as a table to print."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_row("time", _duration(cost.seconds), f"with {cost.workers} worker{'s' * (cost.workers > 1)}, estimated")
    table.add_row("  clients", _duration(cost.clients), "training, prediction, tests")
    if cost.clusters:
        table.add_row("  server", _duration(cost.server), f"for {cost.clusters} cluster{'s' * (cost.clusters > 1)}")
    if cost.baseline:
        table.add_row("  clients alone", _duration(cost.baseline), "the local baseline")
    for kind, (n, speed) in cost.speeds.items():
        name = "cluster model" if kind == "server" else f"{n} × {kind.partition('(')[2].removesuffix(')') or kind}"
        table.add_row(
            f"  {name}", f"{1000 * speed.train:.2f} ms", f"a sample trained, {1000 * speed.predict:.2f} predicted"
        )
    table.add_row("traffic", _size(cost.exchanges * (cost.uplink + cost.downlink)), "in all")
    table.add_row("", _size(cost.uplink), "up a client and round")
    table.add_row("", _size(cost.downlink), "down a client and round")
    table.add_row("memory", _size(cost.memory), "all processes together")
    table.add_row("disk", _size(cost.disk), "client states")
    return table


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 6000 else f"{minutes / 60 / 24:.0f} days"


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


def holdings_table(holdings: Holdings) -> Table:
    """Return clients x classes: a column for every class if there are few, else a spark line and the largest."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("client", no_wrap=True)
    if holdings.groups is not None:
        table.add_column("group", justify="right")
    few = len(holdings.class_names) <= FEW_CLASSES
    if few:
        for heading in class_headings(holdings.class_names):
            table.add_column(escape(heading), justify="right", header_style="none")
    else:
        table.add_column("classes", justify="right")
        table.add_column(f"0 to {len(holdings.class_names) - 1}", no_wrap=True)
        table.add_column("most frequent")
    table.add_column("private", justify="right")
    table.add_column("test", justify="right")
    most = int(holdings.private.max())
    for i, id in enumerate(holdings.clients):
        own = holdings.private[i].tolist()
        group = [] if holdings.groups is None else [str(holdings.groups[i])]
        cells = [_count_cell(n, most) for n in own] if few else _many_classes(own, holdings.class_names)
        table.add_row(escape(id), *group, *cells, str(sum(own)), str(int(holdings.test[i].sum())))
    return table


def class_headings(names: Sequence[str]) -> list[str]:
    """Return the names of classes if all are short enough for a narrow column, else their numbers."""
    return list(names) if all(len(name) <= 3 for name in names) else [str(i) for i in range(len(names))]


def _count_cell(n: int, most: int) -> str:
    if n == 0:
        return "[dim]·[/]"
    return f"[bold cyan]{n}[/]" if 2 * n >= most else str(n)


def _many_classes(counts: Sequence[int], names: Sequence[str]) -> list[str]:
    held = sorted((i for i, n in enumerate(counts) if n), key=lambda i: -counts[i])
    largest = ", ".join(f"{escape(names[i])} [dim]{counts[i]}[/]" for i in held[:3])
    return [str(len(held)), f"[cyan]{spark_line(counts)}[/]", largest]


def spark_line(counts: Sequence[int], longest: int = 24) -> str:
    """Return bars of the counts, by eighths of the largest; neighbours are added up to make `longest` of them at most.

    A blank is none at all.
    """
    each = -(-len(counts) // longest)
    sums = [sum(counts[start : start + each]) for start in range(0, len(counts), each)]
    top = max(sums)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * n // top)] if n else " " for n in sums)
