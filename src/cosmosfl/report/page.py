"""The report of a run: one HTML file, made from the run's directory, that opens offline."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
import tomli_w
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from cosmosfl.evaluation.metrics import MOMENTS, Moment
from cosmosfl.methods import METHODS
from cosmosfl.methods.cosmos import Cosmos
from cosmosfl.report.figures import (
    MANY_CLIENTS,
    METRIC_NAMES,
    accuracy_figure,
    clients_figure,
    distance_figure,
    traffic_figure,
)
from cosmosfl.report.paper import PaperCurve, paper_curve
from cosmosfl.report.results import (
    ClientRow,
    Results,
    client_rows,
    duration,
    headline,
    number,
    percent,
    plural,
    points,
    size,
)
from cosmosfl.store import RunDirectory, write_atomically

FILE_NAME = "report.html"

GLOSSARY: dict[Moment, tuple[str, str]] = {
    "local": ("alone", "The client's model trained alone, with the same number of local epochs so far."),
    "client_after_fit": (
        "own model before distillation",
        "The client's model after training on its private set in this round.",
    ),
    "client": (
        "own model",
        "The client's model after distillation in this round: what the client would deploy.",
    ),
    "cluster": ("own cluster's model", "The server's model of the client's own cluster."),
    "oracle": (
        "oracle",
        "The best of all cluster models, chosen on this test set: an upper bound that nobody can deploy.",
    ),
}


def write_report(directory: RunDirectory) -> Path:
    """Write ``report.html`` from the other files of a run, and return its path.

    The same files give the same report. It needs no network: the code that draws it is inside.
    """
    path = directory.path / FILE_NAME
    # an id with half a surrogate pair, as file names can have, is no reason to end a long run with an error
    write_atomically(path, render(Results.read(directory)).encode("utf-8", "replace").decode())
    return path


def render(results: Results) -> str:
    """Return the page."""
    sections = [
        _accuracy_section(results),
        _clients_section(results),
        _clusters_section(results),
        _traffic_section(results),
        _rejections_section(results),
        _configuration_section(results),
        _glossary_section(results),
    ]
    body = "\n".join([_header(results), *filter(None, sections), _footer(results)])
    return document(_title(results), body)


def document(title: str, body: str) -> str:
    """Return a whole page: what stands in the body, with the style, and what draws its pictures."""
    scripts = [get_plotlyjs(), _resource("page.js")] if 'class="plot' in body else []
    return Template(_resource("page.html")).substitute(
        title=text(title),
        body=body,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
        # no other script can run, whatever a client calls itself
        script_hashes=" ".join(map(_hash, scripts)) or "'none'",
    )


def text(value: object) -> str:
    """Return a value as text in HTML. Everything that comes from the files of a run goes through here."""
    return html.escape(str(value))


# --- the parts of the page, from top to bottom ----------------------------------------------------------------


def _title(results: Results) -> str:
    summary = results.summary
    on = f" on {summary['dataset']}" if summary["dataset"] else ""
    return f"{summary['method']}{on}"


def _header(results: Results) -> str:
    summary = results.summary
    rounds = plural(summary["rounds"], "round") if summary["rounds"] else "pre-training and first exchange only"
    facts = [plural(summary["clients"], "client"), rounds, f"seed {summary['seed']}"]
    method = METHODS.get(summary["method"])
    return f"""<header>
<h1>{text(_title(results))}</h1>
<p class="facts">{text(" · ".join(facts))}</p>
{f'<p class="facts">{text(method.name)}: {text(method.summary)}</p>' if method else ""}
<p class="headline">{text(headline(results))}</p>
{_cards(results)}
</header>"""


def _cards(results: Results) -> str:
    cards = [
        *_accuracy_cards(results),
        *_cluster_cards(results),
        *_traffic_cards(results),
        ("Wall time", duration(results.summary["wall_seconds"]), "without the local baseline"),
    ]
    if results.is_local:
        cards[-1] = (*cards[-1][:2], "")
    elif results.config.get("engine") == "flower":  # where parties train alone beside it
        cards[-1] = (*cards[-1][:2], "of the server, waiting for clients included")
    first = " first" if results.per_client("client") else ""
    items = [
        f'<div class="card{first if i == 0 else ""}"><dt>{text(name)}</dt><dd class="value">{value}</dd>'
        f'<dd class="hint">{text(hint)}</dd></div>'
        for i, (name, value, hint) in enumerate(cards)
    ]
    return f'<dl class="cards">{"".join(items)}</dl>'


def _accuracy_cards(results: Results) -> list[tuple[str, str, str]]:
    accuracy = results.summary["accuracy"]
    cards = []
    if client := accuracy["client"]:
        id, worst = min(client["per_client"].items(), key=lambda item: item[1])
        several = len(client["per_client"]) > 1
        hint = f"mean; worst {percent(worst)} ({_short(id)})" if several else _short(id)
        cards.append(("Clients' own models" if several else "Client's own model", percent(client["mean"]), hint))
    if (local := accuracy["local"]) and not results.is_local:
        whose = "Clients alone" if len(local["per_client"]) > 1 else "Client alone"
        cards.append((whose, percent(local["mean"]), "the same local epochs, no federation"))
    if cluster := accuracy["cluster"]:
        cards.append(("Own cluster's model", percent(cluster["mean"]), "the server's model"))
    if oracle := accuracy["oracle"]:
        hint = "best of all cluster models chosen on the test set: an upper bound that nobody can deploy"
        cards.append(("Oracle", percent(oracle["mean"]), hint))
    return cards


def _cluster_cards(results: Results) -> list[tuple[str, str, str]]:
    clusters = results.summary["clusters"]
    if not clusters:
        return []
    sizes = [len(members) for members in clusters]
    index = results.summary["adjusted_rand_index"]
    if len(set(sizes)) == 1:
        hint = f"of {plural(sizes[0], 'client')}" + (" each" if len(sizes) > 1 else "")
    else:
        hint = f"of {', '.join(map(str, sizes[:6]))}{', …' if len(sizes) > 6 else ''} clients"
    if index is not None:
        hint += f"; adjusted Rand index {index:.2f} (1: the true groups, 0: chance)"
    return [("Clusters" if len(clusters) > 1 else "Cluster", str(len(clusters)), hint)]


def _traffic_cards(results: Results) -> list[tuple[str, str, str]]:
    sent = results.summary["bytes"]
    up, down = sent["uplink_per_client_round"], sent["downlink_per_client_round"]
    if not (up or down):
        return []
    return [
        ("Uplink", size(up), "to the server, per client and round"),
        ("Downlink", size(down), "from the server, per client and round"),
    ]


def _accuracy_section(results: Results) -> str:
    if not results.measurements:
        return """<section>
<h2>Accuracy</h2>
<p>No client has a test set, so there is no accuracy to show. To have it measured, hand over a test set:
<code>Client(id, learner, inputs, labels, test=(test_inputs, test_labels))</code>. It is used for nothing
else.</p>
</section>"""
    moments: Sequence[Moment] = ("client",) if results.is_local else MOMENTS
    several = len({m.client for m in results.measurements}) > 1
    note = "Mean over clients, each on its own test set." if several else "On the client's own test set."
    if several:
        note += " Bands are one standard deviation over clients on either side."
    if not results.is_local:
        note += " Round 0 is pre-training and the first exchange."
    paper = _paper_of(results)
    figure = accuracy_figure(results.measurements, moments, paper if paper and paper.metric == "top1" else None)
    return f"""<section>
<h2>Accuracy over rounds</h2>
<p class="note">{text(note)}</p>
{plot("accuracy", figure, "Line chart of accuracy over rounds")}
{f'<p class="note">{text(_paper_note(paper))}</p>' if paper else ""}
</section>"""


def _paper_of(results: Results) -> PaperCurve | None:
    """Return the paper's curve for a run of the paper's method that has a configuration."""
    dataset, clients = results.config.get("dataset", {}), results.config.get("clients", {})
    if results.summary["method"] != Cosmos.name or "name" not in dataset:
        return None
    return paper_curve(dataset["name"], clients.get("models", ()))


def _paper_note(paper: PaperCurve) -> str:
    nth = paper.figure.removeprefix("fig. ")
    if paper.metric == "top5":
        start, end = percent(paper.accuracies[0]), percent(paper.accuracies[-1])
        note = (
            f"Figure {nth} of the paper (arXiv 2605.11165) has top-5 accuracy, so it is not in this chart: from "
            f"{start} in round {paper.rounds[0]} to {end} in round {paper.rounds[-1]}, to be compared with top5 of "
            "the oracle in metrics.jsonl. It"
        )
    else:
        note = f"The dotted line is figure {nth} of the paper (arXiv 2605.11165), read off to ±0.2 points. It"
    note += (
        " plots, for each client, the best of all cluster models chosen on its test set, so it compares with the "
        "oracle here, not with the clients' own models; and it is of full-size models and data, at 224 pixels."
    )
    if paper.caveat:
        note += f" It is another setting: {paper.caveat}."
    return note


def _clients_section(results: Results) -> str:
    rows = client_rows(results)
    figure = clients_figure(rows)
    if figure is None:
        return ""
    title = "Client by client" if all(row.change is None for row in rows) else "Before and after, client by client"
    return f"""<section>
<h2>{title}</h2>
<p class="note">{text(_clients_note(results, rows))}</p>
{plot("clients", figure, "Chart of each client's accuracy", square=figure.layout.height is None)}
{_clients_table(rows)}
</section>"""


def _clients_note(results: Results, rows: Sequence[ClientRow]) -> str:
    notes = []
    compared = sum(row.change is not None for row in rows)
    if compared > MANY_CLIENTS:
        notes.append("Each client at the end of the run: above the line it gained from federation, below it lost.")
    elif compared:
        notes.append("From training alone (ring) to the client's own model (dot), at the end of the run.")
    if results.summary["clusters"]:
        notes.append("Clusters are numbered as in run.clusters.")
    samples = {m.samples for m in results.measurements}
    if len(samples) == 1:
        n = samples.pop()
        notes.append(f"Each test set has {plural(n, 'sample')}, so that one sample is {_points(100 / n)}.")
    elif samples:
        fewest, most = min(samples), max(samples)
        notes.append(
            f"The test sets have {number(fewest)} to {plural(most, 'sample')}, so that one sample is "
            f"{100 / most:.2g} to {_points(100 / fewest)}."
        )
    return " ".join(notes)


def _clients_table(rows: Sequence[ClientRow]) -> str:
    moments = [m for m in ("local", "client_after_fit", "client", "cluster") if any(m in r.accuracy for r in rows)]
    heads = {
        "local": "alone",
        "client_after_fit": "before distillation",
        "client": "own model",
        "cluster": "cluster's model",
    }
    clustered = any(row.cluster is not None for row in rows)
    changed = any(row.change is not None for row in rows)
    columns = ["client", *(["cluster"] if clustered else [])]
    numbers = [*(f"{heads[m]} (%)" for m in moments), *(["change (points)"] if changed else [])]

    def line(row: ClientRow) -> str:
        cells = [f'<th scope="row" title="{text(row.id)}">{text(row.id)}</th>']
        if clustered:
            cells.append(f"<td>{'–' if row.cluster is None else row.cluster}</td>")
        for moment in moments:
            value = row.accuracy.get(moment)  # type: ignore[call-overload]
            cells.append(f'<td class="number">{"–" if value is None else f"{value:.1f}"}</td>')
        if changed:
            cells.append(_change_cell(row.change))
        return f"<tr>{''.join(cells)}</tr>"

    return table("Accuracy of each client", columns, numbers, map(line, rows))


def _change_cell(change: float | None) -> str:
    if change is None:
        return '<td class="number">–</td>'
    outcome = "gained" if change > 0 else "lost" if change < 0 else ""
    return f'<td class="number {outcome}">{points(change)}</td>'


def _clusters_section(results: Results) -> str:
    clustering = results.clustering
    figure = distance_figure(clustering) if clustering else None
    if clustering is None or figure is None:
        return ""
    metric = clustering.metric
    if metric in METRIC_NAMES:
        metric = f"{METRIC_NAMES[metric]} between predictions on the public set"
    n = len(clustering.clusters)
    note = (
        f"{plural(n, 'cluster')} from {plural(len(clustering.clients), 'client')}: a member is at most the "
        f"threshold B₀ = {clustering.threshold:.3g} from the centre of its cluster ({metric}). "
        "Blue pairs are nearer than that, orange ones are farther apart; the frames are the "
        "clusters."
    )
    if later := [id for members in clustering.clusters for id in members if id not in clustering.clients]:
        note += f" Joined later, by the nearest cluster, and not in the picture: {', '.join(later)}."
    return f"""<section>
<h2>Who learns with whom</h2>
<p class="note">{text(note)}</p>
{plot("distances", figure, "Matrix of distances between clients, ordered by cluster", square=True)}
</section>"""


def _traffic_section(results: Results) -> str:
    figure = traffic_figure(results.traffic)
    if figure is None:
        return """<section>
<h2>Traffic</h2>
<p>Nothing was sent: no byte left a client or reached one.</p>
</section>"""
    up, down = sum(t.uplink for t in results.traffic), sum(t.downlink for t in results.traffic)
    clients, exchanges = len({t.client for t in results.traffic}), len({t.round for t in results.traffic})
    sent = results.summary["bytes"]
    note = (
        f"{plural(clients, 'client')} sent {size(up)} and received {size(down)} in "
        f"{plural(exchanges, 'exchange')}: {size(sent['uplink_per_client_round'])} up and "
        f"{size(sent['downlink_per_client_round'])} down per client and round. Counted from the content of the "
        "messages, without what a network adds."
    )
    return f"""<section>
<h2>Traffic</h2>
<p class="note">{text(note)}</p>
{plot("traffic", figure, "Bar chart of bytes sent so far by round")}
</section>"""


def _rejections_section(results: Results) -> str:
    if not results.rejections:
        return ""
    lines = (
        f'<tr><td>{r.round}</td><th scope="row">{text(r.client)}</th><td class="text">{text(r.reason)}</td></tr>'
        for r in results.rejections
    )
    n = len(results.rejections)
    return f"""<section>
<h2>Rejected messages</h2>
<p class="note">The server did not accept {plural(n, "message")}, and went on without.</p>
{table("Rejected messages", ["round", "client", "reason"], [], lines)}
</section>"""


def _configuration_section(results: Results) -> str:
    environment = {key: value for key, value in results.environment.items() if key != "packages"}
    packages = results.environment.get("packages") or {}
    lines = (
        f'<tr><th scope="row">{text(key)}</th><td class="text">{"–" if value is None else text(value)}</td></tr>'
        for key, value in (environment | packages).items()
    )
    return f"""<section>
<details>
<summary><h2>Configuration</h2></summary>
<pre>{text(tomli_w.dumps(results.config))}</pre>
</details>
<details>
<summary><h2>Machine and versions</h2></summary>
{table("Machine and versions", ["what", "value"], [], lines)}
</details>
</section>"""


def _glossary_section(results: Results) -> str:
    measured = {m.moment for m in results.measurements}
    entries = [(m, *GLOSSARY[m]) for m in MOMENTS if m in measured]
    if not entries:
        return ""
    same = " Without federation, all of these are the same model." if results.is_local else ""
    terms = "\n".join(f"<dt>{name} <code>{moment}</code></dt><dd>{meaning}</dd>" for moment, name, meaning in entries)
    return f"""<section>
<h2>What is measured</h2>
<p class="note">Top-1 accuracy, always on a client's own test set.{same}</p>
<dl class="glossary">
{terms}
</dl>
</section>"""


def _footer(results: Results) -> str:
    version = (results.environment.get("packages") or {}).get("cosmosfl")
    program = f"cosmosfl {version}" if version else "cosmosfl"
    return f"<footer>Made from the files of the run by {text(program)}. Nothing on this page is fetched.</footer>"


# --- pieces ----------------------------------------------------------------------------------------------------


def plot(id: str, figure: go.Figure, description: str, *, square: bool = False) -> str:
    """Return the place of a picture and its data. The JSON holds no ``<`` that could end its element."""
    place = f'class="plot square" style="--left: {figure.layout.margin.l}px"' if square else 'class="plot"'
    return (
        f'<div {place} id="{id}" role="img" aria-label="{text(description)}"></div>\n'
        f'<script type="application/json" id="{id}-data">{to_json_plotly(figure, engine="json")}</script>'
    )


def table(description: str, columns: Sequence[str], numbers: Sequence[str], lines: Iterable[str]) -> str:
    """Return a table that scrolls inside its own box."""
    heads = [f'<th scope="col">{name}</th>' for name in columns]
    heads += [f'<th scope="col" class="number">{name}</th>' for name in numbers]
    return f"""<div class="table" role="region" aria-label="{text(description)}" tabindex="0">
<table>
<thead><tr>{"".join(heads)}</tr></thead>
<tbody>
{"".join(lines)}
</tbody>
</table>
</div>"""


def _points(value: float) -> str:
    return f"{value:.2g} point{'' if value == 1 else 's'}"


def _short(id: str) -> str:
    return id if len(id) <= 24 else id[:23] + "…"


def _resource(name: str) -> str:
    return resources.files("cosmosfl.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest: Any = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
