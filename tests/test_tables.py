"""Tables of numbers as data sets: what is read, what is refused, and a federation of them."""

from __future__ import annotations

import csv
import gzip
import json
import warnings

import numpy as np
import pytest

import cosmosfl
from cosmosfl.comparison.grid import GridError
from cosmosfl.comparison.plan import make_plan
from cosmosfl.comparison.reading import make_grid
from cosmosfl.config import ExperimentConfig
from cosmosfl.data.sources import load_source
from cosmosfl.experiment import build_federation, check_models, run_experiment
from cosmosfl.tuning import plan_search


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("COSMOSFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COSMOSFL_DATA", raising=False)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def small(directory, train="label,a,b\nx,1,2\ny,3,4.5\nx,-5,6e1\n", test="label,a,b\ny,7,8\n"):
    write(directory / "train.csv", train)
    write(directory / "test.csv", test)
    return directory


def blobs(directory, n=600, features=6, classes=6, largest=3.0):
    """Write classes that are easy to tell apart, with features of different sizes."""
    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, features)) * 3
    units = np.geomspace(0.3, largest, features)
    for split, count in (("train", n), ("test", n // 3)):
        labels = np.arange(count) % classes
        rows = (centres[labels] + rng.normal(size=(count, features))) * units + 1
        with (directory / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(f"f{i}" for i in range(features)), "label"])
            writer.writerows([*row, f"class {label}"] for row, label in zip(rows.tolist(), labels, strict=True))
    return directory


def test_rows_labels_and_names(tmp_path):
    source = load_source(small(tmp_path))
    assert source.class_names == ("x", "y")
    assert source.train_inputs.dtype == np.float32
    np.testing.assert_array_equal(source.train_inputs, np.float32([[1, 2], [3, 4.5], [-5, 60]]))
    np.testing.assert_array_equal(source.train_labels, [0, 1, 0])
    np.testing.assert_array_equal(source.test_inputs, np.float32([[7, 8]]))
    np.testing.assert_array_equal(source.test_labels, [1])


def test_columns_are_found_by_their_names_and_labels_that_are_numbers_are_sorted_by_value(tmp_path):
    small(tmp_path, train="a,b,label\n1,2,10\n\n3,4,9\n", test="\ufeffb,label,a\n8,10,7\n")
    source = load_source(tmp_path)
    np.testing.assert_array_equal(source.test_inputs, np.float32([[7, 8]]))
    assert (source.class_names, source.train_labels.tolist(), source.test_labels.tolist()) == (("9", "10"), [1, 0], [1])


def test_a_packed_table_is_the_same(tmp_path):
    plain = load_source(small(tmp_path / "plain"))
    for name in ("train", "test"):
        packed = tmp_path / "packed" / f"{name}.csv.gz"
        packed.parent.mkdir(exist_ok=True)
        packed.write_bytes(gzip.compress((tmp_path / "plain" / f"{name}.csv").read_bytes()))
    packed = load_source(tmp_path / "packed")
    np.testing.assert_array_equal(packed.train_inputs, plain.train_inputs)


def test_many_rows_arrive_in_blocks(tmp_path):
    rows = "".join(f"{i % 2},{i}\n" for i in range(10_000))
    small(tmp_path, train="label,a\n" + rows, test="label,a\n0,1\n")
    np.testing.assert_array_equal(load_source(tmp_path).train_inputs[:, 0], np.arange(10_000, dtype=np.float32))


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("label,a\nx,1\n", "label,b\nx,1\n", r"test.csv: a table without 'a'; expected the columns of the training"),
        ("label,a\nx,1\n", "label,a,b\nx,1,2\n", r"test.csv: a table with 'b'; expected the columns"),
        ("kind,a\nx,1\n", "kind,a\nx,1\n", r"train.csv: columns 'kind', 'a'; expected one of labels, 'label'"),
        ("label\nx\n", "label\nx\n", "a column of labels and no other; expected features"),
        ("label,a\nx,1\nx,one\n", "label,a\nx,1\n", r"train.csv, line 3, column 'a': 'one'; expected a finite number"),
        ("label,a\nx,\n", "label,a\nx,1\n", r"line 2, column 'a': ''; expected a finite number"),
        ("label,a\nx,nan\n", "label,a\nx,1\n", r"column 'a': 'nan'; expected a finite number"),
        ("label,a\nx,1_000\n", "label,a\nx,1\n", r"column 'a': '1_000'; expected a finite number"),
        ("label,a\nx,1e300\n", "label,a\nx,1\n", r"column 'a': '1e300'; expected a finite number"),
        ("label,a\n,1\n", "label,a\nx,1\n", r"train.csv, line 2: no label; expected one in every row"),
        ("label,a\nx,1,2\n", "label,a\nx,1\n", r"train.csv, line 2: 3 cells; expected 2"),
        ("label,a,a\nx,1,2\n", "label,a\nx,1\n", r"expected a name for each column, no two alike"),
        ("", "label,a\nx,1\n", r"train.csv: the first line is empty"),
        ("label,a\n", "label,a\nx,1\n", r"train.csv: no samples; expected at least 1"),
        ("label,a\nx,1\n", "label,a\nz,1\n", r"label 'z' is not among the 1 classes \(x\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said(tmp_path, train, test, said):
    with pytest.raises(ValueError, match=said):
        load_source(small(tmp_path, train, test))


def test_whole_numbers_are_labels_however_they_are_written(tmp_path):
    source = load_source(small(tmp_path, train="label,a\n10.0,1\n2.0,2\n", test="label,a\n2,1\n"))
    assert (source.class_names, source.train_labels.tolist(), source.test_labels.tolist()) == (("2", "10"), [1, 0], [0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "label,a\nJosé,1\n".encode("latin-1")),
        ("train.csv", b'label,a\n"x,1\n' + b"x,1\n" * 100_000),
        ("train.csv.gz", b"label,a\nx,1\n"),
        ("train.csv.gz", gzip.compress(b"label,a\nx,1\n" * 1000)[:40]),
    ],
    ids=["encoding", "quote", "not packed", "cut off"],
)  # fmt: skip
def test_a_broken_table_is_named(tmp_path, name, content):
    write(tmp_path / "test.csv", "label,a\nx,1\n")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: not a readable (gzip-compressed )?table in UTF-8"):
        load_source(tmp_path)


def test_other_files_beside_the_tables_do_no_harm(tmp_path):
    small(tmp_path)
    (tmp_path / "plot.png").write_bytes(b"no image")
    (tmp_path / "other.parquet").write_bytes(b"no parquet")
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress((tmp_path / "train.csv").read_bytes()))
    assert load_source(tmp_path).train_inputs.shape == (3, 2)


def test_a_table_is_named_by_its_split(tmp_path):
    write(tmp_path / "train.csv", "label,a\nx,1\n")
    with pytest.raises(ValueError, match="tables without a test or valid split"):
        load_source(tmp_path)
    small(tmp_path)
    write(tmp_path / "more" / "train.csv", "label,a\nx,1\n")
    with pytest.raises(ValueError, match=r"several train tables \(more/train.csv, train.csv\); expected one"):
        load_source(tmp_path)


def configured(directory, **changes):
    base = {
        "rounds": 1,
        "dataset": {"name": str(directory), "public_samples": 100},
        "partition": {"clients": 4, "groups": 2, "samples_per_client": 60, "test_samples_per_client": 30},
        "clients": {"models": ["mlp", "random-forest"]},
        "teacher": {"model": "mlp"},
    }
    if "method" not in changes:
        base["method"] = {"local_epochs": 5, "server_epochs": 5}
    return ExperimentConfig.parse(changes, base)


def test_a_federation_of_tables_and_its_models_take_rows_as_they_are_in_the_files(tmp_path):
    config = configured(blobs(tmp_path), seed=1)
    run = run_experiment(config)
    assert run.accuracy().mean > 90
    run.save(tmp_path / "run")
    rows = {tuple(row) for row in load_source(tmp_path).test_inputs.tolist()}
    for client in build_federation(config).clients:
        assert {tuple(row) for row in client.test.inputs.tolist()} <= rows
        model = cosmosfl.load(tmp_path / "run", trusted=True).model(client.id)
        assert (model.predict_proba(client.test.inputs).argmax(axis=1) == client.test.labels).mean() > 0.85


REFUSED = [
    ({"clients": {"models": ["cnn-s"]}}, "clients.models: 'cnn-s', and .* holds tables: .*use 'mlp'"),
    ({"teacher": {"model": "cnn-s"}}, "teacher.model: 'cnn-s', and .* holds tables"),
    ({"clients": {"models": ["mlp"], "augment": "flip-crop"}}, "clients.augment: .*only images can be augmented"),
    ({"research_code": {"frozen_augmentation": True}}, "research_code.frozen_augmentation: .* only images"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_is_for_images_is_refused_before_anything_begins(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        run_experiment(configured(blobs(tmp_path), **changes))


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_and_by_a_comparison_and_a_search_too_whatever_method_is_the_first(tmp_path, changes, said):
    layer = {
        "dataset": {"name": str(blobs(tmp_path)), "public_samples": 100},
        "partition": {"clients": 4, "groups": 2, "samples_per_client": 60, "test_samples_per_client": 30},
        "clients": {"models": ["mlp"]},
        "teacher": {"model": "mlp"},
        **changes,
    }
    assignments = [f"{table}.{key}={json.dumps(value)}" for table, keys in layer.items() for key, value in keys.items()]
    with pytest.raises(GridError, match=said):
        make_plan(make_grid(methods="local,cosmos", seeds="0", assignments=assignments))
    with pytest.raises(ValueError, match=said):
        plan_search("local,cosmos", [layer])


def test_a_method_without_a_teacher_needs_none_for_tables(tmp_path):
    config = configured(blobs(tmp_path), teacher={"model": "cnn-s"}, method={"name": "fedmd"})
    check_models(config, build_federation(config))


def test_features_of_very_different_sizes_are_warned_of_where_torch_models_are(tmp_path):
    directory = blobs(tmp_path, largest=2000)
    config = configured(directory)
    with pytest.warns(UserWarning, match="standard deviations of the features of .* standardise the columns"):
        check_models(config, build_federation(config))
    forests = configured(directory, clients={"models": ["random-forest"]}, teacher={"model": "random-forest"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_models(forests, build_federation(forests))


def test_the_columns_of_another_public_table_are_found_by_their_names(tmp_path):
    private, public = blobs(tmp_path / "private"), blobs(tmp_path / "public")
    same = configured(private, dataset={"name": str(private), "public": str(public), "public_samples": 50})
    expected = build_federation(same).public.inputs
    for split in ("train", "test"):
        path = public / f"{split}.csv"
        rows = [line.split(",")[::-1] for line in path.read_text().splitlines()]
        path.write_text("".join(",".join(row) + "\n" for row in rows))
    np.testing.assert_array_equal(build_federation(same).public.inputs, expected)
    for split in ("train", "test"):
        path = public / f"{split}.csv"
        path.write_text(path.read_text().replace("f0", "g0"))
    with pytest.raises(ValueError, match="'f0', 'g0' are columns of one of .* only; expected the same columns"):
        build_federation(same)
