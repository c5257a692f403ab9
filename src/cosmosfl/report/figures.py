"""The pictures of a report: pure functions from data to plotly figures.

Colours that differ between a light and a dark page are written ``var(--name)``: page.html defines them, and
page.js looks them up. Ids of clients come from others, and plotly understands some HTML: they go through `label`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from cosmosfl.evaluation.metrics import MOMENTS, Measurement, Moment, summarise
from cosmosfl.events import Traffic
from cosmosfl.protocol import Clustering
from cosmosfl.report.paper import PaperCurve
from cosmosfl.report.results import ClientRow, curves, percent, plural, points, scaled, size

MANY_CLIENTS = 60
"""Beyond this, clients are points of a scatter plot instead of rows."""
MOST_LABELS = 40
"""Beyond this, rows of the distance matrix are lower than their labels."""
LONGEST_LABEL = 18
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

METRIC_NAMES = {
    "l2": "root-mean-square distance",
    "cosine": "cosine distance",
    "aitchison": "Aitchison distance",
    "correlation": "correlation distance",
    "disagreement": "fraction of samples in disagreement",
}


@dataclass(frozen=True)
class _Line:
    """How a moment is drawn."""

    name: str
    width: float
    dash: str = "solid"
    band: bool = False


_LINES: dict[Moment, _Line] = {
    "client": _Line("own model", 5, band=True),
    "local": _Line("alone", 2, band=True),
    "client_after_fit": _Line("own model before distillation", 1.5, "dot"),
    "cluster": _Line("own cluster's model", 2),
    "oracle": _Line("oracle (not deployable)", 2, "dash"),
}


def label(id: str, longest: int | None = None) -> str:
    """Return the id of a client as text that plotly shows as it is; cut to `longest` characters."""
    if longest is not None and len(id) > longest:
        id = id[: longest - 1] + "…"
    # plotly decodes these entities, not those of quotes; two dollar signs would be mathematics
    return html.escape(id, quote=False).replace("$", "&#36;")


def accuracy_figure(
    measurements: Iterable[Measurement], moments: Sequence[Moment] = MOMENTS, paper: PaperCurve | None = None
) -> go.Figure:
    """Draw accuracy over rounds: means, bands of one standard deviation, and every client as a thin line.

    The curve of the paper, if there is one, has to be of top-1 accuracy, as all else here; it ends with the run.
    """
    found = curves(measurements)
    shown = [moment for moment in moments if moment in found]
    rounds = sorted({round for moment in shown for round in found[moment]})
    # the headline is a thick line under the others, so that those which coincide with it can be seen
    shown.sort(key=list(_LINES).index)
    # the points of a single round would lie on top of each other
    shifts = {moment: 0.12 * (i - (len(shown) - 1) / 2) if len(rounds) == 1 else 0.0 for i, moment in enumerate(shown)}
    figure = blank_figure(height=460)
    if "client" in shown and len({id for values in found["client"].values() for id in values}) > 1:
        figure.add_trace(_single_clients(found["client"], shifts["client"]))
    if paper is not None and rounds:
        figure.add_trace(_paper_line(paper, last=rounds[-1]))
    for moment in shown:
        figure.add_traces(_mean_line(moment, found[moment], shifts[moment]))
    figure.update_xaxes(title_text="round", showgrid=False, **whole_numbers(rounds))
    figure.update_yaxes(title_text="accuracy (%)")
    return figure


def _single_clients(by_round: Mapping[int, Mapping[str, float]], shift: float) -> go.Scatter:
    """Return all clients as one trace with gaps, since hundreds of traces would be slow."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    ids = dict.fromkeys(id for values in by_round.values() for id in values)
    few = len(ids) <= 30
    for id in ids:
        measured = [(round, values[id]) for round, values in sorted(by_round.items()) if id in values]
        x += [round + shift for round, _ in measured] + [None]
        y += [accuracy for _, accuracy in measured] + [None]
        text += [f"{label(id)}<br>round {round}" for round, _ in measured] + [""]
    return go.Scatter(
        x=x,
        y=y,
        text=text,
        mode="lines+markers" if few else "lines",
        opacity=1 if few else 0.4,
        name="own model, single clients",
        legendrank=len(_LINES),
        line={"color": "var(--single)", "width": 1},
        marker={"size": 3},
        hovertemplate="%{text}: %{y:.1f} %<extra></extra>",
    )


def _paper_line(paper: PaperCurve, last: int) -> go.Scatter:
    # points beyond the axis of rounds would not be seen, yet stretch that of accuracies
    shown = [at for at in zip(paper.rounds, paper.accuracies, strict=True) if at[0] <= last]
    return go.Scatter(
        x=[round for round, _ in shown],
        y=[accuracy for _, accuracy in shown],
        mode="lines+markers",
        name=paper.label,
        legendrank=len(_LINES) + 1,
        line={"color": "var(--muted)", "width": 2, "dash": "dot"},
        marker={"size": 5, "symbol": "diamond-open", "color": "var(--muted)"},
        hovertemplate=f"paper, {paper.figure}<br>round %{{x}}: %{{y:.1f}} %<extra></extra>",
    )


def _mean_line(moment: Moment, by_round: Mapping[int, dict[str, float]], shift: float) -> list[go.Scatter]:
    line, colour = _LINES[moment], f"var(--{moment.replace('_', '-')})"
    rounds = sorted(by_round)
    summaries = [summary for summary in (summarise(by_round[round]) for round in rounds) if summary]
    hover = [
        f"mean of {plural(len(s.per_client), 'client')}, standard deviation {s.std:.1f}"
        if len(s.per_client) > 1
        else "1 client"
        for s in summaries
    ]
    mean = go.Scatter(
        x=[round + shift for round in rounds],
        y=[s.mean for s in summaries],
        customdata=list(zip(rounds, hover, strict=True)),
        mode="lines+markers",
        name=line.name,
        legendgroup=moment,
        legendrank=list(_LINES).index(moment),
        line={"color": colour, "width": line.width, "dash": line.dash},
        marker={"size": 4 + line.width, "color": colour},
        hovertemplate=f"{line.name}<br>round %{{customdata[0]}}: %{{y:.1f}} %<br>%{{customdata[1]}}<extra></extra>",
    )
    if not line.band or all(s.std == 0 for s in summaries):
        return [mean]
    if len(rounds) == 1:  # a band of no width cannot be seen
        mean.error_y = {"array": [summaries[0].std], "color": colour, "thickness": 1.5, "width": 6}
        return [mean]
    upper = [min(s.mean + s.std, 100.0) for s in summaries]
    lower = [max(s.mean - s.std, 0.0) for s in summaries]
    band = go.Scatter(
        x=rounds + rounds[::-1],
        y=upper + lower[::-1],
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=f"var(--{moment}-band)",
        legendgroup=moment,
        showlegend=False,
        hoverinfo="skip",
    )
    return [band, mean]


def clients_figure(rows: Sequence[ClientRow]) -> go.Figure | None:
    """Draw each client alone and after federation; None if no client was measured.

    Up to `MANY_CLIENTS` they are rows, by cluster, in the order given; beyond, points of a scatter plot.
    """
    measured = [row for row in rows if "client" in row.accuracy]
    if not measured:
        return None
    if len(measured) > MANY_CLIENTS and any(row.change is not None for row in measured):
        return _scatter([row for row in measured if row.change is not None])
    return _dumbbell(measured)


def _dumbbell(rows: Sequence[ClientRow]) -> go.Figure:
    positions, tick_positions, tick_labels = _positions(rows)
    few = len(rows) <= MANY_CLIENTS
    figure = blank_figure(height=24 * (len(tick_labels) + 1) + 120 if few else 460)
    for name, colour, chosen in _by_outcome(rows, positions):
        ends = [(row.accuracy.get("local", row.accuracy["client"]), row.accuracy["client"]) for row, _ in chosen]
        figure.add_trace(
            go.Scatter(
                x=[x for start, end in ends for x in (start, end, None)],
                y=[y for _, at in chosen for y in (at, at, None)],
                mode="lines",
                line={"color": colour, "width": 3},
                opacity=0.55,
                showlegend=False,
                hoverinfo="skip",
            )
        )
        if any("local" in row.accuracy for row, _ in chosen):
            figure.add_trace(
                go.Scatter(
                    x=[start for start, _ in ends],
                    y=[at for _, at in chosen],
                    mode="markers",
                    marker={"color": "var(--surface)", "size": 9, "line": {"color": colour, "width": 2}},
                    showlegend=False,
                    hoverinfo="skip",
                    cliponaxis=False,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[end for _, end in ends],
                y=[at for _, at in chosen],
                text=[_hover(row) for row, _ in chosen],
                mode="markers",
                marker={"color": colour, "size": 11 if few else 5},
                name=name,
                showlegend=any(row.change is not None for row in rows),
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
            )
        )
    figure.add_trace(_changes(rows, positions))
    figure.update_xaxes(title_text="accuracy (%)", side="top")
    figure.update_yaxes(
        range=[max(positions) + 0.8, -0.8],
        tickvals=tick_positions if few else [],
        ticktext=tick_labels if few else [],
        showgrid=False,
        title_text=None if few else plural(len(rows), "client"),
    )
    figure.update_layout(margin={"r": 56})
    return figure


def _positions(rows: Sequence[ClientRow]) -> tuple[list[int], list[int], list[str]]:
    """Return each client's row in the picture, and the rows' labels with a headline over every cluster."""
    clusters = dict.fromkeys(row.cluster for row in rows)
    positions, tick_labels = [], []
    for cluster in clusters:
        if len(clusters) > 1:
            tick_labels.append("<b>not clustered</b>" if cluster is None else f"<b>cluster {cluster}</b>")
        for row in rows:
            if row.cluster == cluster:
                positions.append(len(tick_labels))
                tick_labels.append(label(row.id, LONGEST_LABEL))
    return positions, list(range(len(tick_labels))), tick_labels


def _changes(rows: Sequence[ClientRow], positions: Sequence[int]) -> go.Scatter:
    """Return the numbers right of each pair of points."""
    shown = [(row, at) for row, at in zip(rows, positions, strict=True) if row.change is not None]
    return go.Scatter(
        x=[max(row.accuracy["local"], row.accuracy["client"]) for row, _ in shown],
        y=[at for _, at in shown],
        text=[f"  {points(row.change)}" for row, _ in shown if row.change is not None],
        mode="text",
        textposition="middle right",
        textfont={"color": "var(--muted)", "size": 11},
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
    )


def _scatter(rows: Sequence[ClientRow]) -> go.Figure:
    values = [row.accuracy[moment] for row in rows for moment in ("local", "client")]
    pad = max(0.05 * (max(values) - min(values)), 1.0)
    ends = [max(min(values) - pad, 0.0), min(max(values) + pad, 100.0)]
    figure = blank_figure(height=None)
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": "var(--single)", "width": 1},
            name="no change",
            hoverinfo="skip",
        )
    )
    for name, colour, chosen in _by_outcome(rows, range(len(rows))):
        figure.add_trace(
            go.Scatter(
                x=[row.accuracy["local"] for row, _ in chosen],
                y=[row.accuracy["client"] for row, _ in chosen],
                text=[_hover(row) for row, _ in chosen],
                mode="markers",
                marker={"color": colour, "size": 8, "opacity": 0.7},
                name=name,
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
            )
        )
    figure.update_layout(margin={"l": 56})
    figure.update_xaxes(title_text="accuracy alone (%)", range=ends)
    figure.update_yaxes(title_text="accuracy of the own model (%)", range=ends)
    return figure


def _by_outcome(
    rows: Sequence[ClientRow], positions: Iterable[int]
) -> list[tuple[str, str, list[tuple[ClientRow, int]]]]:
    """Return name, colour and the clients with their positions: gained, lost, the same; none that is empty."""
    gained: list[tuple[ClientRow, int]] = []
    lost: list[tuple[ClientRow, int]] = []
    same: list[tuple[ClientRow, int]] = []
    for row, at in zip(rows, positions, strict=True):
        change = row.change
        (same if not change else gained if change > 0 else lost).append((row, at))
    colour = "var(--client)" if not (gained or lost) else "var(--muted)"
    groups = [("gained", "var(--client)", gained), ("lost", "var(--loss)", lost), ("the same", colour, same)]
    return [group for group in groups if group[2]]


def _hover(row: ClientRow) -> str:
    lines = [label(row.id) + ("" if row.cluster is None else f", cluster {row.cluster}")]
    if "local" in row.accuracy:
        lines.append(f"alone {percent(row.accuracy['local'])}")
    lines.append(f"own model {percent(row.accuracy['client'])}")
    if row.change is not None:
        lines.append(f"{points(row.change)} points")
    return "<br>".join(lines)


def distance_figure(clustering: Clustering) -> go.Figure | None:
    """Draw the distance matrix by cluster; None for fewer than two clients.

    The colours turn at the threshold: blue pairs are near enough for one cluster, orange ones are not. Clients that
    joined later are left out: no distances of theirs were kept.
    """
    if len(clustering.clients) < 2:
        return None
    row = {id: i for i, id in enumerate(clustering.clients)}
    clusters = [[id for id in members if id in row] for members in clustering.clusters]
    ids = [id for members in clusters for id in members]
    order = [row[id] for id in ids]
    distances = clustering.distances[np.ix_(order, order)]
    names = [label(id) for id in ids]
    largest, b0 = float(distances.max()) or 1.0, clustering.threshold
    turns = 0 < b0 < largest
    figure = blank_figure(height=None)
    figure.add_trace(
        go.Heatmap(
            x=names,
            y=names,
            z=np.round(distances, 3).tolist(),
            zmin=0,
            zmax=largest,
            colorscale=_scale(b0 / largest if turns else 1.0 if b0 >= largest else 0.0),
            colorbar={
                "title": {"text": METRIC_NAMES.get(clustering.metric, label(clustering.metric)), "side": "top"},
                "orientation": "h",
                "thickness": 10,
                "y": -0.02,
                "yanchor": "top",
                "outlinewidth": 0,
                "ticks": "outside",
                **_colour_ticks(b0 if turns else None, largest),
            },
            hovertemplate="%{x}<br>%{y}<br>distance %{z:.3f}<extra></extra>",
        )
    )
    start = -0.5
    for members in filter(None, clusters):
        end = start + len(members)
        figure.add_shape(type="rect", x0=start, x1=end, y0=start, y1=end, line={"color": "var(--ink)", "width": 1.5})
        start = end
    labelled = ids if len(ids) <= MOST_LABELS else []
    figure.update_layout(margin={"l": 12 + max(map(_width, labelled), default=0)})
    figure.update_xaxes(type="category", showticklabels=False, ticks="", showgrid=False, constrain="domain")
    figure.update_yaxes(
        type="category",
        # by name: plotly would take a place, 1, for the client called "1"
        tickvals=[label(id) for id in labelled],
        ticktext=[label(id, LONGEST_LABEL) for id in labelled],
        automargin=False,  # the matrix has to stay square
        ticks="",
        tickfont={"size": 12 if len(ids) <= 30 else 9},
        showgrid=False,
        autorange="reversed",
        scaleanchor="x",
        constrain="domain",
    )
    return figure


def _width(id: str) -> int:
    """Return about how wide the label is, in pixels."""
    return 7 * min(len(id), LONGEST_LABEL)


def _scale(turn: float) -> list[list[Any]]:
    """Return blue to pale up to `turn`, pale to orange beyond."""
    near, middle, far = "var(--near)", "var(--middle)", "var(--far)"
    if turn >= 1:
        return [[0, near], [1, middle]]
    if turn <= 0:
        return [[0, middle], [1, far]]
    return [[0, near], [turn, middle], [1, far]]


def _colour_ticks(b0: float | None, largest: float) -> dict[str, Any]:
    """Return ticks at the ends and at the threshold; an end too near to the threshold is left out."""
    ticks = {0.0: "0", largest: f"{largest:.2f}"}
    if b0 is not None:
        ticks = {value: text for value, text in ticks.items() if abs(value - b0) > 0.18 * largest}
        ticks[b0] = f"B₀ {b0:.2f}"
    return {"tickvals": list(ticks), "ticktext": list(ticks.values())}


def traffic_figure(traffic: Iterable[Traffic]) -> go.Figure | None:
    """Draw all clients' bytes so far, round by round; None if nothing was sent."""
    totals: dict[int, tuple[int, int]] = {}
    for t in traffic:
        up, down = totals.get(t.round, (0, 0))
        totals[t.round] = (up + t.uplink, down + t.downlink)
    if not any(map(any, totals.values())):
        return None
    rounds = sorted(totals)
    so_far = np.cumsum([totals[round] for round in rounds], axis=0)
    value, unit = scaled(float(so_far[-1].sum()))
    factor = so_far[-1].sum() / value
    figure = blank_figure(height=340)
    bars = (("uplink (to the server)", "client"), ("downlink (to the clients)", "client-after-fit"))
    for column, (name, colour) in enumerate(bars):
        sums = so_far[:, column]
        figure.add_trace(
            go.Bar(
                x=rounds,
                y=(sums / factor).tolist(),
                customdata=[[size(n), size(totals[r][column])] for r, n in zip(rounds, sums, strict=True)],
                name=name,
                marker={"color": f"var(--{colour})"},
                hovertemplate=f"{name}<br>up to round %{{x}}: %{{customdata[0]}}<br>"
                "in this round: %{customdata[1]}<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    figure.update_xaxes(title_text="round", showgrid=False, **whole_numbers(rounds, pad=0.6))
    figure.update_yaxes(title_text=f"sent so far ({unit})", rangemode="tozero")
    return figure


def blank_figure(height: int | None) -> go.Figure:
    """Return an empty figure in the style of the page. Without a height it takes that of its container."""
    axis = {
        "gridcolor": "var(--line)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "title": {"font": {"color": "var(--muted)"}, "standoff": 12},
    }
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "font": {"family": FONT, "color": "var(--ink)"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "xref": "container",
                "x": 0,
            },
            "hoverlabel": {
                "bgcolor": "var(--surface)",
                "bordercolor": "var(--line)",
                "font": {"family": FONT, "color": "var(--ink)"},
                "align": "left",
            },
            "hovermode": "closest",
            "dragmode": False,  # so that a finger on a picture scrolls the page
        }
    )


def whole_numbers(rounds: Sequence[int], pad: float | None = None) -> dict[str, Any]:
    """Return axis settings with at most a dozen whole ticks, and `pad` rounds of room at either end."""
    if not rounds:
        return {}
    span = rounds[-1] - rounds[0]
    step = next(s * 10**power for power in range(9) for s in (1, 2, 5) if span <= 12 * s * 10**power)
    if pad is None:
        pad = max(0.02 * span, 0.15) if span else 0.5
    return {"dtick": step, "tick0": 0, "tickformat": "d", "range": [rounds[0] - pad, rounds[-1] + pad]}
