"""`cosmosfl data show`: who holds what, in the terminal and as a picture."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from conftest import make_clients
from cosmosfl.cli import app
from cosmosfl.config import ExperimentConfig
from cosmosfl.console import class_headings, holdings_table, spark_line
from cosmosfl.data.sets import PublicSet
from cosmosfl.experiment import Federation, build_federation
from cosmosfl.report.holdings import Holdings, holdings_figure, holdings_page


def show(*arguments: object):
    return CliRunner().invoke(app, ["data", "show", *map(str, arguments)])


def table_rows(output: str) -> dict[str, list[str]]:
    return {cells[0]: cells[1:] for line in output.splitlines() if (cells := line.split()) and "client-" in cells[0]}


def holdings(n_clients: int, n_classes: int, groups: tuple[int, ...] | None = None, names=None) -> Holdings:
    counts = np.arange(n_clients * n_classes).reshape(n_clients, n_classes)
    names = names or tuple(f"class {c}" for c in range(n_classes))
    return Holdings(tuple(f"client-{i}" for i in range(n_clients)), groups, names, counts, 2 * counts)


def printed(some: Holdings) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(holdings_table(some))
    return console.export_text()


# --- in the terminal ---


def test_the_table_counts_the_samples_that_a_run_would_train_on():
    result = show("--seed", 3, "--clients", 4)
    assert result.exit_code == 0, result.output
    federation = build_federation(ExperimentConfig.parse({"seed": 3, "partition": {"clients": 4}}))
    expected = {
        client.id: [
            str(federation.groups[client.id]),
            *(str(n) if n else "·" for n in np.bincount(client.private.labels, minlength=10)),
            str(len(client.private)),
            str(len(client.test)),
        ]
        for client in federation.clients
    }
    assert table_rows(result.output) == expected


def test_data_set_partition_and_public_set_are_named():
    output = show("--set", "dataset.public_samples=100").output
    assert "digits: handwritten digits of scikit-learn" in output
    assert "grouped-dirichlet (groups 2, mixing 0.1, alpha 5.0), 10 clients, seed 0" in output
    assert "100 samples without labels, of the training set (40 % set aside)" in output


def test_clients_of_a_group_stand_together():
    groups = [cells[0] for cells in table_rows(show("--set", "partition.groups=3").output).values()]
    assert groups == sorted(groups)
    assert set(groups) == {"0", "1", "2"}


def test_options_mean_what_they_mean_for_a_run(tmp_path):
    (tmp_path / "mine.toml").write_text("seed = 5\n[partition]\nclients = 3\n")
    assert len(table_rows(show("--config", tmp_path / "mine.toml").output)) == 3
    output = show("--config", tmp_path / "mine.toml", "--clients", 2, "--set", "partition.alpha=1").output
    assert "alpha 1.0), 2 clients, seed 5" in output


def test_a_partition_without_groups_has_no_such_column():
    assert "group" not in printed(holdings(2, 3))
    assert "group" in printed(holdings(2, 3, groups=(0, 1)))


def test_many_classes_become_their_number_a_spark_line_and_the_most_frequent():
    some = holdings(1, 48)
    (row,) = [line for line in printed(some).splitlines() if line.startswith("client-0")]
    assert re.sub(r" {2,}", " | ", row.strip()).split(" | ") == [
        "client-0", "47", spark_line(range(48)), "class 47 47, class 46 46, class 45 45", "1128", "2256",
    ]  # fmt: skip


def test_a_spark_line_adds_neighbours_up_and_leaves_nothing_blank():
    assert spark_line([0, 1, 4, 8]) == " ▁▄█"
    assert spark_line([1, 0, 0, 0, 100]) == "▁   █"  # little is not nothing
    assert spark_line([1, 1, 0, 0, 4, 0], longest=3) == "▄ █"
    assert len(spark_line([1] * 200)) <= 24
    assert spark_line([0, 0]) == "  "


def test_long_names_of_classes_are_numbers_in_the_heading():
    assert class_headings(("cat", "dog")) == ["cat", "dog"]
    assert class_headings(("cat", "horse")) == ["0", "1"]


def test_names_of_classes_are_not_markup():
    assert "[b]" in printed(holdings(1, 2, names=("[b]", "x")))
    assert "[red]x" in printed(holdings(1, 30, names=("[red]x",) * 30))


# --- as a picture ---


def test_the_picture_is_one_file_that_opens_offline(tmp_path):
    result = show("--out", tmp_path / "who.html")
    assert result.exit_code == 0, result.output
    assert "who.html" in result.output.replace("\n", "")
    source = (tmp_path / "who.html").read_text()
    assert "Who holds what: digits" in source
    assert "default-src 'none'" in source
    assert not re.search(r'<[^>]*(?:src|href)="(?!data:)', source.split("<script>")[0])


def test_private_stands_beside_test_with_a_headline_per_group():
    some = holdings(3, 2, groups=(0, 0, 1), names=("x", "y"))
    figure = holdings_figure(some)
    private, test = figure.data
    assert [list(row) for row in private.z] == [[None, None], [0, 1], [2, 3], [None, None], [4, 5]]
    assert [list(row) for row in test.z] == [[None, None], [0, 2], [4, 6], [None, None], [8, 10]]
    assert figure.layout.xaxis.domain[1] < figure.layout.xaxis2.domain[0]
    assert list(figure.layout.yaxis.ticktext) == [
        "<b>group 0</b>", "client-0", "client-1", "<b>group 1</b>", "client-2",
    ]  # fmt: skip
    assert list(figure.layout.xaxis.ticktext) == list(figure.layout.xaxis2.ticktext) == ["x", "y"]
    assert [list(row) for row in private.text][0:2] == [["", ""], ["", "1"]]


def test_a_client_without_a_test_set_holds_no_test_samples():
    some = Holdings.of(Federation(make_clients(2, test=False), PublicSet(np.zeros((2, 2))), 4, None), tuple("abcd"))
    assert some.private.sum(axis=1).tolist() == [12, 12]
    assert some.private[0, 2:].sum() == some.private[1, :2].sum() == 0
    assert not some.test.any()
    assert holdings_figure(some).data[1].zmax == 1


def test_hundreds_of_clients_and_classes_lose_their_labels_and_numbers():
    figure = holdings_figure(holdings(300, 100))
    assert figure.layout.height < 1200
    assert not figure.layout.yaxis.ticktext
    assert not figure.layout.xaxis.ticktext
    assert all(trace.text is None for trace in figure.data)


def test_names_cannot_leave_their_place_in_the_page():
    source = holdings_page(holdings(1, 2, names=("</script><b>x", "y")), "</title><i>", ["<u>fact"])
    assert "</script><b>x" not in source
    assert "</title><i>" not in source
    assert "<u>fact" not in source


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digit"], "did you mean 'digits'?"),
        (["--clients", "1000"], "would have no private samples"),
        (["--set", "partiton.alpha=1"], "did you mean 'partition'?"),
        (["--out", "mine.toml"], "error: --out: 'mine.toml'; expected a name that ends in .html"),
        (["--out", "nowhere/who.html"], "No such file or directory"),
    ],
)
def test_mistakes_are_one_line_with_exit_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = show(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
