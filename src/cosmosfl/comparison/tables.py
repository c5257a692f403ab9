"""A comparison as files: tidy tables for a program, Markdown and LaTeX for a paper.

`FILES` says what each one holds, and `COLUMNS` what its columns are. Beside these, every axis of the grid is a column
of its own (``partition.alpha``): the number, or the label of the level; empty where the axis has no effect on the
method, so that its one run stands for all levels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmosfl.comparison.grid import Labels
from cosmosfl.comparison.outcome import METRIC_WORDS, METRICS, AxisValues, Comparison, Contrast, Row
from cosmosfl.evaluation.statistics import OverSeeds
from cosmosfl.report.results import duration, points, size
from cosmosfl.store import write_atomically

FILES = {
    "results": "Every measurement: one row per cell, round, moment and client. Also as results.parquet.",
    "cells": "One row per cell: whether it is finished, its error, traffic, time, clusters.",
    "summary": "One row per point of the grid, method, moment and metric: numbers over seeds.",
    "comparisons": "One row per point, moment, metric and method: the reference minus this method, paired by seed.",
}
"""Name of a CSV file -> what it holds."""
_CELL = {"cell": "directory under cells/", "method": "its name", "seed": "the seed"}
_OF = {
    "moment": "which of a client's models, when (client: what it deploys)",
    "metric": "top1 or top5: accuracy in percent on the client's own test set",
}
COLUMNS: dict[str, dict[str, str]] = {
    "results": {
        **_CELL,
        "round": "0 is pre-training and the first exchange",
        "moment": _OF["moment"],
        "client": "its id",
        "top1": "top-1 accuracy, percent",
        "top5": "top-5 accuracy, percent",
        "samples": "of the client's test set",
    },
    "cells": {
        **_CELL,
        "state": "finished, failed, begun or missing",
        "error": "why it failed",
        "last_round": "number of rounds after the first",
        "clients": "their number",
        "uplink_bytes": "sent by a client in the whole run, mean over clients",
        "downlink_bytes": "received by a client in the whole run, mean over clients",
        "seconds": "wall-clock time of the run; cells that ran beside each other slowed each other down",
        "clusters": "their number at the end, where there are any",
        "adjusted_rand_index": "agreement of the clusters with the true groups: 1 the same, 0 chance",
        "rejections": "messages that the server did not accept",
    },
    "summary": {
        "method": "its name",
        **_OF,
        "n": "seeds",
        "last_mean": "accuracy in the last round: mean over clients, then over seeds; percent",
        "last_std": "its standard deviation over seeds (ddof = 1); empty where n is 1",
        "best_mean": "the same of the best round of each seed, which was chosen on the test sets",
        "best_std": "its standard deviation over seeds",
        "worst_client_mean": "accuracy of the worst client in the last round, mean over seeds",
        "worst_client_std": "its standard deviation over seeds",
        "client_spread": "standard deviation over clients in the last round, mean over seeds",
        "uplink_bytes": "sent by a client in the whole run, mean over clients and seeds",
        "downlink_bytes": "received by a client in the whole run, mean over clients and seeds",
        "seconds": "wall-clock time of a run, mean over seeds",
        "why_not": "why there are no numbers",
    },
    "comparisons": {
        "reference": "the method that the others are compared with",
        "method": "one of the others",
        **_OF,
        "n": "seeds that both have",
        "difference": "reference minus method in the last round, mean over seeds; points",
        "low": "lower end of its 95 % confidence interval (t distribution)",
        "high": "upper end",
        "t": "statistic of the paired t-test",
        "p": "its two-sided p-value; empty where n is 1 or the differences do not vary",
        "p_holm": "after Holm's correction for the methods compared at this point",
        "p_compared": "their number",
        "signed_rank_n": "seeds in which the two differ",
        "signed_rank_w": "statistic of Wilcoxon's signed-rank test",
        "signed_rank_smallest": "the smallest p-value that so many seeds can reach",
        "signed_rank_p": "its exact two-sided p-value; empty where the smallest is above 0.05",
        "signed_rank_p_holm": "after Holm's correction",
    },
}
"""Name of a CSV file -> column -> what it holds."""
CEILING = "centralized"
"""A method that has all data in one place. It is no competitor, so it is never marked as the best."""
_OWN_NAMES = frozenset(column for own in COLUMNS.values() for column in own)
MARKDOWN, LATEX, PARQUET = "tables.md", "tables.tex", "results.parquet"
Record = Mapping[str, Any]


def write_tables(comparison: Comparison, directory: Path) -> list[str]:
    """Write all files of this module and return what was left out, with the reason: Parquet, without pyarrow."""
    for name, records in (
        ("cells", cell_records(comparison)),
        ("summary", summary_records(comparison)),
        ("comparisons", contrast_records(comparison)),
    ):
        _write_csv(directory / f"{name}.csv", columns(comparison, name), records)
    _write_csv(directory / "results.csv", columns(comparison, "results"), result_records(comparison))
    write_atomically(directory / MARKDOWN, markdown(comparison))
    write_atomically(directory / LATEX, latex(comparison))
    try:
        _write_parquet(comparison, directory / PARQUET)
    except ImportError:
        return [f"{PARQUET}: pip install 'cosmosfl[data]' to have it"]
    return []


# --- records ------------------------------------------------------------------------------------------------------


def columns(comparison: Comparison, name: str) -> list[str]:
    """Return the columns of a file: those of the axes come after the method's and the seed's."""
    own = list(COLUMNS[name])
    at = own.index("seed" if "seed" in own else "method") + 1
    return [*own[:at], *(axis_column(axis) for axis in comparison.axes), *own[at:]]


def axis_column(axis: AxisValues) -> str:
    """Return the name of the column of an axis: its own, unless there is such a column already."""
    return f"grid.{axis.name}" if axis.name in _OWN_NAMES else axis.name


def result_records(comparison: Comparison) -> Iterator[Record]:
    """Yield a record per measurement."""
    for cell in comparison.finished:
        first = {"cell": cell.name, "method": cell.method, "seed": cell.seed, **_axes(comparison, cell.labels)}
        for m in cell.measurements:
            yield {
                **first,
                "round": m.round,
                "moment": m.moment,
                "client": m.client,
                "top1": m.top1,
                "top5": m.top5,
                "samples": m.samples,
            }


def cell_records(comparison: Comparison) -> Iterator[Record]:
    """Yield a record per cell, finished or not."""
    for cell in comparison.cells:
        record = {
            "cell": cell.name,
            "method": cell.method,
            "seed": cell.seed,
            **_axes(comparison, cell.labels),
            "state": cell.state,
            "error": cell.error,
        }
        if cell.summary:
            up, down = cell.sent()
            record |= {
                "last_round": cell.summary["rounds"],
                "clients": cell.summary["clients"],
                "uplink_bytes": up,
                "downlink_bytes": down,
                "seconds": cell.summary["wall_seconds"],
                "clusters": len(cell.summary["clusters"]) or None,
                "adjusted_rand_index": cell.summary["adjusted_rand_index"],
                "rejections": cell.summary["rejections"],
            }
        yield record


def summary_records(comparison: Comparison) -> Iterator[Record]:
    """Yield a record per point, method, moment and metric."""
    for point in comparison.points:
        for moment in comparison.moments or [comparison.moment]:
            for metric in METRICS:
                for row in comparison.rows(point, moment, metric):
                    yield {
                        "method": row.method,
                        **_axes(comparison, point),
                        "moment": moment,
                        "metric": metric,
                        "n": row.n,
                        "last_mean": _mean(row.last),
                        "last_std": row.last and row.last.std,
                        "best_mean": _mean(row.best),
                        "best_std": row.best and row.best.std,
                        "worst_client_mean": _mean(row.worst),
                        "worst_client_std": row.worst and row.worst.std,
                        "client_spread": _mean(row.spread),
                        "uplink_bytes": _mean(row.uplink),
                        "downlink_bytes": _mean(row.downlink),
                        "seconds": _mean(row.seconds),
                        "why_not": row.why_not,
                    }


def contrast_records(comparison: Comparison) -> Iterator[Record]:
    """Yield a record per point, moment, metric and method other than the reference."""
    for point in comparison.points:
        for moment in comparison.moments:
            for metric in METRICS:
                for contrast in comparison.contrasts(point, moment, metric):
                    test, ranks = contrast.test, contrast.signed_rank
                    yield {
                        "reference": contrast.reference,
                        "method": contrast.method,
                        **_axes(comparison, point),
                        "moment": moment,
                        "metric": metric,
                        "n": test.n,
                        "difference": test.difference,
                        "low": test.low,
                        "high": test.high,
                        "t": test.t,
                        "p": test.p,
                        "p_holm": contrast.p_holm,
                        "p_compared": contrast.family[0],
                        "signed_rank_n": ranks.n,
                        "signed_rank_w": ranks.w,
                        "signed_rank_smallest": ranks.smallest,
                        "signed_rank_p": ranks.p,
                        "signed_rank_p_holm": contrast.signed_rank_p_holm,
                    }


def _axes(comparison: Comparison, labels: Labels) -> dict[str, float | int | str | None]:
    return {
        axis_column(axis): None if label is None else axis.values[label] if axis.is_numeric else label
        for axis, label in zip(comparison.axes, labels, strict=True)
    }


def _mean(number: OverSeeds | None) -> float | None:
    return number.mean if number else None


def _write_csv(path: Path, names: Sequence[str], records: Iterable[Record]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(records)
    # an id with half a surrogate pair, as file names can have, is no reason to lose a table
    write_atomically(path, text.getvalue().encode("utf-8", "replace").decode())


def _write_parquet(comparison: Comparison, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"seed": pa.int64(), "round": pa.int64(), "samples": pa.int64(), "top1": pa.float64(), "top5": pa.float64()}
    kinds |= {axis_column(axis): pa.float64() for axis in comparison.axes if axis.is_numeric}
    names = columns(comparison, "results")
    table = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    values: dict[str, list[Any]] = {name: [] for name in names}
    for record in result_records(comparison):
        for name in names:
            value = record[name]
            values[name].append(value.encode("utf-8", "replace").decode() if isinstance(value, str) else value)
    unfinished = path.with_name(f".{path.name}")
    parquet.write_table(pa.table(values, schema=table), unfinished)
    unfinished.replace(path)


# --- for a paper --------------------------------------------------------------------------------------------------


def markdown(comparison: Comparison) -> str:
    """Return the tables in Markdown: accuracies, the comparisons with the reference, and what was left out."""
    plain = str.maketrans({"|": r"\|", "\n": " "})

    def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
        rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
        return "\n".join("| " + " | ".join(cell.translate(plain) for cell in row) + " |" for row in rows)

    parts = [f"# {comparison.title or 'Comparison'}", caption(comparison)]
    parts.append(table(*accuracy_table(comparison, lambda text: f"**{text}**", str)))
    if tests := comparison_table(comparison, str):
        parts += [f"## {comparison.reference} minus the others", tests_caption(comparison), table(*tests)]
    if missing := [f"- {line}" for line in left_out_lines(comparison)]:
        parts += ["## Without numbers", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    r"""Return the tables in LaTeX, for a document with ``\usepackage{booktabs}``."""

    def table(head: Sequence[str], lines: Iterable[Sequence[str]], about: str, label: str) -> str:
        rows = [r" & ".join(line) + r" \\" for line in lines]
        return "\n".join(
            [
                r"\begin{table}",
                r"  \centering",
                rf"  \caption{{{_tex(about)}}}",
                rf"  \label{{tab:{label}}}",
                rf"  \begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
                r"    \toprule",
                "    " + " & ".join(head) + r" \\",
                r"    \midrule",
                *(f"    {row}" for row in rows),
                r"    \bottomrule",
                r"  \end{tabular}",
                r"\end{table}",
            ]
        )

    head, lines = accuracy_table(comparison, lambda text: rf"\textbf{{{text}}}", _tex)
    parts = [r"% needs \usepackage{booktabs}", table(head, lines, caption(comparison), "comparison")]
    if tests := comparison_table(comparison, _tex):
        parts.append(table(*tests, tests_caption(comparison), "tests"))
    parts += [f"% {line}" for line in left_out_lines(comparison)]
    return "\n\n".join(parts) + "\n"


def caption(comparison: Comparison) -> str:
    """Return what the numbers of `accuracy_table` are, in a few sentences."""
    n = len(comparison.seeds)
    deviation = "mean ± standard deviation over" if n > 1 else "of"
    what = f"{METRIC_WORDS[comparison.metric]} (%) of the moment {comparison.moment!r} in the last round"
    text = f"{what[0].upper()}{what[1:]}, mean over clients, each on its own test set; {deviation} {n} "
    text += f"seed{'' if n == 1 else 's'}, fewer where a number in brackets says so. Bold: the highest mean."
    if CEILING in comparison.methods:
        text += f" {CEILING.capitalize()}: all data in one place, a ceiling rather than a competitor."
    if not comparison.axes:
        text += " Best round: chosen on the test sets. Sent and received: by a client in the whole run."
    return text


def tests_caption(comparison: Comparison) -> str:
    """Return what the numbers of `comparison_table` are."""
    return (
        f"Differences in points in the last round, paired by seed (n), with 95 % confidence interval; p of the paired "
        "t-test and of Wilcoxon's signed-rank test, both after Holm's correction for the methods compared at a point. "
        f"Above 0, {comparison.reference} is better."
    )


def accuracy_table(
    comparison: Comparison, bold: Callable[[str], str], escape: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """Return head and lines: methods × points; or, where nothing varies, methods × kinds of numbers."""
    planned = len(comparison.seeds)

    def is_top(method: str, value: OverSeeds | None, top: str) -> bool:
        return method != CEILING and value is not None and f"{value.mean:.1f}" == top

    def number(value: OverSeeds | None, *, best: bool = False) -> str:
        if value is None:
            return "–"
        text = escape(spread(value))
        return (bold(text) if best else text) + (f" ({value.n})" if value.n < planned else "")

    by_point = {point: comparison.rows(point) for point in comparison.points}
    top = {point: highest(rows, "last") for point, rows in by_point.items()}
    if not comparison.axes:
        (rows,) = by_point.values()
        head = ["method", "last round", "best round", "worst client", "spread over clients", "sent", "received", "time"]
        return head, [
            [
                escape(row.method),
                number(row.last, best=is_top(row.method, row.last, top[row.point])),
                number(row.best),
                number(row.worst),
                number(row.spread),
                *(escape(size(sent.mean)) if sent else "–" for sent in (row.uplink, row.downlink)),
                escape(duration(row.seconds.mean)) if row.seconds else "–",
            ]
            for row in rows
            if row.last
        ]
    head = ["method", *(escape(comparison.describe(point)) for point in comparison.points)]
    found = {(row.method, point): row.last for point, rows in by_point.items() for row in rows}
    lines = []
    for method in comparison.methods:
        values = {point: found[method, point] for point in comparison.points}
        if any(values.values()):
            cells = [number(v, best=is_top(method, v, top[point])) for point, v in values.items()]
            lines.append([escape(method), *cells])
    return head, lines


def comparison_table(comparison: Comparison, escape: Callable[[str], str]) -> tuple[list[str], list[list[str]]] | None:
    """Return head and lines; None if there is nothing to compare."""
    lines = []
    for point in comparison.points:
        for contrast in reversed(comparison.contrasts(point)):
            place = [escape(comparison.describe(point))] if comparison.axes else []
            t_test, ranks = p_words(contrast)
            cells = [difference_words(contrast), t_test, ranks]
            lines.append([escape(contrast.method), *place, str(contrast.test.n), *map(escape, cells)])
    if not lines:
        return None
    place = ["at"] if comparison.axes else []
    return ["method", *place, "n", escape("difference [95 % interval]"), "t-test", "signed rank"], lines


def left_out_lines(comparison: Comparison) -> list[str]:
    """Return, a line each, what has no numbers and why: not applicable, failed, not run."""
    lines = []
    for entry in comparison.left_out:
        place = comparison.describe(entry.labels)
        lines.append(f"{entry.method}{f' at {place}' if place else ''}: not applicable: {entry.reason}")
    lines += [f"{cell.name}: failed: {cell.error}" for cell in comparison.failed]
    waiting = [cell.name for cell in comparison.cells if cell.state in ("begun", "missing")]
    if waiting:
        more = f" and {len(waiting) - 3} more" if len(waiting) > 3 else ""
        lines.append(f"not run yet: {', '.join(waiting[:3])}{more}")
    return lines


def spread(value: OverSeeds) -> str:
    """Return mean ± standard deviation; the mean alone for one seed."""
    return f"{value.mean:.1f}" if value.std is None else f"{value.mean:.1f} ± {value.std:.1f}"


def difference_words(contrast: Contrast) -> str:
    """Return the difference and its interval: ``+1.2 [+0.3, +2.1]``."""
    test = contrast.test
    interval = "" if test.low is None or test.high is None else f" [{points(test.low)}, {points(test.high)}]"
    return points(test.difference) + interval


def p_words(contrast: Contrast) -> tuple[str, str]:
    """Return the corrected p-values in words, or why there are none: of the t-test, and of the signed-rank test."""
    test, ranks = contrast.test, contrast.signed_rank
    if contrast.p_holm is not None:
        first = p_value(contrast.p_holm)
    elif test.n == 1:
        first = "none: n = 1"
    else:
        first = "none: the same in every seed" if test.difference == 0 else "none: differences do not vary"
    if contrast.signed_rank_p_holm is not None:
        second = p_value(contrast.signed_rank_p_holm)
    else:
        second = "none: n = 1" if test.n == 1 else f"none: at best {ranks.smallest:.2g}"
    return first, second


def p_value(p: float) -> str:
    """Return a p-value with two digits."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def competing(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of methods that have no more than a federation has, if there are any."""
    return [row for row in rows if row.method != CEILING] or list(rows)


def highest(rows: Sequence[Row], kind: str) -> str:
    """Return the highest mean as it is printed, so that what looks the same is marked the same.

    Empty where there is no other to be higher than.
    """
    means = [value.mean for row in competing(rows) if (value := getattr(row, kind)) is not None]
    return f"{max(means):.1f}" if len(means) > 1 else ""


def _tex(text: str) -> str:
    special = {c: rf"\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "−": "$-$", "\u00a0": r"\,", "<": "$<$"}
    return "".join(special.get(c, c) for c in text)
