"""The report of a run: what it says, what it draws, and that it is safe to open."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

import cosmosfl as cf
from cosmosfl.evaluation.metrics import MOMENTS, Measurement
from cosmosfl.events import Traffic
from cosmosfl.protocol import Clustering, Rejection
from cosmosfl.report.figures import accuracy_figure, clients_figure, distance_figure, label, traffic_figure
from cosmosfl.report.page import render, write_report
from cosmosfl.report.results import (
    Results,
    client_rows,
    duration,
    headline,
    number,
    percent,
    plural,
    points,
    scaled,
    size,
)
from cosmosfl.store import RunDirectory

EVIL = "</script><b>x"
ALONE = {"a": 60.0, "b": 70.0, "c": 50.0, "d": 60.0}
TOGETHER = {"a": 80.0, "b": 80.0, "c": 70.0, "d": 80.0}


def measured(moment: str, accuracy: dict[str, float], round: int = 0) -> list[Measurement]:
    return [Measurement(round, moment, id, top1, 100.0, 50) for id, top1 in accuracy.items()]


def clustering(*clusters: str, order: str = "", threshold: float = 0.5) -> Clustering:
    """Return a clustering of clients with names of one letter; the distance of i from j is |i - j| / 10."""
    ids = tuple(order or sorted("".join(clusters)))
    at = np.arange(len(ids)) / 10
    return Clustering(ids, np.abs(at[:, None] - at), "l2", threshold, tuple(map(tuple, clusters)))


@pytest.fixture
def directory(tmp_path_factory):
    """Make the directory of a run in which these events happened."""

    def make(*events, clients="abcd", method="cosmos", rounds=0, config=None, dataset=None) -> RunDirectory:
        history = [event for group in events for event in (group if isinstance(group, list) else [group])]
        clusters = next((event for event in history if isinstance(event, Clustering)), None)
        config = config or {"rounds": rounds}
        run = cf.Run(config, method, rounds, 0, 2, dict.fromkeys(clients), {}, clusters, history, 75.0, dataset=dataset)
        made = RunDirectory.create(tmp_path_factory.mktemp("run"), config)
        for event in history:
            made.record(event)
        made.write_summary(run.summary())
        return made

    return make


@pytest.fixture
def results(directory):
    return lambda *events, **options: Results.read(directory(*events, **options))


class Page(HTMLParser):
    """A page as a browser takes it apart: addresses that it refers to, cells of tables, scripts that run."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.policy = ""
        self.scripts: list[str] = []
        self.figures: dict[str, dict] = {}
        self.words: list[str] = []
        self._open = ""
        self._figure: str | None = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self._open = tag
        self.addresses += [given[name] for name in ("src", "href", "srcset", "data", "action") if name in given]
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        elif tag == "script":
            self._figure = given["id"] if given.get("type") == "application/json" else None
        elif given.get("role") == "region":
            self.tables[given["aria-label"]] = []
        elif tag == "tr":
            self._table().append([])
        elif tag in ("td", "th"):
            self._table()[-1].append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script" and self._figure:
            self.figures[self._figure.removesuffix("-data")] = json.loads(data)
        elif self._open == "script":
            self.scripts.append(data)
        elif self._open in ("td", "th"):
            self._table()[-1][-1] += data
        elif self._open != "style":
            self.words.append(data)

    def _table(self) -> list[list[str]]:
        return list(self.tables.values())[-1]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


# --- the outcome in words ---


def gains(before: dict[str, float], after: dict[str, float]) -> list[Measurement]:
    return measured("local", before) + measured("client", after)


@pytest.mark.parametrize(
    ("events", "options", "expected"),
    [
        pytest.param(
            gains(ALONE, TOGETHER),
            {},
            "Federation lifted the clients' own models from 60.0 % (alone) to 77.5 % on average: +17.5 points. "
            "All 4 clients gained.",
            id="gain",
        ),
        pytest.param(
            gains(TOGETHER, ALONE),
            {},
            "Federation lowered the clients' own models from 77.5 % (alone) to 60.0 % on average: −17.5 points. "
            "All 4 clients lost.",
            id="loss",
        ),
        pytest.param(
            gains(ALONE, ALONE),
            {},
            "Federation changed nothing on average: the clients' own models reach 60.0 %, as they do alone. "
            "All 4 clients stayed the same.",
            id="nobody changed",
        ),
        pytest.param(
            gains(ALONE, ALONE | {"a": 70.0, "b": 60.0}),
            {},
            "Federation changed nothing on average: the clients' own models reach 60.0 %, as they do alone. "
            "1 of 4 clients gained, 1 lost, 2 stayed the same.",
            id="gains and losses cancel out",
        ),
        pytest.param(
            gains({"a": 60.0, "b": 60.0}, {"a": 70.0, "b": 52.0}),
            {"clients": "ab"},
            "Federation lifted the clients' own models from 60.0 % (alone) to 61.0 % on average: +1.0 points. "
            "1 of 2 clients gained, 1 lost. The changes differ so much between clients that their average may be "
            "chance.",
            id="may be chance",
        ),
        pytest.param(
            gains({"a": 60.0, "b": 70.0}, {"a": 80.0, "b": 90.0}),
            {},
            "Federation lifted the clients' own models from 65.0 % (alone) to 85.0 % on average: +20.0 points. "
            "Both clients gained. These are the 2 of 4 clients with a test set.",
            id="some without a test set",
        ),
        pytest.param(
            gains({"a": 60.0}, {"a": 58.0}),
            {},
            "Federation lowered the model of the only client measured from 60.0 % (alone) to 58.0 %: −2.0 points.",
            id="one client",
        ),
        pytest.param(
            gains({"a": 60.0}, {"a": 60.0}),
            {},
            "Federation changed nothing: the model of the only client measured reaches 60.0 %, as it does alone.",
            id="one client, nothing changed",
        ),
        pytest.param(
            measured("client", TOGETHER),
            {},
            "With federation, the clients' own models reach 77.5 % on average, from 70.0 % to 80.0 %. Without a "
            "baseline of the clients trained alone, this run cannot say what federation gave.",
            id="no baseline",
        ),
        pytest.param(
            gains(ALONE, ALONE),
            {"method": "local"},
            "Every client trained alone and nothing was exchanged: the clients' own models reach 60.0 % on average, "
            "from 50.0 % to 70.0 %.",
            id="method local",
        ),
        pytest.param(
            measured("local", ALONE), {}, "The clients' own models were not measured in this run.", id="local only"
        ),
        pytest.param([], {}, "Nothing was measured: no client of this run has a test set.", id="nothing measured"),
    ],
)
def test_the_headline_says_what_came_out(results, events, options, expected):
    assert headline(results(events, **options)).replace("\u00a0", " ") == expected


def test_the_headline_is_of_the_last_round(results):
    run = results(gains(ALONE, ALONE), measured("local", ALONE, 1), measured("client", TOGETHER, 1), rounds=1)
    assert "+17.5 points" in headline(run)


# --- client by client ---


def test_clients_are_listed_by_cluster_and_the_greatest_gain_first(results):
    before = {"a": 60.0, "b": 70.0, "c": 50.0, "d": 60.0}
    after = {"a": 65.0, "b": 60.0, "c": 80.0, "d": 95.0}
    sent = [Traffic(0, "unclustered", 1, 1)]
    rows = client_rows(results(gains(before, after), sent, clustering("bcu", "ad")))
    assert [(row.id, row.cluster, row.change) for row in rows] == [
        ("c", 0, 30.0), ("b", 0, -10.0), ("u", 0, None),
        ("d", 1, 35.0), ("a", 1, 5.0),
        ("unclustered", None, None),
    ]  # fmt: skip


def test_without_a_baseline_the_best_client_comes_first(results):
    rows = client_rows(results(measured("client", {"a": 60.0, "b": 70.0, "c": 65.0})))
    assert [(row.id, row.change) for row in rows] == [("b", None), ("c", None), ("a", None)]


def test_a_client_that_stayed_the_same_has_no_gain_from_rounding(results):
    (row,) = client_rows(results(gains({"a": 0.1 + 0.2}, {"a": 0.3})))
    assert row.change == 0


def test_in_the_method_local_a_client_has_one_model_and_no_gain(results):
    rows = client_rows(results(gains(ALONE, ALONE), method="local"))
    assert [set(row.accuracy) for row in rows] == [{"client"}] * 4


def test_the_clients_figure_parts_winners_from_losers(results):
    after = {"a": 80.0, "b": 60.0, "c": 50.0, "d": 61.0}
    figure = clients_figure(client_rows(results(gains(ALONE, after), clustering("ac", "bd"))))
    ticks = list(figure.layout.yaxis.ticktext)
    assert ticks == ["<b>cluster 0</b>", "a", "c", "<b>cluster 1</b>", "d", "b"]
    dots = {trace.name: trace for trace in figure.data if trace.name}
    shown = {name: {ticks[y]: x for x, y in zip(trace.x, trace.y, strict=True)} for name, trace in dots.items()}
    assert shown == {"gained": {"a": 80.0, "d": 61.0}, "lost": {"b": 60.0}, "the same": {"c": 50.0}}
    (changes,) = (trace for trace in figure.data if trace.mode == "text")
    assert [text.strip() for text in changes.text] == ["+20.0", "0.0", "+1.0", "−10.0"]


def test_there_is_no_clients_figure_without_measurements(results):
    assert clients_figure(client_rows(results(clustering("ab")))) is None


# --- accuracy over rounds ---


def traces(figure) -> dict[str, object]:
    return {trace.name: trace for trace in figure.data if trace.name}


def bands(figure) -> dict[str, object]:
    return {trace.legendgroup: trace for trace in figure.data if trace.fill == "toself"}


def test_every_moment_is_one_line_and_single_clients_are_one_trace():
    events = [m for moment in MOMENTS for round in (0, 1) for m in measured(moment, ALONE, round)]
    figure = accuracy_figure(events)
    assert set(traces(figure)) == {
        "alone", "own model before distillation", "own model", "own cluster's model", "oracle (not deployable)",
        "own model, single clients",
    }  # fmt: skip
    assert set(bands(figure)) == {"local", "client"}
    assert len(figure.data) == 6 + 2
    clients = traces(figure)["own model, single clients"]
    assert list(clients.x) == [0, 1, None] * 4
    assert list(clients.y) == [60, 60, None, 70, 70, None, 50, 50, None, 60, 60, None]


def test_moments_that_were_not_measured_or_not_asked_for_are_not_drawn():
    events = measured("client", ALONE) + measured("local", ALONE)
    assert set(traces(accuracy_figure(events))) == {"own model", "alone", "own model, single clients"}
    assert set(traces(accuracy_figure(events, ["client"]))) == {"own model", "own model, single clients"}
    assert set(traces(accuracy_figure(events, ["local"]))) == {"alone"}


def test_a_line_is_the_mean_and_its_band_one_standard_deviation():
    rounds = [{"a": 40.0, "b": 60.0, "c": 50.0}, {"a": 100.0, "b": 100.0, "c": 70.0}]
    figure = accuracy_figure([m for r in (1, 0) for m in measured("client", rounds[r], r)])
    means = [np.mean([*values.values()]) for values in rounds]
    stds = [np.std([*values.values()], ddof=1) for values in rounds]
    assert list(traces(figure)["own model"].x) == [0, 1]
    np.testing.assert_allclose(traces(figure)["own model"].y, means)
    band = bands(figure)["client"]
    assert list(band.x) == [0, 1, 1, 0]
    assert means[1] + stds[1] > 100  # an accuracy that does not exist
    np.testing.assert_allclose(band.y, [means[0] + stds[0], 100, means[1] - stds[1], means[0] - stds[0]])


def test_one_client_has_no_band_and_no_line_beside_the_mean():
    figure = accuracy_figure([m for r in (0, 1) for m in measured("client", {"a": 60.0 + r}, r)])
    (line,) = figure.data
    assert (line.name, list(line.y)) == ("own model", [60.0, 61.0])


def test_a_run_of_no_rounds_shows_points_with_error_bars():
    figure = accuracy_figure(gains(ALONE, TOGETHER))
    for trace in figure.data:
        assert "markers" in trace.mode
    assert list(traces(figure)["own model"].customdata[0]) == [0, "mean of 4 clients, standard deviation 5.0"]
    np.testing.assert_allclose(traces(figure)["own model"].error_y.array, [5.0])
    assert not bands(figure)
    assert list(figure.layout.xaxis.range) == [-0.5, 0.5]


def test_the_points_of_a_single_round_lie_side_by_side():
    figure = accuracy_figure([m for moment in MOMENTS for m in measured(moment, ALONE)])
    places = [trace.x[0] for trace in figure.data if trace.legendgroup]
    assert len(set(places)) == len(MOMENTS)
    assert -0.5 < min(places) < max(places) < 0.5
    assert traces(figure)["own model, single clients"].x[0] == traces(figure)["own model"].x[0]


@pytest.mark.parametrize("last", [0, 1, 12, 13, 100, 999])
def test_the_axis_of_rounds_has_whole_numbers_and_not_too_many(last):
    axis = accuracy_figure([m for r in {0, last} for m in measured("client", ALONE, r)]).layout.xaxis
    assert axis.dtick == int(axis.dtick) >= 1
    assert axis.tick0 == 0
    assert axis.tickformat == "d"
    assert last / axis.dtick <= 12
    assert axis.range[0] < 0 <= last < axis.range[1]


# --- who learns with whom ---


def test_the_distance_matrix_is_ordered_by_cluster_with_frames():
    figure = distance_figure(clustering("ca", "b", "ed", order="abcde", threshold=0.1))
    (matrix,) = figure.data
    assert list(matrix.x) == list(matrix.y) == list(figure.layout.yaxis.ticktext) == ["c", "a", "b", "e", "d"]
    np.testing.assert_allclose(matrix.z[0], [0, 0.2, 0.1, 0.2, 0.1])
    np.testing.assert_allclose(matrix.z[3], [0.2, 0.4, 0.3, 0, 0.1])
    assert [(frame.x0, frame.x1) for frame in figure.layout.shapes] == [(-0.5, 1.5), (1.5, 2.5), (2.5, 4.5)]
    assert all((frame.y0, frame.y1) == (frame.x0, frame.x1) for frame in figure.layout.shapes)


def test_clients_whose_names_are_numbers_keep_their_labels():
    figure = distance_figure(clustering("20", "13"))
    # plotly takes 1 for the client called "1", not for the second place
    assert list(figure.layout.yaxis.tickvals) == list(figure.data[0].y) == ["2", "0", "1", "3"]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "category"


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.1, [(0, "near"), (0.5, "middle"), (1, "far")]),
        (0.3, [(0, "near"), (1, "middle")]),
        (0.0, [(0, "middle"), (1, "far")]),
    ],
)
def test_the_colours_turn_at_the_threshold(threshold, expected):
    (matrix,) = distance_figure(clustering("abc", threshold=threshold)).data
    assert (matrix.zmin, matrix.zmax) == (0, 0.2)
    assert [tuple(stop) for stop in matrix.colorscale] == [(at, f"var(--{name})") for at, name in expected]


def test_identical_clients_have_a_matrix_and_a_single_one_has_none():
    same = Clustering(("a", "b"), np.zeros((2, 2)), "cosine", 0.0, (("a", "b"),))
    assert np.all(np.isfinite(distance_figure(same).data[0].zmax))
    assert distance_figure(same).data[0].zmax > 0
    assert distance_figure(clustering("a")) is None


def test_hundreds_of_clients_become_points_and_lose_their_labels(results):
    rng = np.random.default_rng(0)
    ids = [f"client-{i}" for i in range(300)]
    before, after = (dict(zip(ids, rng.uniform(0, 100, 300), strict=True)) for _ in range(2))
    together = Clustering(tuple(ids), rng.random((300, 300)), "l2", 0.5, (tuple(ids[:100]), tuple(ids[100:])))
    run = results(gains(before, after), measured("client", before, 1), together, clients=ids, rounds=1)
    figure = clients_figure(client_rows(run))
    at = {(x, y) for trace in figure.data if trace.mode == "markers" for x, y in zip(trace.x, trace.y, strict=True)}
    assert at == {(before[id], before[id]) for id in ids}
    matrix = distance_figure(run.clustering)
    assert np.shape(matrix.data[0].z) == (300, 300)
    assert not matrix.layout.yaxis.ticktext
    assert len(accuracy_figure(run.measurements).data) < 10
    for picture in (figure, matrix, accuracy_figure(run.measurements)):
        json.loads(picture.to_json())


# --- traffic ---


def test_traffic_is_summed_over_clients_and_rounds():
    kib = 1024
    sent = [Traffic(r, id, 512 * kib, (r + 1) * 256 * kib) for r in (1, 0) for id in "ab"]
    figure = traffic_figure(sent)
    up, down = figure.data
    assert figure.layout.yaxis.title.text == "sent so far (MiB)"
    assert list(up.x) == list(down.x) == [0, 1]
    np.testing.assert_allclose(up.y, [1.0, 2.0])
    np.testing.assert_allclose(down.y, [0.5, 1.5])
    assert [[text.replace("\u00a0", " ") for text in pair] for pair in down.customdata] == [
        ["512.0 KiB", "512.0 KiB"], ["1.5 MiB", "1.0 MiB"],
    ]  # fmt: skip


def test_where_nothing_was_sent_there_is_no_traffic_to_draw():
    assert traffic_figure([]) is None
    assert traffic_figure([Traffic(0, "a", 0, 0)]) is None


# --- numbers for people ---


def of_clients(n: int) -> str:
    return plural(n, "client")


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (size, 0, "0 B"),
        (size, 1023, "1023 B"),
        (size, 1024, "1.0 KiB"),
        (size, 1024**2 - 1, "1.0 MiB"),
        (size, 2.5 * 1024**3, "2.5 GiB"),
        (size, 5000 * 1024**4, "5000.0 TiB"),
        (duration, 0.04, "0.0 s"),
        (duration, 59.94, "59.9 s"),
        (duration, 59.96, "1 min 0 s"),
        (duration, 75, "1 min 15 s"),
        (duration, 3599.7, "1 h 0 min"),
        (duration, 9000, "2 h 30 min"),
        (points, 10.84, "+10.8"),
        (points, -2, "−2.0"),
        (points, 0.04, "0.0"),
        (points, -0.04, "0.0"),
        (percent, 99.96, "100.0 %"),
        (number, 999, "999"),
        (number, 1234567, "1\u202f234\u202f567"),
        (of_clients, 1, "1 client"),
        (of_clients, 0, "0 clients"),
    ],
)
def test_numbers_have_few_digits_and_a_unit(show, value, expected):
    assert show(value).replace("\u00a0", " ") == expected


def test_a_scaled_size_is_still_the_same_size():
    assert scaled(1536 * 1024) == (1.5, "MiB")


# --- the page as a whole ---


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> RunDirectory:
    """Return the run of a client with a bad name, which was also rejected once, beside a client with a good one."""
    both = (EVIL, "good")
    ids = Clustering(both, np.array([[0, 0.2], [0.2, 0]]), EVIL, 0.1, ((EVIL,), ("good",)))
    history = [
        *gains(dict(zip(both, (60.0, 70.0), strict=True)), dict(zip(both, (80.0, 70.0), strict=True))),
        ids,
        *(Traffic(0, id, 3 * 1024, 5 * 1024) for id in both),
        Rejection(0, EVIL, f"no number: {EVIL}"),
        Rejection(1, "good", "late"),
    ]
    config = {"data": {"name": EVIL, EVIL: 1}}
    run = cf.Run(config, EVIL, 0, 0, 2, dict.fromkeys(both), {}, ids, history, 75.0, dataset=EVIL)
    directory = RunDirectory.create(tmp_path_factory.mktemp("evil"), config)
    for event in history:
        directory.record(event)
    directory.write_summary(run.summary())
    return directory


@pytest.fixture(scope="module")
def evil_page(evil) -> Page:
    return Page(write_report(evil).read_text(encoding="utf-8"))


def test_names_from_elsewhere_are_shown_as_they_are_and_never_run(evil_page):
    assert EVIL not in evil_page.source
    assert "<b>x" not in evil_page.source
    assert "b" not in evil_page.tags
    assert f"{EVIL} on {EVIL}" in evil_page.text  # the title
    assert json.dumps(EVIL) + " = 1" in evil_page.text  # the configuration
    assert evil_page.tables["Accuracy of each client"][1] == [EVIL, "0", "60.0", "80.0", "+20.0"]


def test_plotly_gets_names_that_it_cannot_take_for_html(evil_page):
    assert set(evil_page.figures) == {"accuracy", "clients", "distances", "traffic"}
    for figure in evil_page.figures.values():
        assert "<b>x" not in json.dumps(figure)
    assert "&lt;/script&gt;&lt;b&gt;x" in evil_page.figures["distances"]["data"][0]["x"]
    assert label("$\\alpha$ & 'so'") == "&#36;\\alpha&#36; &amp; 'so'"
    assert label("<" * 30, 18) == "&lt;" * 17 + "…"


def test_the_page_fetches_nothing(evil_page):
    assert evil_page.addresses == ["data:,"]  # the icon
    assert not {"iframe", "img", "object", "embed", "base"} & set(evil_page.tags)
    own = evil_page.source.replace(get_plotlyjs(), "")
    assert len(own) < 100_000
    assert not re.search(r"https?:|@import|url\(|\bfetch\b|XMLHttpRequest|\bimport\b", own)
    assert "default-src 'none'" in evil_page.policy  # which also holds for what is in plotly.js


def test_the_policy_allows_the_scripts_of_the_page_and_no_others(evil_page):
    allowed = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in evil_page.scripts]
    assert len(allowed) == 2
    (directive,) = (part.split() for part in evil_page.policy.split(";") if "script-src" in part)
    assert directive == ["script-src", *(f"'sha256-{digest}'" for digest in allowed)]
    assert "\r" not in "".join(evil_page.scripts)  # a browser would read \n, and the digest would be another


def test_rejected_messages_are_listed_with_their_reasons(evil_page):
    assert evil_page.tables["Rejected messages"] == [
        ["round", "client", "reason"],
        ["0", EVIL, f"no number: {EVIL}"],
        ["1", "good", "late"],
    ]
    assert "did not accept 2 messages" in evil_page.text


def test_the_page_gives_the_numbers_of_the_run(evil_page):
    assert "Wall time 1 min 15 s" in evil_page.text
    assert "2 clients sent 6.0 KiB and received 10.0 KiB in 1 exchange: 3.0 KiB up and 5.0 KiB down" in evil_page.text
    assert "Each test set has 50 samples, so that one sample is 2 points." in evil_page.text
    assert "2 clusters from 2 clients" in evil_page.text


def test_the_same_files_give_the_same_report(evil, evil_page, tmp_path):
    copy = shutil.copytree(evil.path, tmp_path / "elsewhere")
    (copy / "report.html").unlink()
    write_report(RunDirectory.open(copy))
    assert (copy / "report.html").read_bytes() == (evil.path / "report.html").read_bytes()


def test_a_run_without_clusters_and_rejections_has_no_sections_for_them(results):
    page = Page(render(results(gains(ALONE, TOGETHER))))
    assert set(page.figures) == {"accuracy", "clients"}
    assert "Who learns with whom" not in page.text
    assert "Rejected messages" not in page.text
    assert page.tables["Accuracy of each client"][0] == ["client", "alone (%)", "own model (%)", "change (points)"]
    assert "Nothing was sent" in page.text


def test_the_method_local_has_nothing_to_compare_with(results):
    page = Page(render(results(gains(ALONE, ALONE), measured("client_after_fit", ALONE), method="local")))
    assert page.tables["Accuracy of each client"][0] == ["client", "own model (%)"]
    names = {trace.get("name") for trace in page.figures["accuracy"]["data"]}
    assert names == {"own model", "own model, single clients"}
    assert "Clients alone" not in page.text
    assert "all of these are the same model" in page.text


def test_one_client_makes_a_report_too(results):
    page = Page(render(results(gains({"a": 60.0}, {"a": 80.0}), clustering("a"), clients="a")))
    assert set(page.figures) == {"accuracy", "clients"}
    assert "1 client ·" in page.text
    assert "standard deviation" not in page.text
    assert "Client's own model 80.0 % a Client alone 60.0 %" in page.text
    assert page.tables["Accuracy of each client"][1:] == [["a", "0", "60.0", "80.0", "+20.0"]]


def test_a_name_that_is_no_unicode_does_not_stop_the_report(directory):
    page = Page(write_report(directory(gains({"\udc80": 60.0}, {"\udc80": 80.0}))).read_text(encoding="utf-8"))
    assert page.tables["Accuracy of each client"][1][0] == "?"


def test_a_run_in_which_nothing_was_measured_and_sent_needs_no_script(results):
    page = Page(render(results(rounds=3)))
    assert "No client has a test set" in page.text
    assert "script" not in page.tags
    assert "script-src 'none'" in page.policy
