"""Who holds what: how many samples of each class every client has. Pure functions from counts to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from cosmosfl.config import ExperimentConfig
from cosmosfl.data.sets import IntArray
from cosmosfl.data.sources import SOURCES
from cosmosfl.experiment import Federation
from cosmosfl.protocol import ClientId
from cosmosfl.report.figures import LONGEST_LABEL, MANY_CLIENTS, blank_figure, label
from cosmosfl.report.page import document, plot, text
from cosmosfl.report.results import number, plural

FEW_CLASSES = 20
"""Up to this many, a table has a column for each, and cells of the picture have numbers."""
_PIXELS = 24
"""Height of a client in the picture."""


@dataclass(frozen=True, eq=False)
class Holdings:
    """Samples by client and class, clients in the order of their groups.

    Attributes
    ----------
    clients
        Their ids (n,).
    groups
        The true group of each, or None.
    class_names
        One name per class (C,).
    private, test
        Numbers of samples (n, C).
    """

    clients: tuple[ClientId, ...]
    groups: tuple[int, ...] | None
    class_names: tuple[str, ...]
    private: IntArray
    test: IntArray

    @classmethod
    def of(cls, federation: Federation, class_names: Sequence[str]) -> Holdings:
        """Count the samples of every client."""
        groups = federation.groups
        clients = federation.clients
        if groups is not None:
            clients = sorted(clients, key=lambda client: groups[client.id])  # stable
        nothing = np.empty(0, np.int64)
        return cls(
            clients=tuple(client.id for client in clients),
            groups=None if groups is None else tuple(groups[client.id] for client in clients),
            class_names=tuple(class_names),
            private=_counts([client.private.labels for client in clients], len(class_names)),
            test=_counts([client.test.labels if client.test else nothing for client in clients], len(class_names)),
        )


def _counts(labels: Sequence[IntArray], n_classes: int) -> IntArray:
    return np.stack([np.bincount(own, minlength=n_classes) for own in labels]).astype(np.int64)


def holdings_facts(config: ExperimentConfig, federation: Federation, class_names: Sequence[str]) -> dict[str, str]:
    """Return what the counts are of, a line each: data set, partition and public set."""
    data, partition = config.dataset, config.partition
    known = SOURCES.get(data.name)
    about = f"{data.name}: {known.summary}" if known else f"{data.name}: {len(class_names)} classes"
    options = ", ".join(f"{key} {value}" for key, value in partition.options().items())
    by = f"{partition.name} ({options})" if options else partition.name
    origin = f"of {data.public}" if data.public else f"of the training set ({100 * data.public_fraction:g} % set aside)"
    return {
        "data set": about,
        "partition": f"{by}, {plural(len(federation.clients), 'client')}, seed {config.seed}",
        "public set": f"{plural(len(federation.public), 'sample')} without labels, {origin}",
    }


def holdings_page(holdings: Holdings, dataset: str, facts: Sequence[str]) -> str:
    """Return an HTML page with the picture, which opens offline.

    Parameters
    ----------
    holdings
        What to draw.
    dataset
        Name of the data set.
    facts
        Lines for the head of the page.
    """
    title = f"Who holds what: {dataset}"
    lines = "\n".join(f'<p class="facts">{text(fact)}</p>' for fact in facts)
    body = f"""<header>
<h1>{text(title)}</h1>
{lines}
</header>
<section>
<h2>Samples by client and class</h2>
<p class="note">Private samples on the left, test samples on the right, each with its own scale of colours. The public
set has no labels, so it is not here.</p>
{plot("holdings", holdings_figure(holdings), "Heat maps of samples by client and class, private and test")}
</section>"""
    return document(title, body)


def holdings_figure(holdings: Holdings) -> go.Figure:
    """Draw clients x classes: private samples on the left, test samples on the right, with a headline per group."""
    rows = _rows(holdings)
    tick_text = _tick_labels(holdings, rows)
    # hundreds of clients would make a page of many screens
    figure = blank_figure(height=min(_PIXELS * len(rows), 1000) + 150)
    sides = (("private samples", "x", holdings.private), ("test samples", "x2", holdings.test))
    for (title, axis, counts), ends in zip(sides, ((0.0, 0.49), (0.51, 1.0)), strict=True):
        figure.add_trace(_heatmap(holdings, rows, counts, title, axis, ends))
        figure.add_annotation(
            text=f"<b>{title}</b> ({number(int(counts.sum()))})",
            x=sum(ends) / 2,
            y=1,
            xref="paper",
            yref="paper",
            xanchor="center",
            yanchor="bottom",
            showarrow=False,
        )
    n_classes = len(holdings.class_names)
    figure.update_layout(xaxis2=figure.layout.xaxis, margin={"t": 32, "b": 84})
    for axis, domain in (("xaxis", [0, 0.49]), ("xaxis2", [0.51, 1])):
        # numbers, since two classes could be cut to the same label
        figure.layout[axis].update(domain=domain, showgrid=False, title_text="class", range=[-0.5, n_classes - 0.5])
        if n_classes <= FEW_CLASSES or max(map(len, holdings.class_names)) == 1:
            names = [label(name, LONGEST_LABEL) for name in holdings.class_names]
            figure.layout[axis].update(tickvals=list(range(n_classes)), ticktext=names)
        if n_classes > FEW_CLASSES:  # single letters side by side, which plotly would turn
            figure.layout[axis].update(tickangle=0, tickfont_size=9)
    figure.update_yaxes(
        range=[len(rows) - 0.5, -0.5],
        tickvals=[at for at, tick in enumerate(tick_text) if tick],
        ticktext=[tick for tick in tick_text if tick],
        showgrid=False,
    )
    return figure


def _rows(holdings: Holdings) -> list[int | None]:
    """Return the client of each row of the picture; None for the headline of a group."""
    rows: list[int | None] = []
    for i in range(len(holdings.clients)):
        if holdings.groups is not None and (i == 0 or holdings.groups[i] != holdings.groups[i - 1]):
            rows.append(None)
        rows.append(i)
    return rows


def _tick_labels(holdings: Holdings, rows: Sequence[int | None]) -> list[str]:
    """Return a label per row; the empty one for clients if there are many."""
    headlines = iter(dict.fromkeys(holdings.groups or ()))
    few = len(holdings.clients) <= MANY_CLIENTS
    return [
        f"<b>group {next(headlines)}</b>" if i is None else label(holdings.clients[i], LONGEST_LABEL) if few else ""
        for i in rows
    ]


def _heatmap(
    holdings: Holdings,
    rows: Sequence[int | None],
    counts: IntArray,
    title: str,
    axis: str,
    ends: tuple[float, float],
) -> go.Heatmap:
    gap, blank = [None] * len(holdings.class_names), [""] * len(holdings.class_names)
    few = len(holdings.class_names) <= FEW_CLASSES and len(holdings.clients) <= MANY_CLIENTS
    names = [label(name) for name in holdings.class_names]
    return go.Heatmap(
        z=[gap if i is None else counts[i].tolist() for i in rows],
        text=[blank if i is None else [str(n or "") for n in counts[i]] for i in rows] if few else None,
        texttemplate="%{text}" if few else None,
        hovertext=[
            gap
            if i is None
            else [
                f"{label(holdings.clients[i])}<br>class {name}<br>{n} {title}"
                for name, n in zip(names, counts[i], strict=True)
            ]
            for i in rows
        ],
        hoverinfo="text",
        hoverongaps=False,
        xaxis=axis,
        xgap=1,
        ygap=1,
        zmin=0,
        zmax=max(int(counts.max()), 1),
        colorscale=[[0, "var(--middle)"], [1, "var(--near)"]],
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "x": sum(ends) / 2,
            "len": 0.4,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "outlinewidth": 0,
            "nticks": 5,
        },
    )
