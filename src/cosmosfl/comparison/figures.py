"""The pictures of a comparison: pure functions from its numbers to plotly figures.

Every method is drawn alike wherever it appears: its place in `METHODS` decides about colour, dashes and marker, which
together are different for each, so that colours need not be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from cosmosfl.comparison.grid import Metric, axis_titles
from cosmosfl.comparison.outcome import METRIC_WORDS, Comparison, Contrast, Point
from cosmosfl.comparison.tables import p_words
from cosmosfl.evaluation.metrics import Moment
from cosmosfl.evaluation.statistics import OverSeeds
from cosmosfl.methods import METHODS
from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.methods.local import Local
from cosmosfl.report.figures import blank_figure, label, whole_numbers
from cosmosfl.report.results import percent, plural, points, size

MANY_METHODS = 6
"""Beyond this, only the reference and ``local`` have a band."""
LEAST_SPAN = 1.0
"""Points above and below the middle that an axis has at least: hundredths of a point are no curve."""
COLOURS = ("green", "vermilion", "purple", "sky", "ochre", "ink")
SHAPES = (("solid", "circle"), ("dash", "square"), ("dot", "diamond"))


@dataclass(frozen=True)
class Style:
    """How a method is drawn. `colour` and `band` are names of variables of the page."""

    colour: str
    band: str
    dash: str = "solid"
    symbol: str = "circle"
    width: float = 2


def method_style(method: str) -> Style:
    """Return how a method is drawn; ``cosmos`` and ``local`` as in the report of a run."""
    if method == Cosmos.name:
        return Style("--client", "--client-band", width=4)
    if method == Local.name:
        return Style("--local", "--local-band")
    others = [name for name in METHODS if name not in (Cosmos.name, Local.name)]
    n = others.index(method) if method in others else len(others)
    colour = COLOURS[n % len(COLOURS)]
    dash, symbol = SHAPES[n // len(COLOURS) % len(SHAPES)]
    return Style(f"--method-{colour}", f"--method-{colour}-band", dash, symbol)


def curves_figure(comparison: Comparison, point: Point, moment: Moment, metric: Metric, *, legend: bool) -> go.Figure:
    """Draw accuracy over rounds: for each method the mean over seeds, with a band of one standard deviation."""
    curves = {method: comparison.curve(method, point, moment, metric) for method in comparison.methods}
    curves = {method: curve for method, curve in curves.items() if curve}
    rounds = sorted({round for curve in curves.values() for round in curve})
    figure = blank_figure(height=460 if legend else 300)
    with_band = [m for m in curves if len(curves) <= MANY_METHODS or m in (comparison.reference, Local.name)]
    # the points of a single round would lie on top of each other
    shifts = {m: 0.8 * ((i + 0.5) / len(curves) - 0.5) if len(rounds) == 1 else 0.0 for i, m in enumerate(curves)}
    # the reference is drawn first: a thick line under the others, so that those which coincide with it can be seen
    for method in sorted(curves, key=lambda m: m != comparison.reference):
        figure.add_traces(
            _curve(method, curves[method], shifts[method], band=method in with_band, legend=legend),
        )
    figure.update_xaxes(title_text="round", showgrid=False, **whole_numbers(rounds))
    means = [s.mean for curve in curves.values() for s in curve.values()]
    middle = (max(means) + min(means)) / 2 if means else 50.0
    if not means or (max(means) - min(means) < 2 * LEAST_SPAN and not any(trace.fill for trace in figure.data)):
        figure.update_yaxes(range=[middle - LEAST_SPAN, middle + LEAST_SPAN])
    figure.update_yaxes(title_text=f"{METRIC_WORDS[metric]} (%)")
    return figure


def _curve(method: str, curve: Mapping[int, OverSeeds], shift: float, *, band: bool, legend: bool) -> list[go.Scatter]:
    style, rounds = method_style(method), list(curve)
    mean = go.Scatter(
        x=[round + shift for round in rounds],
        y=[s.mean for s in curve.values()],
        customdata=[[round, _seeds_words(s)] for round, s in curve.items()],
        mode="lines+markers",
        name=label(method),
        legendgroup=method,
        legendrank=_rank(method),
        showlegend=legend,
        line={"color": f"var({style.colour})", "width": style.width, "dash": style.dash},
        marker={"size": 4 + style.width, "symbol": style.symbol, "color": f"var({style.colour})"},
        hovertemplate=f"{label(method)}<br>round %{{customdata[0]}}: %{{y:.1f}} %<br>%{{customdata[1]}}<extra></extra>",
    )
    deviations = [s.std or 0.0 for s in curve.values()]
    if not band or not any(deviations):
        return [mean]
    if len(rounds) == 1:  # a band of no width cannot be seen
        mean.error_y = {"array": deviations, "color": f"var({style.colour})", "thickness": 1.5, "width": 4}
        return [mean]
    upper = [min(s.mean + d, 100.0) for s, d in zip(curve.values(), deviations, strict=True)]
    lower = [max(s.mean - d, 0.0) for s, d in zip(curve.values(), deviations, strict=True)]
    area = go.Scatter(
        x=rounds + rounds[::-1],
        y=upper + lower[::-1],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"var({style.band})",
        legendgroup=method,
        showlegend=False,
        hoverinfo="skip",
    )
    return [area, mean]


def grid_figure(comparison: Comparison, moment: Moment, metric: Metric) -> go.Figure | None:
    """Draw accuracy in the last round over the points of the grid; None where nothing varies or nothing was measured.

    Levels that are numbers, on one axis, have their place on an axis of numbers (a logarithmic one if they are all
    above 0 and far apart); others stand side by side.
    """
    if not comparison.axes:
        return None
    found = {method: _last(comparison, method, moment, metric) for method in comparison.methods}
    found = {method: values for method, values in found.items() if values}
    if not found:
        return None
    (axis, *others) = comparison.axes
    numeric = not others and axis.is_numeric
    places: dict[Point, float] = {point: float(n) for n, point in enumerate(comparison.points)}
    if numeric:
        places = {point: float(axis.values[point[0]]) for point in comparison.points}
    far = numeric and min(places.values()) > 0 and max(places.values()) >= 10 * min(places.values())
    figure = blank_figure(height=440)
    for n, method in enumerate(found):
        style, values = method_style(method), found[method]
        # side by side, since error bars on top of each other cannot be read
        shift = 0.0 if numeric else 0.5 * ((n + 0.5) / len(found) - 0.5)
        figure.add_trace(
            go.Scatter(
                x=[places[point] + shift for point in values],
                y=[s.mean for s in values.values()],
                error_y={
                    "array": [s.std or 0.0 for s in values.values()],
                    "color": f"var({style.colour})",
                    "thickness": 1.5,
                    "width": 3,
                },
                customdata=[[comparison.describe(point), _seeds_words(s)] for point, s in values.items()],
                mode="lines+markers" if numeric else "markers",
                name=label(method),
                legendrank=_rank(method),
                line={"color": f"var({style.colour})", "width": style.width, "dash": style.dash},
                marker={"size": 5 + style.width, "symbol": style.symbol, "color": f"var({style.colour})"},
                hovertemplate=f"{label(method)}<br>%{{customdata[0]}}: %{{y:.1f}} %<br>%{{customdata[1]}}"
                "<extra></extra>",
            )
        )
    titles = axis_titles([a.name for a in comparison.axes])
    figure.update_xaxes(
        title_text=label(", ".join(titles.values())),
        type="log" if far else "linear",
        tickvals=list(places.values()),
        ticktext=[label(", ".join(point), 24) for point in places],
        showgrid=not numeric,
    )
    if not numeric:
        figure.update_xaxes(range=[-0.5, len(places) - 0.5], showgrid=False)
    figure.update_yaxes(title_text=f"{METRIC_WORDS[metric]} (%)")
    return figure


def _last(comparison: Comparison, method: str, moment: Moment, metric: Metric) -> dict[Point, OverSeeds]:
    curves = {point: comparison.curve(method, point, moment, metric) for point in comparison.points}
    return {point: curve[max(curve)] for point, curve in curves.items() if curve}


def contrasts_figure(contrasts: Sequence[Contrast], *, wide: bool = True) -> go.Figure | None:
    """Draw the differences with their confidence intervals, a row per method; None if there are none.

    One that is not `wide` has short names.
    """
    if not contrasts:
        return None
    rows = list(range(len(contrasts)))
    figure = blank_figure(height=30 * len(rows) + 110)
    figure.add_vline(x=0, line={"color": "var(--muted)", "width": 1})
    known = [(row, c) for row, c in zip(rows, contrasts, strict=True) if c.test.low is not None]
    figure.add_trace(
        go.Scatter(
            x=[x for _, c in known for x in (c.test.low, c.test.high, None)],
            y=[y for row, _ in known for y in (row, row, None)],
            mode="lines",
            line={"color": "var(--muted)", "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for row, contrast in zip(rows, contrasts, strict=True):
        style = method_style(contrast.method)
        figure.add_trace(
            go.Scatter(
                x=[contrast.test.difference],
                y=[row],
                text=[_contrast_hover(contrast)],
                mode="markers",
                marker={"size": 11, "color": f"var({style.colour})", "symbol": style.symbol},
                hovertemplate="%{text}<extra></extra>",
                showlegend=False,
                cliponaxis=False,
            )
        )
    reference = label(contrasts[0].reference)
    ends = [x for c in contrasts for x in (c.test.low, c.test.high, c.test.difference) if x is not None] + [0.0]
    pad = 0.05 * (max(ends) - min(ends)) or 1.0
    figure.update_xaxes(
        title_text="points",
        range=[min(ends) - pad, max(ends) + pad],
    )
    figure.update_yaxes(
        tickvals=rows,
        ticktext=[(f"{reference} − " if wide else "− ") + label(contrast.method) for contrast in contrasts],
        range=[-0.7, len(rows) - 0.3],
        showgrid=False,
    )
    figure.update_layout(margin={"r": 24})
    return figure


def _contrast_hover(contrast: Contrast) -> str:
    test = contrast.test
    lines = [f"{label(contrast.reference)} − {label(contrast.method)}: {points(test.difference)} points"]
    if test.low is not None and test.high is not None:
        lines.append(f"95 % interval {points(test.low)} to {points(test.high)}")
    t_test, _ = p_words(contrast)
    lines.append(f"{plural(test.n, 'seed')}, p after Holm: {t_test}")
    return "<br>".join(lines)


def traffic_figure(comparison: Comparison, point: Point, moment: Moment, metric: Metric) -> go.Figure | None:
    """Draw accuracy against bytes per client in the whole run; None if fewer than two methods sent anything."""
    rows = [row for row in comparison.rows(point, moment, metric) if row.last and row.uplink and row.downlink]
    sent = {row.method: row.uplink.mean + row.downlink.mean for row in rows if row.uplink and row.downlink}
    drawn = [row for row in rows if sent[row.method] > 0]
    if len(drawn) < 2:
        return None
    figure = blank_figure(height=400)
    for row in drawn:
        assert row.last is not None
        style = method_style(row.method)
        figure.add_trace(
            go.Scatter(
                x=[sent[row.method]],
                y=[row.last.mean],
                error_y={
                    "array": [row.last.std or 0.0],
                    "color": f"var({style.colour})",
                    "thickness": 1.5,
                    "width": 3,
                },
                mode="markers",
                name=label(row.method),
                legendrank=_rank(row.method),
                marker={"size": 12, "symbol": style.symbol, "color": f"var({style.colour})"},
                hovertemplate=f"{label(row.method)}<br>{percent(row.last.mean)}<br>"
                f"{size(sent[row.method])} per client<extra></extra>",
            )
        )
    ticks = _byte_ticks(min(sent[row.method] for row in drawn), max(sent[row.method] for row in drawn))
    figure.update_xaxes(
        title_text="sent and received by a client in the whole run",
        type="log",
        tickvals=ticks,
        ticktext=[size(tick).replace(".0", "") for tick in ticks],
    )
    figure.update_yaxes(title_text=f"{METRIC_WORDS[metric]} (%)")
    return figure


def _byte_ticks(low: float, high: float) -> list[float]:
    """Return powers of two around these numbers of bytes, at most eight."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    step = next(step for step in (1, 2, 5, 10) if last - first <= 7 * step or step == 10)
    start = first - first % step
    return [2.0**power for power in range(start, last + step, step)]


def _seeds_words(s: OverSeeds) -> str:
    return "1 seed" if s.std is None else f"mean of {s.n} seeds, standard deviation {s.std:.1f}"


def _rank(method: str) -> int:
    names = [Cosmos.name, *(name for name in METHODS if name not in (Cosmos.name, Local.name)), Local.name]
    return names.index(method) if method in names else len(names)
