"""The command line, as a newcomer uses it; and the demonstration's numbers."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import cosmosfl as cf
from cosmosfl.cli import app

QUICK = ["--set", "method.local_epochs=2", "--set", "method.server_epochs=1", "--set", "method.distill_epochs=1",
         "--set", 'clients.models=["mlp","logistic-regression"]', "--clients", "4", "--rounds", "1"]  # fmt: skip


def cosmosfl(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_run_prints_its_table_and_where_things_lie(tmp_path):
    result = cosmosfl("run", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    for expected in ("local only", "client-3", "mean", "worst client", "clusters", "KiB up", "report.html"):
        assert expected in result.output
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    assert cf.load(tmp_path / "run").summary()["clients"] == 4


def test_quiet_prints_the_directory_only(tmp_path):
    result = cosmosfl("run", *QUICK, "--out", tmp_path / "run", "--quiet")
    assert result.stdout == f"{tmp_path / 'run'}\n"
    assert result.stderr == ""


def test_the_default_directory_is_new_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (cosmosfl("run", *QUICK, "--quiet").stdout.strip() for _ in range(2))
    assert first != second
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_used_directory_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "file").write_text("mine")
    result = cosmosfl("run", "--out", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_can_be_repeated_from_its_configuration(tmp_path):
    cosmosfl("run", *QUICK, "--seed", 3, "--out", tmp_path / "a")
    cosmosfl("run", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == (tmp_path / "b" / "metrics.jsonl").read_text()
    assert (tmp_path / "a" / "config.toml").read_text() == (tmp_path / "b" / "config.toml").read_text()


def test_the_method_local_runs_without_clusters(tmp_path):
    result = cosmosfl("run", "--method", "local", "--clients", 2, "--rounds", 0, "--set", "method.local_epochs=1",
                      "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["clusters"] == []
    assert summary["accuracy"]["local"] == summary["accuracy"]["client"]


def test_the_report_is_rebuilt_from_the_directory(tmp_path):
    cosmosfl("run", *QUICK, "--out", tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "run" / "report.html").unlink()
    assert cosmosfl("report", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / "report.html").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "datset.name=x"], "error: datset: no such key; did you mean 'dataset'?"),
        (["run", "--method", "cosmoss"], "error: method.name: 'cosmoss' is not known; did you mean 'cosmos'?"),
        (["run", "--dataset", "digit"], "did you mean 'digits'?"),
        (["run", "--clients", "0"], "error: partition.clients: 0; expected greater than 0"),
        (["run", "--clients", "1000"], "would have no private samples"),
        (["run", "--set", "partition.groups=11"], "error: groups: 11; expected 1 to 10"),
        (["run", "--config", "nowhere.toml"], "error: nowhere.toml: No such file or directory"),
        (["report", "nowhere"], "error: nowhere does not exist; expected the directory of a run"),
    ],
)
def test_mistakes_are_one_line_with_exit_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cosmosfl(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize("workers", [1, 2])
def test_divergence_is_one_line_that_names_the_client(workers, tmp_path):
    wild = ["-s", "clients.models=['mlp']", "-s", "clients.optimizer=sgd", "-s", "clients.learning_rate=1e30"]
    result = cosmosfl("run", *QUICK, *wild, "--out", tmp_path / "run", "--workers", workers)
    assert result.exit_code == 2
    assert "error: training loss is nan in epoch" in result.stderr
    assert "at client 'client-" in result.stderr


@pytest.mark.parametrize(
    ("command", "expected"),
    [("methods", ["cosmos", "local", "threshold=auto"]), ("datasets", ["digits"]), ("models", ["cnn-s", "xgboost"])],
)
def test_lists_have_a_line_for_everything(command, expected):
    result = cosmosfl(command)
    assert result.exit_code == 0
    assert all(word in result.output for word in expected)


def test_version_and_help():
    assert cosmosfl("--version").output == f"{cf.__version__}\n"
    assert "--set" in cosmosfl("run", "--help").output


def test_the_demonstration_has_its_golden_numbers(tmp_path):
    """`cosmosfl run` as the README shows it. A change of these numbers is a change of the algorithm."""
    result = cosmosfl("run", "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["adjusted_rand_index"] == 1
    assert summary["bytes"]["uplink_per_client_round"] == 8 + 430 * 11 * 4  # of ten classes, and a log ratio
    means = {moment: accuracy["mean"] for moment, accuracy in summary["accuracy"].items()}
    # another CPU may round otherwise, which moves single test samples: one point of room
    assert means == pytest.approx(
        {"local": 75.1, "client_after_fit": 84.7, "client": 89.5, "cluster": 89.5, "oracle": 89.5}, abs=1.0
    )
    assert len(summary["accuracy"]["client"]["per_client"]) == 10


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(tmp_path):
    result = cosmosfl("run", *QUICK, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "up a client and round" in result.output
    assert not (tmp_path / "run").exists()


def test_a_preset_for_one_method_serves_another(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('[method]\nname = "cosmos"\nserver_epochs = 1\nlocal_epochs = 2\n', encoding="utf-8")
    result = cosmosfl("run", "--config", mine, "--method", "local", "--rounds", 0, "--out", tmp_path / "run", "-q")
    assert result.exit_code == 0, result.output
    assert "local_epochs = 2" in (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    refused = cosmosfl("run", "--config", mine, "--method", "local", "-s", "method.server_epochs=1")
    assert refused.exit_code == 2
    assert "method.server_epochs: no such key" in refused.stderr
    mine.write_text('method = "cosmos"', encoding="utf-8")
    assert "method: 'cosmos'; expected a table" in cosmosfl("run", "--config", mine).stderr
