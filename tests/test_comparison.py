"""Grids of runs: what a cell's configuration is, what cannot run, and that they can be taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from conftest import hear_ctrl_c
from cosmosfl.comparison import plan as plan_module
from cosmosfl.comparison import runner
from cosmosfl.comparison.grid import Axis, GridError, value_label
from cosmosfl.comparison.outcome import Comparison
from cosmosfl.comparison.plan import make_plan
from cosmosfl.comparison.reading import make_grid, parse_axis, read_grid_file
from cosmosfl.comparison.runner import cell_state, open_comparison, read_error, run_cells
from cosmosfl.config import ConfigError
from cosmosfl.engine.pool import WorkerDiedError
from cosmosfl.methods import METHODS
from cosmosfl.methods.local import Local
from cosmosfl.protocol import NotApplicableError
from cosmosfl.store import RunDirectoryError
from test_cli import cosmosfl

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.toml"))
TINY = ["partition.clients=2", "partition.test_samples_per_client=20", "dataset.public_samples=20", "rounds=1",
        'clients.models=["mlp"]', "teacher.model=mlp", "method.local_epochs=1"]  # fmt: skip


class Picky(Local):
    """Runs only where all clients have the same model."""

    name: ClassVar[str] = "picky"
    summary: ClassVar[str] = "for tests"
    mu: float = 1.0

    def prepare(self, clients):
        kinds = {repr(client.learner) for client in clients}
        if len(kinds) > 1:
            raise NotApplicableError(f"method 'picky' shares weights: {' and '.join(sorted(kinds))}")
        return self


class Broken(Local):
    """Fails in its first round."""

    name: ClassVar[str] = "broken"

    def server_side(self, public, task):
        raise ArithmeticError("training loss is nan")


@pytest.fixture
def picky(monkeypatch):
    monkeypatch.setitem(METHODS, "picky", Picky)


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(METHODS, "broken", Broken)


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "grid.toml"
        path.write_text(text)
        return path

    return write


def by_name(grid):
    return {cell.name: cell.config for cell in grid.cells()}


# --- axes ---


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("partition.alpha=1,5,100", ["1", "5", "100"]),
        ("partition.alpha=0.50, 1e-3", ["0.5", "0.001"]),
        ("partition.alpha=[1,5]", ["1", "5"]),
        ('clients.models=[["cnn-s"],["cnn-s","mlp"]]', ["cnn-s", "cnn-s+mlp"]),
        ('clients.models=["cnn-s"],["mlp"]', ["cnn-s", "mlp"]),
        ("preset=cpu/emnist, cpu/cifar100", ["cpu/emnist", "cpu/cifar100"]),
        ("method.threshold=auto,0.5", ["auto", "0.5"]),
        ("research_code.known_groups=true,false", ["true", "false"]),
    ],
)
def test_values_of_an_axis(text, labels):
    assert list(parse_axis(text).levels) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition.alpha", "expected KEY=VALUE,VALUE, such as partition.alpha=1,5,100"),
        ("partition.alpha=", "expected KEY=VALUE,VALUE"),
        ("clients.models=[[a]]", "is not TOML"),
        ("partition.alpha=1,1.0", "1 stands there twice"),
        ("partition..alpha=1", "expected a key of the configuration"),
        ("seed=0,1", "grid: seed: the seeds are given with --seeds"),
        ("method.name=a,b", "grid: method.name: the methods are given with --methods"),
        ("local_baseline=true", "'local' is a method of every comparison"),
    ],
)
def test_an_axis_that_is_none_is_refused(text, message):
    with pytest.raises(GridError, match=re.escape(message)):
        parse_axis(text)


def test_labels_are_short_and_differ():
    assert [value_label(v) for v in (True, 1, 1.5, 1e-4, ["a", "b"], {"a": 1})] == [
        "true", "1", "1.5", "0.0001", "a+b", '{"a": 1}'
    ]  # fmt: skip


# --- what a cell's configuration is ---


def test_cells_are_methods_times_points_times_seeds_and_seeds_come_first():
    grid = make_grid(methods="cosmos", seeds="0,1", axes=["partition.alpha=1,5"])
    cells = grid.cells()
    assert [cell.name for cell in cells[:4]] == [
        "cosmos_alpha=1_seed=0", "local_alpha=1_seed=0", "cosmos_alpha=5_seed=0", "local_alpha=5_seed=0"
    ]  # fmt: skip
    assert {cell.seed for cell in cells[4:]} == {1}
    config = cells[6].config
    assert (config.seed, config.method.name, config.partition.alpha) == (1, "cosmos", 5)
    assert not any(cell.config.local_baseline for cell in cells)


def test_local_takes_part_whoever_is_named():
    assert make_grid(methods="cosmos").methods == ("cosmos", "local")
    assert make_grid(methods="local").methods == ("local",)
    assert make_grid().methods == tuple(METHODS)


def test_an_axis_without_effect_on_a_method_gives_it_one_cell():
    grid = make_grid(methods="cosmos,local", seeds="0", axes=["method.distance=l2,cosine", "teacher.consistency=0,1"])
    cells = grid.cells()
    assert [cell.name for cell in cells if cell.method == "local"] == ["local_seed=0"]
    assert [cell.labels for cell in cells if cell.method == "local"] == [(None, None)]
    assert len([cell for cell in cells if cell.method == "cosmos"]) == 4


def test_a_preset_of_one_method_does_not_break_another():
    configs = by_name(make_grid(methods="all", seeds="0", preset="paper/cifar100"))
    assert set(configs) == {f"{method}_seed=0" for method in METHODS}
    assert configs["cosmos_seed=0"].method.distance == "l2"
    assert {config.method.local_epochs for config in configs.values()} == {5}
    assert {config.rounds for config in configs.values()} == {10}
    assert {config.method.distill_epochs for c, config in configs.items() if c.startswith(("fedmd", "cosmos"))} == {5}


def test_the_switch_that_searches_for_clusters_is_left_out_of_methods_that_have_none():
    configs = by_name(make_grid(methods="cosmos,local", seeds="0", preset="research-code/cifar10"))
    assert configs["cosmos_seed=0"].method.n_clusters == 5
    assert configs["local_seed=0"].research_code.second_softmax


def test_precedence_of_layers(tmp_path, file):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "cosmos.toml").write_text(
        "[clients]\nlearning_rate = 0.1\nbatch_size = 8\n[method]\nserver_epochs = 9"
    )
    (tmp_path / "config.toml").write_text("seed = 7\nworkers = 3\nrounds = 2\n[partition]\nclients = 4\nalpha = 3.0")
    grid = make_grid(
        read_grid_file(
            file('preset = "cpu/emnist"\nrounds = 9\n[methods.cosmos]\nserver_epochs = 3\nlocal_epochs = 4\n'
                 "[methods.cosmos.clients]\nbatch_size = 2\n[grid]\npartition.alpha = [1]")
        ),
        methods="cosmos",
        seeds="0",
        assignments=["clients.batch_size=16"],
        config=tmp_path / "config.toml",
        tuned=tmp_path / "tuned",
    )  # fmt: skip
    cosmos, local = by_name(grid).values()
    assert (cosmos.seed, cosmos.rounds, cosmos.partition.clients) == (0, 2, 4)  # --config over the grid file
    assert cosmos.partition.alpha == 1  # the point over all
    assert cosmos.dataset.name == "emnist47"  # the preset below
    assert cosmos.clients.batch_size == local.clients.batch_size == 16  # by hand, over tuned
    assert cosmos.clients.learning_rate == 0.1  # tuned
    assert cosmos.method.server_epochs == 9  # tuned, over the grid file
    assert cosmos.method.local_epochs == 4  # the grid file's own for this method
    assert (local.clients.learning_rate, local.method.local_epochs) == (1e-3, 5)
    assert grid.notes[1].startswith("no tuned settings for local")


def test_explicit_keys_go_to_the_methods_that_have_them(picky):
    configs = by_name(make_grid(methods="cosmos,picky", seeds="0", assignments=["method.mu=3"]))
    assert configs["picky_seed=0"].method.mu == 3
    with pytest.raises(ConfigError, match="method.mux: 'mux' is not known; did you mean 'mu'?"):
        make_grid(methods="picky", assignments=["method.mux=3"]).cells()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "cosmso"}, "methods: 'cosmso' is not known; did you mean 'cosmos'?"),
        ({"methods": ","}, "methods: none; expected 'all', or names"),
        ({"seeds": "0,x"}, "seeds: '0,x'; expected whole numbers with commas between them"),
        ({"seeds": "1,1"}, "seeds: 1, 1; expected each once"),
        ({"assignments": ["seed=1"]}, "--set: seed: the seeds are given with --seeds"),
        ({"assignments": ["method=cosmos"]}, "--set: method: the methods are given with --methods"),
        ({"assignments": ["method.name=cosmos"]}, "--set: method.name: the methods are given"),
        ({"assignments": ["partition.alpha=1"], "axes": ["partition.alpha=1,2"]}, "the grid varies it"),
        ({"preset": "cpu/emnist", "axes": ["preset=cpu/emnist"]}, "the grid varies the preset"),
        ({"preset": "cpu/emnis"}, "preset: 'cpu/emnis' is not known; did you mean 'cpu/emnist'?"),
        ({"axes": ["partition.alhpa=1,2"]}, "partition.alhpa: no such key; did you mean 'alpha'?"),
        ({"axes": ["partition.alpha=1,-2"]}, "partition.alpha: -2; expected greater than 0 (cells"),
        ({"reference": "cosmo"}, "reference: 'cosmo' is not known; did you mean 'cosmos'?"),
        ({"moment": "clients"}, "moment: 'clients' is not known; did you mean 'client'?"),
        ({"tuned": "nowhere"}, "--tuned: nowhere is no directory"),
    ],
)  # fmt: skip
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_grid(**options).cells()


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(GridError) as caught:
        make_grid(methods="local", seeds="0", axes=["partition.alpha=1,-1", "partition.groups=2,0"]).cells()
    assert "partition.groups: 0; expected greater than 0" in str(caught.value)
    assert "partition.alpha: -1; expected greater than 0" in str(caught.value)


def test_names_are_those_of_files_and_differ():
    grid = make_grid(methods="local", seeds="0", axes=["preset=cpu/emnist,cpu/cifar100"])
    assert list(by_name(grid)) == ["local_preset=cpu-emnist_seed=0", "local_preset=cpu-cifar100_seed=0"]
    axis = Axis.of_variants("v", {"a/b": {"rounds": 1}, "a b": {"rounds": 2}, "x" * 300: {"rounds": 3}})
    names = list(by_name(replace(make_grid(methods="local", seeds="0"), axes=(axis,))))
    assert len({name.casefold() for name in names}) == 3
    assert all(len(name) < 150 and re.fullmatch(r"[\w.+=-]+", name) for name in names)


# --- tuned settings ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[partition]\nalpha = 1", "partition; a method may have rounds, clients, teacher, method of its own"),
        ('[method]\nname = "local"', "method: expected a table of settings of 'cosmos'"),
        ("[method]\nserver_epoch = 1", "method.server_epoch: no such key; did you mean 'server_epochs'?"),
    ],
)
def test_tuned_settings_are_checked(text, message, tmp_path):
    (tmp_path / "cosmos.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_grid(methods="cosmos", seeds="0", tuned=tmp_path).cells()


def test_a_directory_without_tuned_settings_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no file for cosmos, local; expected METHOD.toml"):
        make_grid(methods="cosmos", tuned=tmp_path)


# --- grid files ---

SCALED = """
compare = ["cosmos"]
seeds = [0, 1]
rounds = 5
[grid]
partition.alpha = [1, 5, 100]
[variants.size.small.partition]
clients = 2
[variants.size.large.partition]
clients = 5
[scale.tiny]
seeds = [3]
[scale.tiny.grid]
partition.alpha = [1]
[scale.tiny.variants.size.one.partition]
clients = 1
"""


def test_a_scale_lies_over_the_file(file):
    full = make_grid(read_grid_file(file(SCALED)))
    assert [list(axis.levels) for axis in full.axes] == [["1", "5", "100"], ["small", "large"]]
    tiny = make_grid(read_grid_file(file(SCALED), "tiny"))
    assert [list(axis.levels) for axis in tiny.axes] == [["1"], ["one"]]
    (cosmos, _) = tiny.cells()
    assert (cosmos.seed, cosmos.config.rounds, cosmos.config.partition.clients) == (3, 5, 1)


def test_options_have_precedence_over_the_file(file):
    grid = make_grid(read_grid_file(file(SCALED)), methods="local", seeds="9", axes=["partition.alpha=7"])
    assert (grid.methods, grid.seeds) == (("local",), (9,))
    assert list(grid.axes[0].levels) == ["7"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sees = [0]", "sees: 'sees' is not known; did you mean 'seeds'?"),
        ("seed = 0", "seed: the seeds are given with --seeds"),
        ("seeds = []", "seeds: "),
        ('seeds = ["a"]', "seeds.0: 'a'; expected a valid integer"),
        ('compare = ["cosmo"]', "methods: 'cosmo' is not known; did you mean 'cosmos'?"),
        ("[methods.cosmo]\nx = 1", "methods: 'cosmo' is not known; did you mean 'cosmos'?"),
        ("[methods.cosmos]\nserver_epoch = 1", "method.server_epoch: no such key; did you mean 'server_epochs'?"),
        ("[methods.cosmos.client]\nx = 1", "client: 'client' is not known; did you mean 'clients'?"),
        ("[grid]\npartition.alpha = 1", "grid: partition.alpha: 1; expected a list of values"),
        ("grid = 1", "grid: 1; expected a table [grid]"),
        ("[variants.a]", "variants: a: no variants"),
        ("[variants.a.b]\nseed = 1", "variants.a.b: seed: the seeds are given with --seeds"),
        ("scale = 1", "scale: expected tables [scale.NAME]"),
    ],
)
def test_mistakes_in_a_file_are_named(text, message, file):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_grid(read_grid_file(file(text))).cells()


def test_an_unknown_scale_names_the_nearest(file):
    with pytest.raises(ConfigError, match="scale: 'tine' is not known; did you mean 'tiny'?"):
        read_grid_file(file(SCALED), "tine")


@pytest.mark.parametrize("scale", ["full", "cpu"])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_is_valid(path, scale):
    grid = make_grid(read_grid_file(path, scale))
    assert len(grid.seeds) == 3
    assert grid.reference == "cosmos"
    assert grid.cells()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_passes_the_check_on_digits(path):
    file = read_grid_file(path, "cpu")
    small = {"dataset.name": "digits", "dataset.public_samples": 20, "partition.samples_per_client": 5,
             "partition.test_samples_per_client": 5}  # fmt: skip
    sets = [f"{key}={value}" for key, value in small.items() if key not in file.axes]
    plan = make_plan(make_grid(file, seeds="0", assignments=sets))
    assert {cell.method for cell in plan.cells} >= {"cosmos", "local"}


# --- before anything is trained ---

MIXTURES = 'clients.models=[["mlp"],["mlp","logistic-regression"]]'
DIGITS = ["partition.clients=2"]


def test_with_all_what_cannot_run_is_left_out_and_said(picky):
    plan = make_plan(make_grid(seeds="0,1", axes=[MIXTURES], assignments=DIGITS))
    left_out = [entry for entry in plan.left_out if entry.method == "picky"]
    assert [(entry.labels, entry.seeds) for entry in left_out] == [(("mlp+logistic-regression",), (0, 1))]
    assert "shares weights" in left_out[0].reason
    assert [cell.name for cell in plan.cells if cell.method == "picky"] == [
        "picky_models=mlp_seed=0", "picky_models=mlp_seed=1"
    ]  # fmt: skip


def test_with_names_what_cannot_run_is_an_error(picky):
    grid = make_grid(methods="cosmos,picky", seeds="0,1", axes=[MIXTURES], assignments=DIGITS)
    with pytest.raises(GridError, match=r"2 of 12 cells cannot run: picky at models=mlp\+logistic-regression: method"):
        make_plan(grid)


def test_each_federation_is_built_once(monkeypatch):
    built = []
    build = plan_module.build_federation
    monkeypatch.setattr(plan_module, "build_federation", lambda config: built.append(config) or build(config))
    make_plan(make_grid(methods="cosmos,local", seeds="0,1", axes=["partition.alpha=1,5", "method.server_epochs=1,2"]))
    assert len(built) == 4


def test_data_that_cannot_be_split_are_an_error_before_training():
    with pytest.raises(GridError, match=r"would have no private samples.*\(as in cell local_clients=1000_seed=0\)"):
        make_plan(make_grid(methods="local", seeds="0", axes=["partition.clients=2,1000"]))


# --- running ---


def tiny(*, methods="local", seeds="0", axes=(), more=()):
    return make_plan(make_grid(methods=methods, seeds=seeds, axes=axes, assignments=[*TINY, *more]))


def run(plan, out, **options):
    open_comparison(plan, out)
    done = []
    run_cells(plan, out, workers=1, on_done=lambda name, error: done.append((name, error)), **options)
    return done


def test_finished_cells_are_not_run_again(tmp_path):
    assert run(tiny(), tmp_path / "out") == [("local_seed=0", None)]
    cell = tmp_path / "out" / "cells" / "local_seed=0"
    assert sorted(path.name for path in cell.iterdir()) == [
        "config.toml", "environment.json", "metrics.jsonl", "summary.json"
    ]  # fmt: skip
    assert run(tiny(seeds="0,1"), tmp_path / "out") == [("local_seed=1", None)]
    assert [c.state for c in Comparison.read(tmp_path / "out").cells] == ["finished", "finished"]


def test_an_unfinished_cell_is_run_anew(tmp_path):
    run(tiny(), tmp_path)
    cell = tmp_path / "cells" / "local_seed=0"
    before = (cell / "metrics.jsonl").read_text()
    (cell / "summary.json").unlink()
    assert cell_state(cell) == "begun"
    run(tiny(), tmp_path)
    assert (cell / "metrics.jsonl").read_text() == before


def test_models_are_kept_if_asked_for(tmp_path):
    run(tiny(), tmp_path, save_models=True)
    cell = tmp_path / "cells" / "local_seed=0"
    assert len(list((cell / "models").glob("*.safetensors"))) == 2
    assert (cell / "report.html").is_file()


def test_a_finished_cell_of_another_configuration_is_an_error(tmp_path):
    run(tiny(seeds="0,1"), tmp_path)
    before = (tmp_path / "comparison.json").read_text()
    change = r"2 finished cells have another configuration \(local_seed=0: method.local_epochs was 1 and is 2 now\)"
    with pytest.raises(GridError, match=change):
        open_comparison(tiny(seeds="0,1", more=["method.local_epochs=2"]), tmp_path)
    assert (tmp_path / "comparison.json").read_text() == before
    moved = make_plan(make_grid(methods="local", seeds="0", assignments=TINY, data_dir=tmp_path))
    open_comparison(moved, tmp_path)  # where the data lie decides nothing


def test_a_failing_cell_stops_no_other(tmp_path, broken):
    plan = tiny(methods="broken", seeds="0,1")
    done = run(plan, tmp_path)
    assert [name for name, error in done if error] == ["broken_seed=0", "broken_seed=1"]
    assert read_error(tmp_path / "cells" / "broken_seed=0") == "training loss is nan"
    assert "Traceback" in json.loads((tmp_path / "cells" / "broken_seed=0" / "error.json").read_text())["traceback"]
    assert [name for name, _ in run(plan, tmp_path)] == ["broken_seed=0", "broken_seed=1"]  # again, unlike the others


def test_a_cell_that_succeeds_the_second_time_has_no_error_any_more(tmp_path, broken, monkeypatch):
    plan = tiny(methods="broken")
    run(plan, tmp_path)
    monkeypatch.setattr(Broken, "server_side", Local.server_side)
    assert run(plan, tmp_path) == [("broken_seed=0", None)]
    assert cell_state(tmp_path / "cells" / "broken_seed=0") == "finished"
    assert not (tmp_path / "cells" / "broken_seed=0" / "error.json").exists()


def test_a_worker_that_dies_costs_its_cell_only(tmp_path, monkeypatch):
    class DyingPool(runner.Pool):
        def imap(self, function, items, names):
            for item, name in zip(items, names, strict=True):
                if name == "local_seed=1":
                    raise WorkerDiedError(f"{name}: its worker process died")
                yield function(item)

    monkeypatch.setattr(runner, "Pool", DyingPool)
    done = run(tiny(seeds="0,1,2"), tmp_path)
    assert [(name, error is None) for name, error in done] == [
        ("local_seed=0", True), ("local_seed=1", False), ("local_seed=2", True)
    ]  # fmt: skip
    assert "its worker process died" in read_error(tmp_path / "cells" / "local_seed=1")


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not empty and holds no comparison.json"):
        open_comparison(tiny(), tmp_path)
    with pytest.raises(RunDirectoryError, match="is a file; expected a directory"):
        open_comparison(tiny(), tmp_path / "mine")


def test_two_commands_do_not_write_into_the_same_cells(tmp_path):
    plan = tiny()
    open_comparison(plan, tmp_path)
    with runner._locked(tmp_path), pytest.raises(RunDirectoryError, match="another cosmosfl compare is at work there"):
        run_cells(plan, tmp_path, workers=1)


# --- the command ---


def compare(*arguments):
    return cosmosfl("compare", *arguments, *(part for key in TINY for part in ("--set", key)), "--workers", 1)


def test_compare_says_what_it_does_and_where_things_lie(tmp_path):
    options = ["--methods", "cosmos", "--seeds", "0,1", "--set", "method.server_epochs=1", "--out", tmp_path / "out"]
    result = compare(*options)
    assert result.exit_code == 0, result.output
    for expected in ("4 cells: cosmos, local, seeds 0, 1", "4/4 local_seed=1", "top-1 accuracy", "cosmos minus it",
                     "compare.html", "tables.md"):  # fmt: skip
        assert expected in result.output
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"comparison.json", "compare.html", "results.csv", "results.parquet", "cells.csv", "summary.csv",
                     "comparisons.csv", "tables.md", "tables.tex", "cells"}  # fmt: skip
    again = compare(*options, "--quiet")
    assert again.output == f"{tmp_path / 'out'}\n"


def test_failed_cells_are_listed_and_the_status_is_1(tmp_path, broken):
    result = compare("--methods", "broken", "--seeds", "0", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "failed broken_seed=0: training loss is nan" in result.stderr
    assert "training loss is nan" in (tmp_path / "out" / "compare.html").read_text()


def test_what_is_not_applicable_is_printed_and_recorded(tmp_path, picky):
    mixture = ["--grid", 'clients.models=[["mlp","logistic-regression"]]']
    sets = (part for key in TINY if "models" not in key for part in ("--set", key))
    options = ["--seeds", "0", "--methods", "all", *mixture, *sets, "--out", tmp_path / "out"]
    result = cosmosfl("compare", *options, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "picky at models=mlp+logistic-regression: not applicable: method 'picky' shares weights" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "cosmoss"], "error: methods: 'cosmoss' is not known; did you mean 'cosmos'?"),
        (["--scale", "cpu"], "error: --scale: 'cpu'; without a grid file there is nothing to scale"),
        (["nowhere.toml"], "error: nowhere.toml: No such file or directory"),
        (["--grid", "nowhere.toml"], "error: nowhere.toml: No such file or directory"),
        (["one.toml", "--grid", "two.toml"], "error: grid files: one.toml, two.toml; expected one"),
        (["--grid", "x=1"], "error: x: no such key; expected one of"),
        (["--workers", "some"], "error: workers: 'some'; expected a number of at least 1, or 'auto'"),
    ],
)
def test_mistakes_are_one_line_with_exit_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cosmosfl("compare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_what_is_finished(tmp_path):
    out = tmp_path / "out"
    sets = [part for key in TINY for part in ("--set", key)]
    command = [sys.executable, "-m", "cosmosfl", "compare", "--methods", "local", "--seeds", "0,1,2,3", "--workers",
               "1", *sets, "--set", "method.local_epochs=60", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    deadline = time.monotonic() + 60
    while not (out / "cells" / "local_seed=1" / "config.toml").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; " in errors
    assert f"the same command with --out {out} goes on" in errors
    assert "Traceback" not in errors
    comparison = Comparison.read(out)
    assert 1 <= len(comparison.finished) < 4
    assert (out / "compare.html").is_file()
