"""What came out of a comparison: numbers over seeds, and tests paired by seed. Pure functions of its files.

For a method at a point of the grid, every number is first one per seed, from the accuracies of that seed's clients:

============= =======================================================================================================
``last``      mean over clients in the last round
``best``      the greatest mean over clients of any round: chosen on the test sets, so it flatters every method
``worst``     the least accuracy of any client in the last round
``spread``    standard deviation (ddof = 1) over clients in the last round
``uplink``    bytes that a client sent in the whole run, mean over clients; ``downlink`` those that it received
``seconds``   wall-clock time of the run
============= =======================================================================================================

then mean and standard deviation (ddof = 1) over seeds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cosmosfl.comparison.grid import Labels, Metric
from cosmosfl.comparison.plan import LeftOut, describe_labels
from cosmosfl.comparison.runner import FILE_NAME, SCHEMA, State, cell_state, read_error
from cosmosfl.evaluation.metrics import MOMENTS, Measurement, Moment
from cosmosfl.evaluation.statistics import (
    OverSeeds,
    PairedTest,
    SignedRankTest,
    holm,
    over_seeds,
    paired_t_test,
    signed_rank_test,
)
from cosmosfl.events import Traffic
from cosmosfl.protocol import Rejection
from cosmosfl.store import RunDirectory, RunDirectoryError

METRICS: tuple[Metric, ...] = get_args(Metric)
METRIC_WORDS: dict[Metric, str] = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
Point = tuple[str, ...]
"""A label per axis."""


@dataclass(frozen=True)
class AxisValues:
    """An axis: its name, and label -> number (or the label again) in the order of the grid."""

    name: str
    values: dict[str, float | int | str]

    @property
    def is_numeric(self) -> bool:
        """Whether its levels are numbers."""
        return all(not isinstance(value, str) for value in self.values.values())


@dataclass(frozen=True, eq=False)
class CellResult:
    """A cell, as far as it came. `labels` has None where an axis has no effect; `summary` is that of the run."""

    name: str
    method: str
    seed: int
    labels: Labels
    state: State
    error: str | None = None
    config: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    summary: dict[str, Any] | None = None
    history: tuple[Measurement | Traffic | Rejection, ...] = ()

    @property
    def measurements(self) -> Iterator[Measurement]:
        """All measurements but those under the name ``local``: here ``local`` is a method, which has ``client``."""
        return (m for m in self.history if isinstance(m, Measurement) and m.moment != "local")

    @property
    def traffic(self) -> Iterator[Traffic]:
        """Bytes by client and round."""
        return (t for t in self.history if isinstance(t, Traffic))

    @cached_property
    def _by_round(self) -> dict[tuple[Moment, Metric], dict[int, list[float]]]:
        found: dict[tuple[Moment, Metric], dict[int, list[float]]] = {}
        for m in self.measurements:
            for metric in METRICS:
                found.setdefault((m.moment, metric), {}).setdefault(m.round, []).append(getattr(m, metric))
        return found

    def accuracies(self, moment: Moment, metric: Metric) -> dict[int, list[float]]:
        """Return the accuracies of the clients, in percent, by round; empty if this was not measured."""
        return self._by_round.get((moment, metric), {})

    def sent(self) -> tuple[float, float]:
        """Return bytes up and down in the whole run, mean over clients."""
        clients = {t.client for t in self.traffic}
        n = max(len(clients), 1)
        return sum(t.uplink for t in self.traffic) / n, sum(t.downlink for t in self.traffic) / n


@dataclass(frozen=True)
class Row:
    """A method at a point: see the top of this module; accuracies in percent. None where there is nothing.

    Attributes
    ----------
    why_not
        Why there are no accuracies, in a few words; empty if there are.
    """

    method: str
    point: Point
    last: OverSeeds | None = None
    best: OverSeeds | None = None
    worst: OverSeeds | None = None
    spread: OverSeeds | None = None
    uplink: OverSeeds | None = None
    downlink: OverSeeds | None = None
    seconds: OverSeeds | None = None
    why_not: str = ""

    @property
    def n(self) -> int:
        """Seeds."""
        return self.last.n if self.last else 0


@dataclass(frozen=True)
class Contrast:
    """The reference minus another method in the last round, paired by seed: above 0 the reference is better.

    Attributes
    ----------
    p_holm, signed_rank_p_holm
        The p-values of `test` and of `signed_rank`, corrected for all methods compared with the reference at this point
        that have one. None where there is none.
    family
        The number of these p-values: of the t-test, and of the signed-rank test.
    """

    reference: str
    method: str
    point: Point
    test: PairedTest
    signed_rank: SignedRankTest
    p_holm: float | None
    signed_rank_p_holm: float | None
    family: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The content of a comparison's directory."""

    title: str
    reference: str
    moment: Moment
    metric: Metric
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    axes: tuple[AxisValues, ...]
    cells: tuple[CellResult, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: str | Path) -> Comparison:
        """Read the files, of whatever cells are finished.

        Raises
        ------
        RunDirectoryError
            If the directory is not that of a comparison.
        """
        directory = Path(directory)
        if not (directory / FILE_NAME).is_file():
            raise RunDirectoryError(f"{directory} has no {FILE_NAME}; expected the directory of a comparison")
        content = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise RunDirectoryError(f"{directory / FILE_NAME}: schema {content['schema']}; expected {SCHEMA}")
        return cls(
            title=content["title"],
            reference=content["reference"],
            moment=content["moment"],
            metric=content["metric"],
            methods=tuple(content["methods"]),
            seeds=tuple(content["seeds"]),
            axes=tuple(AxisValues(axis["name"], axis["values"]) for axis in content["axes"]),
            cells=tuple(
                _read_cell(directory / "cells" / cell["name"], **{**cell, "labels": tuple(cell["labels"])})
                for cell in content["cells"]
            ),
            left_out=tuple(
                LeftOut(e["method"], tuple(e["labels"]), tuple(e["seeds"]), e["reason"]) for e in content["left_out"]
            ),
            notes=tuple(content["notes"]),
        )

    @cached_property
    def points(self) -> list[Point]:
        """The points of the grid; one empty point where nothing varies."""
        return list(itertools.product(*(axis.values for axis in self.axes)))

    @cached_property
    def moments(self) -> list[Moment]:
        """The moments that were measured in any cell, ``client`` first."""
        found = {m.moment for cell in self.cells for m in cell.measurements}
        order: list[Moment] = ["client", *(moment for moment in MOMENTS if moment != "client")]
        return [moment for moment in order if moment in found]

    @cached_property
    def finished(self) -> list[CellResult]:
        """Finished cells."""
        return [cell for cell in self.cells if cell.state == "finished"]

    @cached_property
    def failed(self) -> list[CellResult]:
        """Cells that ended with an error."""
        return [cell for cell in self.cells if cell.state == "failed"]

    def describe(self, labels: Labels) -> str:
        """Return a place in the grid in words; empty where nothing varies."""
        return describe_labels([axis.name for axis in self.axes], labels)

    def at(self, method: str, point: Point) -> list[CellResult]:
        """Return the finished cells of a method at a point, by seed."""
        own = [cell for cell in self._finished_of.get(method, []) if _matches(cell.labels, point)]
        return sorted(own, key=lambda cell: cell.seed)

    @cached_property
    def _finished_of(self) -> dict[str, list[CellResult]]:
        found: dict[str, list[CellResult]] = {}
        for cell in self.finished:
            found.setdefault(cell.method, []).append(cell)
        return found

    def curve(self, method: str, point: Point, moment: Moment, metric: Metric) -> dict[int, OverSeeds]:
        """Return the mean over clients by round, over seeds."""
        by_round: dict[int, list[float]] = {}
        for cell in self.at(method, point):
            for round, values in cell.accuracies(moment, metric).items():
                by_round.setdefault(round, []).append(float(np.mean(values)))
        found = {round: over_seeds(values) for round, values in sorted(by_round.items())}
        return {round: summary for round, summary in found.items() if summary}

    def last_by_seed(self, method: str, point: Point, moment: Moment, metric: Metric) -> dict[int, float]:
        """Return the mean over clients in the last round, by seed."""
        found = ((cell.seed, cell.accuracies(moment, metric)) for cell in self.at(method, point))
        return {seed: float(np.mean(by_round[max(by_round)])) for seed, by_round in found if by_round}

    def rows(self, point: Point, moment: Moment | None = None, metric: Metric | None = None) -> list[Row]:
        """Return a row for every method at a point: the best in the last round first, those without numbers last."""
        rows = [self._row(method, point, moment or self.moment, metric or self.metric) for method in self.methods]
        return sorted(rows, key=lambda row: -row.last.mean if row.last else 1.0)

    def _row(self, method: str, point: Point, moment: Moment, metric: Metric) -> Row:
        cells = self.at(method, point)
        measured = [by_round for cell in cells if (by_round := cell.accuracies(moment, metric))]
        sent = [cell.sent() for cell in cells]
        last = [by_round[max(by_round)] for by_round in measured]
        return Row(
            method,
            point,
            last=over_seeds([float(np.mean(values)) for values in last]),
            best=over_seeds([max(float(np.mean(values)) for values in by_round.values()) for by_round in measured]),
            worst=over_seeds([min(values) for values in last]),
            spread=over_seeds([float(np.std(values, ddof=1)) for values in last if len(values) > 1]),
            uplink=over_seeds([up for up, _ in sent]),
            downlink=over_seeds([down for _, down in sent]),
            seconds=over_seeds([float(cell.summary["wall_seconds"]) for cell in cells if cell.summary]),
            why_not="" if measured else self._why_not(method, point, moment, bool(cells)),
        )

    def _why_not(self, method: str, point: Point, moment: Moment, finished: bool) -> str:
        if finished:
            return f"{moment} is not measured by this method"
        if any(entry.method == method and _matches(entry.labels, point) for entry in self.left_out):
            return "not applicable"
        states = [cell.state for cell in self.cells if cell.method == method and _matches(cell.labels, point)]
        return "failed" if "failed" in states else "not run yet"

    def contrasts(self, point: Point, moment: Moment | None = None, metric: Metric | None = None) -> list[Contrast]:
        """Compare the reference with every other method at a point, over the seeds that both have.

        Methods without such a seed are left out. Those that the reference beats by most come last.
        """
        moment, metric = moment or self.moment, metric or self.metric
        ours = self.last_by_seed(self.reference, point, moment, metric)
        tests: dict[str, tuple[PairedTest, SignedRankTest]] = {}
        for method in self.methods:
            theirs = self.last_by_seed(method, point, moment, metric)
            seeds = [seed for seed in ours if seed in theirs]
            if method != self.reference and seeds:
                pairs = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
                tests[method] = paired_t_test(*pairs), signed_rank_test(*pairs)
        t_adjusted = _holm({method: test.p for method, (test, _) in tests.items()})
        ranks_adjusted = _holm({method: ranks.p for method, (_, ranks) in tests.items()})
        contrasts = [
            Contrast(
                self.reference,
                method,
                point,
                test,
                ranks,
                t_adjusted.get(method),
                ranks_adjusted.get(method),
                (len(t_adjusted), len(ranks_adjusted)),
            )
            for method, (test, ranks) in tests.items()
        ]
        return sorted(contrasts, key=lambda contrast: contrast.test.difference)


def _holm(p_values: dict[str, float | None]) -> dict[str, float]:
    known = {method: p for method, p in p_values.items() if p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def _matches(labels: Labels, point: Sequence[str]) -> bool:
    return all(label is None or label == at for label, at in zip(labels, point, strict=True))


def _read_cell(path: Path, name: str, method: str, seed: int, labels: Labels) -> CellResult:
    state = cell_state(path)
    if state == "failed":
        return CellResult(name, method, seed, labels, state, error=read_error(path))
    if state != "finished":
        return CellResult(name, method, seed, labels, state)
    directory = RunDirectory.open(path)
    return CellResult(
        name,
        method,
        seed,
        labels,
        state,
        config=directory.config(),
        environment=directory.environment(),
        summary=directory.summary(),
        history=tuple(directory.history()),
    )
