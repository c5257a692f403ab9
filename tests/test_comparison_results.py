"""What a comparison says: numbers over seeds, tests, tables and the page, and what it says where there is nothing."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re

import pytest
from rich.console import Console

from cosmosfl.comparison.console import outcome_tables
from cosmosfl.comparison.figures import contrasts_figure, curves_figure, grid_figure, method_style, traffic_figure
from cosmosfl.comparison.outcome import AxisValues, CellResult, Comparison
from cosmosfl.comparison.page import common_settings, headline, own_settings, render
from cosmosfl.comparison.plan import LeftOut
from cosmosfl.comparison.tables import COLUMNS, latex, markdown, p_value, write_tables
from cosmosfl.evaluation.metrics import Measurement
from cosmosfl.events import Traffic
from cosmosfl.methods import METHODS
from cosmosfl.store import RunDirectoryError
from test_report import EVIL
from test_report import Page as PlainPage


class Page(PlainPage):
    """A page whose drawings do not cut the words around them."""

    def handle_starttag(self, tag, attrs):
        if tag not in ("svg", "path", "circle", "rect"):
            super().handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in ("svg", "path", "circle", "rect"):
            super().handle_endtag(tag)


ALPHA = AxisValues("partition.alpha", {"1": 1, "100": 100})
MODELS = AxisValues("clients.models", {"mlp": "mlp", "cnn-s+mlp": "cnn-s+mlp"})


def cell(method, seed, *rounds, labels=(), moment="client", sent=1024, config=None, seconds=2.0, client="client-"):
    """Return a finished cell; `rounds` are the accuracies of the clients in each round."""
    history = []
    for round, values in enumerate(rounds):
        for n, value in enumerate(values):
            history.append(Measurement(round, moment, f"{client}{n}", float(value), min(100.0, value + 10.0), 50))
            history.append(Traffic(round, f"{client}{n}", sent, 2 * sent))
    summary = {"rounds": len(rounds) - 1, "clients": len(rounds[0]), "wall_seconds": seconds, "clusters": [],
               "adjusted_rand_index": None, "rejections": 0}  # fmt: skip
    name = "_".join([method, *map(str, labels), f"seed={seed}"])
    usual = {"seed": seed, "rounds": len(rounds) - 1, "dataset": {"name": "digits"}, "method": {"name": method}}
    environment = {"python": "3", "packages": {"cosmosfl": "1.2"}}
    return CellResult(
        name, method, seed, labels, "finished", None, config or usual, environment, summary, tuple(history)
    )


def failed(method, seed, error="it broke", labels=()):
    return CellResult(f"{method}_seed={seed}", method, seed, labels, "failed", error)


def missing(method, seed, labels=()):
    return CellResult(f"{method}_seed={seed}", method, seed, labels, "missing")


def comparison(*cells, axes=(), reference="cosmos", **options):
    methods = options.pop("methods", tuple(dict.fromkeys(cell.method for cell in cells)))
    seeds = options.pop("seeds", tuple(sorted({cell.seed for cell in cells})))
    defaults = {"title": "", "moment": "client", "metric": "top1"} | options
    return Comparison(reference=reference, methods=methods, seeds=seeds, axes=tuple(axes), cells=cells, **defaults)


def usual(n=3):
    """Return cosmos at 80, 82, 84, ..., local at 70, 71, 72, ..., in the last of two rounds."""
    return comparison(
        *(cell("cosmos", s, [60, 70], [75 + 2 * s, 85 + 2 * s]) for s in range(n)),
        *(cell("local", s, [68 + s, 78 + s], [65 + s, 75 + s], sent=0) for s in range(n)),
    )


# --- numbers ---


def test_numbers_are_first_one_per_seed_then_over_seeds():
    cosmos, local = usual().rows(())
    assert (cosmos.method, cosmos.n) == ("cosmos", 3)
    assert (cosmos.last.mean, cosmos.last.std) == (82, 2)
    assert cosmos.worst.mean == 77
    assert cosmos.spread.mean == pytest.approx(50**0.5)
    assert (cosmos.uplink.mean, cosmos.downlink.mean) == (2048, 4096)  # of two rounds
    assert (local.last.mean, local.best.mean) == (71, 74)


def test_other_moments_and_metrics():
    found = comparison(cell("cosmos", 0, [60, 70], moment="cluster"), cell("local", 0, [50, 60]))
    assert found.moments == ["client", "cluster"]
    rows = {row.method: row for row in found.rows((), "cluster", "top5")}
    assert rows["cosmos"].last.mean == 75
    assert rows["local"].why_not == "cluster is not measured by this method"


def test_the_reference_is_compared_seed_by_seed():
    found = comparison(
        *(cell("cosmos", s, [80 + s]) for s in (0, 1, 2)),
        *(cell("local", s, [70 + 2 * s]) for s in (1, 2, 3)),
    )
    (contrast,) = found.contrasts(())
    assert contrast.test.n == 2  # seeds 1 and 2
    assert contrast.test.difference == pytest.approx(((81 - 72) + (82 - 74)) / 2)


def test_p_values_are_corrected_for_the_methods_that_have_one():
    cells = [cell("cosmos", s, [80 + s]) for s in range(3)]
    cells += [cell("local", s, [70 + 2 * s]) for s in range(3)]
    cells += [cell("fedmd", s, [60 + s * s]) for s in range(3)]
    cells += [cell("comet", s, [70 + s]) for s in range(3)]  # always 10 less: no variation, no p-value
    contrasts = {c.method: c for c in comparison(*cells).contrasts(())}
    assert contrasts["comet"].p_holm is None
    p = sorted(contrasts[m].test.p for m in ("local", "fedmd"))
    assert sorted(contrasts[m].p_holm for m in ("local", "fedmd")) == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    assert contrasts["local"].family == (2, 0)


def test_a_cell_without_effect_of_an_axis_stands_for_all_its_levels():
    found = comparison(
        cell("cosmos", 0, [80], labels=("1",)),
        cell("cosmos", 0, [90], labels=("100",)),
        cell("local", 0, [70], labels=(None,)),
        axes=[ALPHA],
    )
    assert [row.last.mean for point in found.points for row in found.rows(point) if row.method == "local"] == [70, 70]
    assert found.contrasts(("100",))[0].test.difference == 20


def test_why_a_method_has_no_numbers():
    left_out = (LeftOut("fedavg", (), (0,), "two kinds of models"),)
    found = comparison(
        cell("cosmos", 0, [80]), failed("local", 0), missing("fedmd", 0),
        methods=("cosmos", "local", "fedmd", "fedavg"), left_out=left_out,
    )  # fmt: skip
    assert {row.method: row.why_not for row in found.rows(())} == {
        "cosmos": "", "local": "failed", "fedmd": "not run yet", "fedavg": "not applicable"
    }  # fmt: skip


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"has no comparison.json; expected the directory of a comparison"):
        Comparison.read(tmp_path)


# --- the result in words ---


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (usual(), "cosmos is first of 2 methods with 82.0 ± 2.0 % in the last round, before local with 71.0 ± 1.0 %. "
                  "At the 5 % level, cosmos is better (paired t-test over 3 seeds)."),
        (usual(1), "cosmos is first of 2 methods with 80.0 % in the last round, before local with 70.0 %. "
                   "With one seed, nothing can be said about chance."),
        (comparison(cell("cosmos", 0, [60]), cell("local", 0, [70]), cell("centralized", 0, [90])),
         "local is first of 2 methods with 70.0 % in the last round; cosmos is number 2 with 60.0 %. With one seed, "
         "nothing can be said about chance."),
        (comparison(*(cell("cosmos", s, [80 + s * s]) for s in range(3)), *(cell("local", s, [80]) for s in range(3))),
         "cosmos is first of 2 methods with 81.7 ± 2.1 % in the last round, before local with 80.0 ± 0.0 %. At the 5 % "
         "level, cosmos is neither better nor worse (paired t-test over 3 seeds)."),
        (comparison(cell("local", 0, [60]), reference="local"),
         "local reaches 60.0 % in the last round; there is nothing to compare with."),
        (comparison(failed("cosmos", 0), failed("local", 0)), "No cell is finished; 2 of 2 failed."),
        (comparison(missing("cosmos", 0)), "No cell is finished yet."),
        (comparison(cell("cosmos", 0, [60], moment="cluster")), "client was not measured in any finished cell."),
        (comparison(cell("cosmos", 0, [80], labels=("1",)), cell("cosmos", 0, [80], labels=("100",)),
                    cell("local", 0, [70], labels=("1",)), cell("local", 0, [90], labels=("100",)), axes=[ALPHA]),
         "By mean accuracy in the last round, cosmos is first at 1 of 2 points. "
         "With one seed, nothing can be said about chance."),
        (comparison(cell("local", 0, [80], labels=("1",)), missing("local", 0, labels=("100",)), axes=[ALPHA],
                    reference="local"),
         "There is one method only, so there is nothing to compare with."),
    ],
)  # fmt: skip
def test_the_headline(found, expected):
    assert headline(found).replace("\u00a0", " ") == expected


# --- tables ---


def test_tables_have_the_columns_that_are_documented(tmp_path):
    found = comparison(
        *(cell("cosmos", s, [60, 70], [80, 90], labels=(label,)) for s in (0, 1) for label in ("1", "100")),
        *(cell("local", s, [60, 70 + s], labels=(None,)) for s in (0, 1)),
        failed("fedmd", 0, labels=("1",)),
        axes=[ALPHA],
    )
    assert write_tables(found, tmp_path) == []
    tables = {}
    for name, columns in COLUMNS.items():
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            reader = csv.DictReader(file)
            tables[name] = list(reader)
        assert set(reader.fieldnames) == {*columns, "partition.alpha"}
    assert len(tables["results"]) == 4 * 2 * 2 + 2 * 2
    assert {row["partition.alpha"] for row in tables["results"] if row["method"] == "local"} == {""}
    assert [row["error"] for row in tables["cells"] if row["state"] == "failed"] == ["it broke"]
    wanted = {"method": "local", "partition.alpha": "100", "metric": "top1"}
    row = next(row for row in tables["summary"] if wanted.items() <= row.items())
    assert (row["n"], row["last_mean"], float(row["uplink_bytes"])) == ("2", "65.25", 1024)
    row = next(r for r in tables["comparisons"] if r["metric"] == "top1")
    assert (row["reference"], row["method"], row["difference"]) == ("cosmos", "local", "19.75")
    assert row["signed_rank_p"] == ""


def test_parquet_has_what_csv_has(tmp_path):
    from pyarrow import parquet

    write_tables(usual(), tmp_path)
    table = parquet.read_table(tmp_path / "results.parquet")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in table.to_pylist()] == rows
    assert str(table.schema.field("top1").type) == "double"


def test_an_axis_with_the_name_of_a_column_gets_another(tmp_path):
    axis = AxisValues("client", {"a": "a"})
    found = comparison(cell("local", 0, [60], labels=("a",)), axes=[axis], reference="local")
    write_tables(found, tmp_path)
    assert "grid.client" in (tmp_path / "results.csv").read_text().splitlines()[0].split(",")


def test_markdown_marks_the_best_and_says_what_is_missing():
    found = comparison(*usual().cells, failed("fedmd", 0), cell("centralized", 0, [99]))
    text = markdown(found)
    assert "| cosmos | **82.0 ± 2.0** | 82.0 ± 2.0 | 77.0 ± 2.0 |" in text
    assert "| centralized | 99.0 (1) |" in text  # no competitor, and of one seed only
    assert "| local | 3 | +11.0 [+8.5, +13.5] |" in text
    assert "none: at best 0.25 |" in text
    assert "- fedmd_seed=0: failed: it broke" in text


def test_latex_is_escaped_and_has_as_many_cells_as_columns():
    axes = [AxisValues("variants", {"50 % & more_": "50 % & more_", "b": "b"})]
    found = comparison(
        *(cell("cosmos", s, [80 + s], labels=(label,)) for s in (0, 1) for label in ("50 % & more_", "b")),
        *(cell("local", s, [70], labels=(None,)) for s in (0, 1)),
        axes=axes,
    )
    text = latex(found)
    assert r"variants=50 \% \& more\_" in text
    assert r"\textbf{80.5 $\pm$ 0.7}" in text
    for block in re.findall(r"\\begin\{tabular\}\{(l r*)\}(.*?)\\end\{tabular\}".replace(" ", ""), text, re.S):
        for line in block[1].splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(block[0]) - 1
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert "±" not in text
    assert "−" not in text


def test_p_values_are_written_alike():
    assert [p_value(p) for p in (0.0001, 0.0123, 0.0449, 0.25, 1.0)] == ["< 0.001", "0.012", "0.045", "0.25", "1.00"]


@pytest.mark.parametrize("found", [usual(), usual(1), comparison(failed("cosmos", 0)), comparison(missing("local", 0))])
def test_tables_of_little_or_nothing(found, tmp_path, capsys):
    assert write_tables(found, tmp_path) == []
    Console(width=80).print(*outcome_tables(found))
    assert "method" in capsys.readouterr().out


def test_the_terminal_shows_points_as_columns(capsys):
    found = comparison(
        cell("cosmos", 0, [80], labels=("1",)), cell("cosmos", 1, [90], labels=("1",)),
        failed("cosmos", 0, labels=("100",)), cell("local", 0, [70], labels=(None,)), axes=[ALPHA],
    )  # fmt: skip
    Console(width=160).print(*outcome_tables(found))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["method", "alpha=1", "alpha=100"], ["cosmos", "85.0", "±", "7.1", "failed"],
        ["local", "70.0", "(1)", "70.0", "(1)"],
    ]  # fmt: skip


# --- pictures ---


def test_every_method_is_drawn_in_its_own_way():
    styles = [method_style(name) for name in METHODS]
    assert len({(s.colour, s.dash) for s in styles}) == len(METHODS)
    assert method_style("cosmos").width > method_style("local").width


def test_curves_are_means_with_bands_over_seeds():
    figure = curves_figure(usual(), (), "client", "top1", legend=True)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines["cosmos"].y) == [65, 82]
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 2
    assert list(bands[0].y) == [65, 84, 80, 65]
    assert not [t for t in curves_figure(usual(1), (), "client", "top1", legend=True).data if t.fill == "toself"]


def test_with_many_methods_only_two_have_bands():
    cells = [cell(m, s, [60 + s], [70 + 2 * s]) for m in ("cosmos", "local", *"abcdef") for s in (0, 1)]
    figure = curves_figure(comparison(*cells), (), "client", "top1", legend=True)
    assert {trace.legendgroup for trace in figure.data if trace.fill == "toself"} == {"cosmos", "local"}


def test_numbers_far_apart_are_on_a_logarithmic_axis_and_names_side_by_side():
    def found(axis):
        return comparison(
            *(cell("cosmos", 0, [80], labels=(label,)) for label in axis.values),
            cell("local", 0, [70], labels=(None,)), axes=[axis],
        )  # fmt: skip

    numeric = grid_figure(found(ALPHA), "client", "top1")
    assert numeric.layout.xaxis.type == "log"
    assert [list(trace.x) for trace in numeric.data] == [[1, 100], [1, 100]]
    named = grid_figure(found(MODELS), "client", "top1")
    assert named.layout.xaxis.type == "linear"
    assert list(named.layout.xaxis.ticktext) == ["mlp", "cnn-s+mlp"]
    assert named.data[0].x[0] < 0 < named.data[1].x[0]
    assert grid_figure(usual(), "client", "top1") is None


def test_differences_have_intervals_where_there_are_any():
    figure = contrasts_figure(usual().contrasts(()))
    assert [trace.x[0] for trace in figure.data[1:]] == [11]
    low, high = figure.layout.xaxis.range
    assert low < 0 < 13.5 < high
    assert list(contrasts_figure(usual(1).contrasts(())).data[0].x) == []
    assert contrasts_figure([]) is None


def test_traffic_takes_two_who_send():
    assert traffic_figure(usual(), (), "client", "top1") is None  # local sends nothing
    found = comparison(*usual().cells, cell("fedavg", 0, [70], sent=2**30))
    figure = traffic_figure(found, (), "client", "top1")
    assert {trace.name for trace in figure.data} == {"cosmos", "fedavg"}
    assert 3 <= len(figure.layout.xaxis.ticktext) <= 9


# --- the page ---


def rich_comparison():
    return comparison(
        *(cell("cosmos", s, [60, 70], [80 + s, 90], labels=(label,)) for s in (0, 1) for label in ("1", "100")),
        *(cell("local", s, [60, 70 + s], labels=(None,)) for s in (0, 1)),
        failed("fedmd", 0, labels=("1",)),
        axes=[ALPHA],
        left_out=(LeftOut("fedavg", (None,), (0, 1), "two kinds of models"),),
        notes=("tuned settings from here",),
        methods=("cosmos", "local", "fedmd", "fedavg"),
        title="A title",
    )


@pytest.mark.parametrize("found", [usual(), rich_comparison()], ids=["one point", "grid"])
def test_the_page_fetches_nothing_and_runs_no_other_script(found):
    page = Page(render(found))
    assert set(page.addresses) <= {"data:,"}
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts}
    assert hashes == set(re.search(r"script-src ([^;]*);", page.policy).group(1).split())
    assert render(found) == render(found)


def test_the_page_of_one_point():
    page = Page(render(usual()))
    assert page.tables["Methods in order, client"][1][:4] == ["cosmos", "82.0 ± 2.0", "82.0 ± 2.0", "77.0 ± 2.0"]
    assert page.tables["cosmos minus each other method"][1][:3] == ["local", "3", "+11.0 [+8.5, +13.5]"]
    assert set(page.figures) == {"curves-client", "contrasts-client-0"}
    assert "2 methods on digits" in page.text
    assert "Which model counts" not in page.text


def test_the_page_of_a_grid():
    page = Page(render(rich_comparison()))
    assert page.tables["Accuracy in the last round by method and point"] == [
        ["method", "alpha=1", "alpha=100"],
        ["cosmos", "85.2 ± 0.4", "85.2 ± 0.4"],
        ["local", "65.2 ± 0.4", "65.2 ± 0.4"],
        ["fedmd", "failed", "not run yet"],
        ["fedavg", "not applicable", "not applicable"],
    ]
    missing = dict(page.tables["What has no numbers, and why"][1:])
    assert missing == {"fedavg": "not applicable: two kinds of models", "fedmd_seed=0": "failed: it broke"}
    assert {"curves-client-0", "curves-client-1", "grid-client"} <= set(page.figures)
    assert "tuned settings from here" in page.text


def test_each_moment_has_a_button_and_its_own_numbers():
    cells = []
    for seed in (0, 1):
        both = cell("cosmos", seed, [60 + seed])
        cluster = cell("cosmos", seed, [90 + seed], moment="cluster")
        cells.append(CellResult(**{**both.__dict__, "history": both.history + cluster.history}))
    source = render(comparison(*cells, cell("local", 0, [50]), cell("local", 1, [50])))
    assert re.findall(r'id="moment-(\w+)"', source) == ["client", "cluster"]
    assert 'id="moment-client" checked' in source
    for moment in ("client", "cluster"):
        assert f"main:has(#moment-{moment}:checked) .panel.of-{moment}" in source
    assert {"curves-client", "curves-cluster"} <= set(Page(source).figures)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (comparison(failed("cosmos", 0), failed("local", 0)), ["No cell is finished; 2 of 2 failed", "it broke"]),
        (comparison(missing("cosmos", 0), missing("local", 1)), ["No cell is finished yet", "cosmos_seed=0"]),
        (comparison(cell("local", 0, [60]), reference="local"), ["nothing to compare with"]),
        (usual(1), ["nothing can be said about chance"]),
        (comparison(cell("cosmos", 0, [60]), missing("local", 0)), ["1 of 2", "not run yet"]),
    ],
)  # fmt: skip
def test_pages_of_little_or_nothing(found, words):
    page = Page(render(found))
    for word in words:
        assert word in page.text + " ".join(cell for table in page.tables.values() for row in table for cell in row)


def test_whatever_a_cell_is_called_it_is_text():
    evil = cell("cosmos", 0, [60], labels=(EVIL,), client=EVIL)
    found = comparison(
        evil, failed("local", 0, EVIL, labels=(EVIL,)), axes=[AxisValues(EVIL, {EVIL: EVIL})], title=EVIL,
        notes=(EVIL,),
    )  # fmt: skip
    source = render(found)
    assert EVIL not in source
    assert "b" not in Page(source).tags


def test_settings_are_those_in_common_and_each_methods_own():
    def config(method, seed, **own):
        return {"seed": seed, "workers": seed, "rounds": 1, "method": {"name": method, "local_epochs": 5, **own}}

    found = comparison(
        *(cell("cosmos", s, [60], config=config("cosmos", s, server_epochs=3)) for s in (0, 1)),
        *(cell("local", s, [60], config=config("local", s)) for s in (0, 1)),
    )
    assert common_settings(found) == {"rounds": 1, "method": {"local_epochs": 5}}
    assert own_settings(found) == {"cosmos": ["method.server_epochs = 3"], "local": []}
    assert json.dumps(common_settings(comparison(missing("cosmos", 0)))) == "{}"
