"""The page of a comparison: one HTML file, made from the comparison's directory, that opens offline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

import tomli_w

from cosmosfl.comparison.figures import (
    MANY_METHODS,
    contrasts_figure,
    curves_figure,
    grid_figure,
    method_style,
    traffic_figure,
)
from cosmosfl.comparison.outcome import METRIC_WORDS, Comparison, Contrast, Point, Row
from cosmosfl.comparison.tables import (
    CEILING,
    COLUMNS,
    FILES,
    LATEX,
    MARKDOWN,
    competing,
    difference_words,
    highest,
    left_out_lines,
    p_words,
    spread,
)
from cosmosfl.evaluation.metrics import Moment
from cosmosfl.evaluation.statistics import SIGNIFICANT, OverSeeds
from cosmosfl.layers import flat
from cosmosfl.methods import METHODS
from cosmosfl.methods.local import Local
from cosmosfl.report.page import GLOSSARY, document, plot, table, text
from cosmosfl.report.results import duration, plural, size
from cosmosfl.store import write_atomically

FILE_NAME = "compare.html"
MOST_POINTS = 16
"""Points of the grid that curves are drawn for."""


def write_page(comparison: Comparison, directory: Path) -> Path:
    """Write ``compare.html`` and return its path. The same files give the same page."""
    path = directory / FILE_NAME
    # an error with half a surrogate pair, as file names can have, is no reason to lose the page
    write_atomically(path, render(comparison).encode("utf-8", "replace").decode())
    return path


def render(comparison: Comparison) -> str:
    """Return the page."""
    moments = _moments(comparison)
    sections = [
        _missing_section(comparison) if comparison.failed or not comparison.finished else "",
        _curves_section(comparison, moments),
        _grid_section(comparison, moments),
        _ranking_section(comparison, moments),
        _contrasts_section(comparison, moments),
        _traffic_section(comparison, moments),
        _missing_section(comparison) if not comparison.failed and comparison.finished else "",
        _settings_section(comparison),
        _meaning_section(comparison, moments),
        _files_section(comparison),
    ]
    style = f"<style>\n{_style(moments)}</style>"
    body = "\n".join([style, _header(comparison, moments), *filter(None, sections), _footer(comparison)])
    return document(_title(comparison), body)


# --- the parts of the page, from top to bottom --------------------------------------------------------------------


def _title(comparison: Comparison) -> str:
    if comparison.title:
        return comparison.title
    dataset = common_settings(comparison).get("dataset", {}).get("name")
    return plural(len(comparison.methods), "method") + (f" on {dataset}" if dataset else " compared")


def _header(comparison: Comparison, moments: Sequence[Moment]) -> str:
    facts = [plural(len(comparison.methods), "method"), plural(len(comparison.seeds), "seed")]
    if comparison.axes:
        facts.append(plural(len(comparison.points), "point") + " of a grid")
    common = common_settings(comparison)
    if clients := common.get("partition", {}).get("clients"):
        facts.append(plural(clients, "client"))
    if "rounds" in common:
        facts.append(f"{plural(common['rounds'], 'round')} after the first")
    notes = "".join(f'<p class="facts">{text(note)}</p>' for note in comparison.notes)
    return f"""<header>
<h1>{text(_title(comparison))}</h1>
<p class="facts">{text(" · ".join(facts))}</p>
{notes}
<p class="headline">{text(headline(comparison))}</p>
{_cards(comparison)}
{_choice(moments)}
</header>"""


def headline(comparison: Comparison) -> str:
    """Return the result in a few plain sentences, of the moment and metric that were asked for."""
    if not comparison.finished:
        failed = len(comparison.failed)
        if failed:
            return f"No cell is finished; {failed} of {len(comparison.cells)} failed."
        return "No cell is finished yet."
    ranked = {point: [row for row in comparison.rows(point) if row.last] for point in comparison.points}
    ranked = {point: rows for point, rows in ranked.items() if rows}
    if not ranked:
        return f"{comparison.moment} was not measured in any finished cell."
    if len(comparison.points) == 1:
        ((point, rows),) = ranked.items()
        return f"{_first_words(comparison.reference, rows)} {_chance_words(comparison.contrasts(point))}".strip()
    several = {point: own for point, rows in ranked.items() if len(own := competing(rows)) > 1}
    if not several:
        return "There is one method only, so there is nothing to compare with."
    ahead = sum(rows[0].method == comparison.reference for rows in several.values())
    tests = [contrast for point in several for contrast in comparison.contrasts(point)]
    where = "at the only point" if len(several) == 1 else f"at {ahead} of {len(several)} points"
    return f"By mean accuracy in the last round, {comparison.reference} is first {where}. {_chance_words(tests)}"


def _first_words(reference: str, rows: Sequence[Row]) -> str:
    rows = competing(rows)
    first = rows[0]
    if len(rows) == 1:
        return f"{first.method} reaches {_percent(first.last)} in the last round; there is nothing to compare with."
    place = next((n for n, row in enumerate(rows, start=1) if row.method == reference), None)
    result = f"{first.method} is first of {len(rows)} methods with {_percent(first.last)} in the last round"
    if place is None or place == 1:
        return f"{result}, before {rows[1].method} with {_percent(rows[1].last)}."
    return f"{result}; {reference} is number {place} with {_percent(rows[place - 1].last)}."


def _chance_words(contrasts: Sequence[Contrast]) -> str:
    if not contrasts:
        return ""
    reference = contrasts[0].reference
    if all(contrast.test.n == 1 for contrast in contrasts):
        return "With one seed, nothing can be said about chance."
    seeds = {contrast.test.n for contrast in contrasts}
    basis = f"paired t-test over {'at least ' if len(seeds) > 1 else ''}{plural(min(seeds), 'seed')}"
    if max(contrast.family[0] for contrast in contrasts) > 1:
        basis += ", Holm's correction" + (" at each point" if len({c.point for c in contrasts}) > 1 else "")
    better = sum(_is_significant(c) and c.test.difference > 0 for c in contrasts)
    worse = sum(_is_significant(c) and c.test.difference < 0 for c in contrasts)
    if len(contrasts) == 1:
        verdict = f"{'better' if better else 'worse'}" if better or worse else "neither better nor worse"
    elif better or worse:
        counts = [f"{word} in {n}" for word, n in (("better", better), ("worse", worse)) if n]
        verdict = f"{' and '.join(counts)} of {len(contrasts)} comparisons"
    else:
        verdict = f"better or worse in none of {len(contrasts)} comparisons"
    return f"At the 5 % level, {reference} is {verdict} ({basis})."


def _is_significant(contrast: Contrast) -> bool:
    return contrast.p_holm is not None and contrast.p_holm < SIGNIFICANT


def _cards(comparison: Comparison) -> str:
    done, failed = len(comparison.finished), len(comparison.failed)
    waiting = len(comparison.cells) - done - failed
    hints = [f"{failed} failed"] if failed else []
    hints += [f"{waiting} not run yet"] if waiting else []
    cards = [("Finished runs", f"{done} of {len(comparison.cells)}", ", ".join(hints) or "none failed")]
    if len(comparison.points) == 1:
        rows = {row.method: row for row in comparison.rows(comparison.points[0])}
        hints_of = {comparison.reference: "the reference", Local.name: "every client alone"}
        for method, hint in hints_of.items():
            row = rows.get(method)
            if row and row.last:
                cards.append((method, _percent(row.last), f"{hint}; last round"))
        sent = [row for row in rows.values() if row.last and row.uplink and row.uplink.mean > 0]
        if sent:
            least = min(sent, key=lambda row: row.uplink.mean if row.uplink else 0)
            if least.uplink:
                cards.append(("Least uplink", size(least.uplink.mean), f"{least.method}, per client and run"))
    else:
        cards.append(("Points of the grid", str(len(comparison.points)), " × ".join(a.name for a in comparison.axes)))
        seconds = sum(cell.summary["wall_seconds"] for cell in comparison.finished if cell.summary)
        cards.append(("Training time", duration(seconds), "of all finished runs together"))
    items = [
        f'<div class="card"><dt>{text(name)}</dt><dd class="value">{text(value)}</dd>'
        f'<dd class="hint">{text(hint)}</dd></div>'
        for name, value, hint in cards
    ]
    return f'<dl class="cards">{"".join(items)}</dl>'


def _choice(moments: Sequence[Moment]) -> str:
    """Return the buttons that choose the moment for the whole page; styles do the rest, without a script."""
    if len(moments) < 2:
        return ""
    buttons = [
        f'<input type="radio" name="moment" id="moment-{moment}"{" checked" if n == 0 else ""}>'
        f'<label for="moment-{moment}">{text(GLOSSARY[moment][0])}</label>'
        for n, moment in enumerate(moments)
    ]
    return f'<fieldset class="moments"><legend>Which model counts:</legend>{"".join(buttons)}</fieldset>'


def _moments(comparison: Comparison) -> list[Moment]:
    """Return the moments to choose from, that of the comparison first."""
    return sorted(comparison.moments, key=lambda moment: moment != comparison.moment)


def _panels(moments: Sequence[Moment], content: Callable[[Moment], str]) -> str:
    """Return the content for each moment, one of which is seen."""
    only = " only" if len(moments) == 1 else ""
    return "\n".join(f'<div class="panel of-{moment}{only}">\n{content(moment)}\n</div>' for moment in moments)


def _style(moments: Sequence[Moment]) -> str:
    chosen = ",\n".join(f"main:has(#moment-{m}:checked) .panel.of-{m}" for m in moments)
    css = resources.files("cosmosfl.comparison").joinpath("page.css").read_text(encoding="utf-8")
    return css + (f"{chosen} {{ visibility: visible; height: auto; overflow: visible; }}\n" if chosen else "")


def _curves_section(comparison: Comparison, moments: Sequence[Moment]) -> str:
    if not moments:
        return ""
    points = comparison.points[:MOST_POINTS]
    note = "Mean over clients, each on its own test set, then over seeds"
    if len(comparison.seeds) > 1:
        whose = "Bands" if len(comparison.methods) <= MANY_METHODS else f"Bands (of {comparison.reference} and local)"
        note += f". {whose} are one standard deviation over seeds on either side"
    note += ". Round 0 is pre-training and the first exchange."
    if len(comparison.points) > MOST_POINTS:
        note += f" Of {len(comparison.points)} points of the grid, the first {MOST_POINTS} are drawn."
    if len(comparison.points) == 1:
        note += " A click on a name hides its line."

    def content(moment: Moment) -> str:
        if len(comparison.points) == 1:
            figure = curves_figure(comparison, points[0], moment, comparison.metric, legend=True)
            return plot(f"curves-{moment}", figure, "Line chart of accuracy over rounds, a line per method")
        charts = [
            f"<figure><figcaption>{text(comparison.describe(point))}</figcaption>"
            + plot(
                f"curves-{moment}-{n}",
                curves_figure(comparison, point, moment, comparison.metric, legend=False),
                f"Line chart of accuracy over rounds at {comparison.describe(point)}",
            )
            + "</figure>"
            for n, point in enumerate(points)
        ]
        drawn = [
            m for m in comparison.methods if any(comparison.curve(m, p, moment, comparison.metric) for p in points)
        ]
        return f'{_legend(drawn)}<div class="facets">{"".join(charts)}</div>'

    return f"""<section>
<h2>Accuracy over rounds</h2>
<p class="note">{text(note)}</p>
{_panels(moments, content)}
</section>"""


def _legend(methods: Sequence[str]) -> str:
    items = "".join(f"<li>{_swatch(method)}{text(method)}</li>" for method in methods)
    return f'<ul class="methods" aria-label="Methods">{items}</ul>'


def _swatch(method: str) -> str:
    """Return the line and the marker of a method, as they are in the pictures."""
    style = method_style(method)
    dashes = {"solid": "", "dash": ' stroke-dasharray="7 4"', "dot": ' stroke-dasharray="2 3"'}[style.dash]
    colour = f"var({style.colour})"
    markers = {
        "circle": '<circle cx="17" cy="6" r="4" fill="{}"/>',
        "square": '<rect x="13" y="2" width="8" height="8" fill="{}"/>',
        "diamond": '<path d="M17 1l5 5-5 5-5-5z" fill="{}"/>',
    }
    line = f'<path d="M0 6H34" stroke="{colour}" stroke-width="{min(style.width, 3)}"{dashes}/>'
    return (
        f'<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">{line}{markers[style.symbol].format(colour)}</svg>'
    )


def _grid_section(comparison: Comparison, moments: Sequence[Moment]) -> str:
    if not comparison.axes or not moments:
        return ""

    def content(moment: Moment) -> str:
        figure = grid_figure(comparison, moment, comparison.metric)
        return plot(f"grid-{moment}", figure, "Chart of accuracy over the grid, a line per method") if figure else ""

    names = " and ".join(axis.name for axis in comparison.axes)
    note = "Accuracy in the last round, mean over clients and seeds; bars are one standard deviation over seeds."
    return f"""<section>
<h2>What {text(names)} {"does" if len(comparison.axes) == 1 else "do"}</h2>
<p class="note">{text(note)}</p>
{_panels(moments, content)}
</section>"""


def _ranking_section(comparison: Comparison, moments: Sequence[Moment]) -> str:
    if not moments:
        return ""
    deviation = "mean ± standard deviation over seeds" if len(comparison.seeds) > 1 else "one seed"
    note = (
        f"{_capital(METRIC_WORDS[comparison.metric])} in %, {deviation}. Best round: chosen on the test sets, so it "
        "flatters every method. Sent and received: by a client in the whole run. Time: of a run; those that ran beside "
        "each other slowed each other down, so it is a rough guide."
    )
    if CEILING in comparison.methods:
        note += (
            f" {_capital(CEILING)} has all data in one place: a ceiling rather than a competitor, so it is not marked."
        )
    if any(None in cell.labels for cell in comparison.cells):
        note += " A method that an axis has no effect on was run once for all its levels."

    def content(moment: Moment) -> str:
        if not comparison.axes:
            return _ranking(comparison, (), moment)
        details = [
            f"<details><summary><h2>{text(comparison.describe(point))}</h2></summary>"
            f"{_ranking(comparison, point, moment)}</details>"
            for point in comparison.points
        ]
        return _matrix(comparison, moment) + "".join(details)

    return f"""<section class="ranking">
<h2>{"Methods and points of the grid" if comparison.axes else "Methods in order"}</h2>
<p class="note">{text(note)}</p>
{_panels(moments, content)}
</section>"""


def _ranking(comparison: Comparison, point: Point, moment: Moment) -> str:
    rows = comparison.rows(point, moment)
    best = [highest(rows, kind) for kind in ("last", "best", "worst")]
    planned = len(comparison.seeds)

    def line(row: Row) -> str:
        if row.last is None:
            cells = f'<td class="words" colspan="8">{text(row.why_not)}</td>'
        else:
            values = (row.last, row.best, row.worst)
            marked = best if row.method != CEILING else ["", "", ""]
            parts = [_number_cell(value, top) for value, top in zip(values, marked, strict=True)]
            parts.append(_number_cell(row.spread, ""))
            parts += [
                f'<td class="number">{text(size(sent.mean)) if sent else "–"}</td>'
                for sent in (row.uplink, row.downlink)
            ]
            parts.append(f'<td class="number">{text(duration(row.seconds.mean)) if row.seconds else "–"}</td>')
            seeds = str(row.n) if row.n == planned else f"{row.n} of {planned}"
            parts.append(f'<td class="number">{seeds}</td>')
            cells = "".join(parts)
        return f"<tr{_row_class(comparison, row.method)}>{_method_head(row.method)}{cells}</tr>"

    numbers = ["last round", "best round", "worst client", "spread over clients", "sent", "received", "time", "seeds"]
    return table(f"Methods in order, {comparison.describe(point) or moment}", ["method"], numbers, map(line, rows))


def _matrix(comparison: Comparison, moment: Moment) -> str:
    by_point = {point: comparison.rows(point, moment) for point in comparison.points}
    top = {point: highest(rows, "last") for point, rows in by_point.items()}
    found = {(row.method, point): row for point, rows in by_point.items() for row in rows}

    def line(method: str) -> str:
        cells = []
        for point in comparison.points:
            row = found[method, point]
            fewer = f" ({row.n})" if row.last and row.n < len(comparison.seeds) else ""
            cells.append(
                _number_cell(row.last, top[point] if method != CEILING else "", fewer)
                if row.last
                else f'<td class="number none">{text(row.why_not)}</td>'
            )
        return f"<tr{_row_class(comparison, method)}>{_method_head(method)}{''.join(cells)}</tr>"

    heads = [text(comparison.describe(point)) for point in comparison.points]
    return table("Accuracy in the last round by method and point", ["method"], heads, map(line, comparison.methods))


def _number_cell(value: OverSeeds | None, top: str, after: str = "") -> str:
    if value is None:
        return '<td class="number">–</td>'
    best = " top" if f"{value.mean:.1f}" == top else ""
    return f'<td class="number{best}">{text(spread(value) + after)}</td>'


def _method_head(method: str) -> str:
    about = METHODS[method].summary if method in METHODS else ""
    return f'<th scope="row" title="{text(about)}">{_swatch(method)}{text(method)}</th>'


def _row_class(comparison: Comparison, method: str) -> str:
    return ' class="reference"' if method == comparison.reference and len(comparison.methods) > 1 else ""


def _contrasts_section(comparison: Comparison, moments: Sequence[Moment]) -> str:
    if not any(comparison.contrasts(point, moment) for point in comparison.points for moment in moments):
        return ""
    reference = comparison.reference
    at_point = " at a point of the grid" if comparison.axes else ""
    note = (
        f"What {reference} has more than each other method in the last round, paired by seed: the same seed is the "
        f"same split among the same clients. Above 0, {reference} is better. Lines are 95 % confidence intervals "
        "(t distribution). The p-values are those of the paired t-test and of Wilcoxon's exact signed-rank test, both "
        f"after Holm's correction for the methods compared{at_point}. Where there cannot be one, the table says why; "
        "with n seeds the signed-rank test cannot fall below 2/2ⁿ, so it takes at least six to reach 5 %."
    )

    def content(moment: Moment) -> str:
        found = {point: comparison.contrasts(point, moment) for point in comparison.points}
        if not any(found.values()):
            return '<p class="note">There is no other method with this model to compare with.</p>'
        charts = []
        for n, (point, contrasts) in enumerate(found.items()):
            figure = contrasts_figure(contrasts, wide=not comparison.axes) if n < MOST_POINTS else None
            if figure is not None:
                chart = plot(f"contrasts-{moment}-{n}", figure, f"Differences between {reference} and the others")
                caption = f"<figcaption>{text(comparison.describe(point))}</figcaption>"
                charts.append(f"<figure>{caption}{chart}</figure>" if comparison.axes else chart)
        drawn = f'<div class="facets">{"".join(charts)}</div>' if comparison.axes else "".join(charts)
        return drawn + _contrasts_table(comparison, found)

    return f"""<section>
<h2>{text(reference)} minus the others</h2>
<p class="note">{text(note)}</p>
{_panels(moments, content)}
</section>"""


def _contrasts_table(comparison: Comparison, found: Mapping[Point, Sequence[Contrast]]) -> str:
    def line(contrast: Contrast) -> str:
        place = f"<td>{text(comparison.describe(contrast.point))}</td>" if comparison.axes else ""
        cells = "".join(
            f'<td class="number{" none" if words.startswith("none") else ""}">{text(words)}</td>'
            for words in (difference_words(contrast), *p_words(contrast))
        )
        return f'<tr>{_method_head(contrast.method)}{place}<td class="number">{contrast.test.n}</td>{cells}</tr>'

    contrasts = [contrast for own in found.values() for contrast in reversed(own)]
    columns = ["method", *(["at"] if comparison.axes else [])]
    numbers = ["seeds", "difference, points [95 % interval]", "p, t-test", "p, signed rank"]
    return table(f"{comparison.reference} minus each other method", columns, numbers, map(line, contrasts))


def _traffic_section(comparison: Comparison, moments: Sequence[Moment]) -> str:
    drawn = count()
    points = comparison.points[:MOST_POINTS]

    def content(moment: Moment) -> str:
        parts = []
        for n, point in enumerate(points):
            figure = traffic_figure(comparison, point, moment, comparison.metric)
            if figure is not None:
                next(drawn)
                chart = plot(f"traffic-{moment}-{n}", figure, "Accuracy against bytes, a point per method")
                caption = f"<figcaption>{text(comparison.describe(point))}</figcaption>" if comparison.axes else ""
                parts.append(f"<figure>{caption}{chart}</figure>" if comparison.axes else chart)
        if not parts:
            return '<p class="note">Fewer than two methods with this model sent anything.</p>'
        return f'<div class="facets">{"".join(parts)}</div>' if comparison.axes else parts[0]

    panels = _panels(moments, content)
    if next(drawn) == 0:
        return ""
    note = (
        "Bytes that a client sent and received in the whole run, counted from the content of the messages; the scale "
        "is logarithmic. Methods that send nothing are left out. Bars are one standard deviation over seeds."
    )
    return f"""<section>
<h2>Accuracy against traffic</h2>
<p class="note">{text(note)}</p>
{panels}
</section>"""


def _missing_section(comparison: Comparison) -> str:
    lines = left_out_lines(comparison)
    if not lines:
        return ""
    cells = [line.partition(": ") for line in lines]
    rows = (f'<tr><th scope="row">{text(what)}</th><td class="text">{text(why)}</td></tr>' for what, _, why in cells)
    note = "Failed cells have the whole error in cells/NAME/error.json. The same command runs them again."
    return f"""<section>
<h2>Without numbers</h2>
{f'<p class="note">{note}</p>' if comparison.failed else ""}
{table("What has no numbers, and why", ["what", "why"], [], rows)}
</section>"""


def _settings_section(comparison: Comparison) -> str:
    common = common_settings(comparison)
    if not common:
        return ""
    lines = (
        f'<tr>{_method_head(method)}<td class="text"><code>{text(", ".join(words) or "–")}</code></td></tr>'
        for method, words in own_settings(comparison).items()
    )
    environments = [cell.environment for cell in comparison.finished if cell.environment]
    first = environments[0]
    kinds = len({str(environment) for environment in environments})
    differ = f" The runs were made on {kinds} different ones; this is the first." if kinds > 1 else ""
    facts = {**{k: v for k, v in first.items() if k != "packages"}, **(first.get("packages") or {})}
    machine = (
        f'<tr><th scope="row">{text(key)}</th><td class="text">{"–" if value is None else text(value)}</td></tr>'
        for key, value in facts.items()
    )
    return f"""<section>
<details>
<summary><h2>Settings of each method</h2></summary>
<p class="note">What a method has beside the settings that all have in common.</p>
{table("Settings of each method", ["method", "settings"], [], lines)}
</details>
<details>
<summary><h2>Settings in common</h2></summary>
<p class="note">What is the same in all finished cells. Each has all of its settings in cells/NAME/config.toml.</p>
<pre>{text(tomli_w.dumps(common))}</pre>
</details>
<details>
<summary><h2>Machine and versions</h2></summary>
{f'<p class="note">{text(differ.strip())}</p>' if differ else ""}
{table("Machine and versions", ["what", "value"], [], machine)}
</details>
</section>"""


def common_settings(comparison: Comparison) -> dict[str, Any]:
    """Return the configuration that all finished cells share, as nested tables; empty if none is finished."""
    configs = [dict(flat(cell.config)) for cell in comparison.finished if cell.config]
    if not configs:
        return {}
    result: dict[str, Any] = {}
    for path, value in configs[0].items():
        if path != ("workers",) and all(path in other and other[path] == value for other in configs):
            place = result
            for step in path[:-1]:
                place = place.setdefault(step, {})
            place[path[-1]] = value
    return result


def own_settings(comparison: Comparison) -> dict[str, list[str]]:
    """Return, for each method, the settings that all of its finished cells have but not all of the others'."""
    common = dict(flat(common_settings(comparison)))
    result = {}
    for method in comparison.methods:
        own = [dict(flat(cell.config)) for cell in comparison.finished if cell.method == method and cell.config]
        if own:
            result[method] = [
                f"{'.'.join(path)} = {value}"
                for path, value in own[0].items()
                if path not in common
                and path not in {("workers",), ("seed",), ("method", "name")}
                and all(path in other and other[path] == value for other in own)
            ]
    return result


def _meaning_section(comparison: Comparison, moments: Sequence[Moment]) -> str:
    if not moments:
        return ""
    terms = [(f"{name} <code>{moment}</code>", meaning) for moment in moments for name, meaning in [GLOSSARY[moment]]]
    terms += [
        ("last round", "Mean over clients after the last round, for each seed; then mean and deviation over seeds."),
        ("best round", "The round with the greatest mean over clients, for each seed, chosen on the test sets."),
        ("worst client", "The least accurate client of each seed in the last round."),
        ("spread over clients", "Standard deviation over the clients of a seed in the last round."),
    ]
    items = "\n".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in terms)
    return f"""<section>
<h2>What is measured</h2>
<p class="note">{_capital(METRIC_WORDS[comparison.metric])}, always on a client's own test set.</p>
<dl class="glossary">
{items}
</dl>
</section>"""


def _files_section(comparison: Comparison) -> str:
    parts = []
    for name, about in FILES.items():
        lines = (
            f'<tr><th scope="row">{text(column)}</th><td class="text">{text(meaning)}</td></tr>'
            for column, meaning in COLUMNS[name].items()
        )
        parts.append(
            f"<details><summary><h2>{name}.csv</h2></summary>"
            f'<p class="note">{text(about)}</p>{table(f"Columns of {name}.csv", ["column", "what"], [], lines)}'
            "</details>"
        )
    axes = ", ".join(axis.name for axis in comparison.axes)
    note = f"Beside this page; {MARKDOWN} and {LATEX} have its tables, ready for a paper."
    note += f" Every table has the columns {axes} of the grid too." if axes else ""
    return f"""<section>
<h2>Files</h2>
<p class="note">{text(note)}</p>
{"".join(parts)}
</section>"""


def _footer(comparison: Comparison) -> str:
    packages: Iterable[dict[str, Any]] = (
        c.environment.get("packages") or {} for c in comparison.finished if c.environment
    )
    version = next(iter(packages), {}).get("cosmosfl")
    program = f"cosmosfl {version}" if version else "cosmosfl"
    return (
        f"<footer>Made from the files of the comparison by {text(program)}. Nothing on this page is fetched.</footer>"
    )


def _percent(value: OverSeeds | None) -> str:
    return f"{spread(value)}\u00a0%" if value else "–"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
