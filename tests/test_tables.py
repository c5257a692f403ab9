"""Tables of numbers as data sets: what is read, what is refused, and a federation of them."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from cosmosfl.config import ExperimentConfig
from cosmosfl.data.sources import load_source
from cosmosfl.experiment import build_federation, run_experiment, standardisation


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


def blobs(directory, n=600, features=6, classes=6):
    """Write classes that are easy to tell apart, in units that differ by a factor of a thousand."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, features)) * 3
    units = np.logspace(-1, 2, features)
    for split, count in (("train", n), ("test", n // 3)):
        labels = np.arange(count) % classes
        rows = (centres[labels] + rng.normal(size=(count, features))) * units + 7
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


def test_a_table_is_named_by_its_split(tmp_path):
    write(tmp_path / "train.csv", "label,a\nx,1\n")
    with pytest.raises(ValueError, match="tables without a test or valid split"):
        load_source(tmp_path)
    small(tmp_path)
    write(tmp_path / "more" / "train.csv", "label,a\nx,1\n")
    with pytest.raises(ValueError, match=r"several train tables \(more/train.csv, train.csv\); expected one"):
        load_source(tmp_path)


def test_features_are_standardised_as_the_public_ones_are_and_images_stay(tmp_path):
    public = np.array([[0, 1000, 5], [2, 3000, 5]], np.float32)
    scaled = standardisation(public)
    np.testing.assert_allclose(scaled(public), [[-1, -1, 0], [1, 1, 0]])
    np.testing.assert_allclose(
        scaled(np.array([[3, 2000, 6]], np.float32)), [[2, 0, 0]]
    )  # what never varies is nothing
    images = np.zeros((2, 1, 4, 4), np.uint8)
    assert standardisation(images)(images) is images


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


def test_a_federation_of_tables_whatever_the_models_and_units(tmp_path):
    config = configured(blobs(tmp_path))
    federation = build_federation(config)
    inputs = federation.public.inputs
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-5)
    run = run_experiment(config, federation)
    assert run.accuracy().mean > 90


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clients": {"models": ["cnn-s"]}}, "clients.models: 'cnn-s', and .* holds tables: .*use 'mlp'"),
        ({"teacher": {"model": "cnn-s"}}, "teacher.model: 'cnn-s', and .* holds tables"),
        ({"clients": {"models": ["mlp"], "augment": "flip-crop"}}, "clients.augment: .*only images can be augmented"),
        ({"research_code": {"frozen_augmentation": True}}, "research_code.frozen_augmentation: .* only images"),
    ],
)
def test_what_is_for_images_is_refused_before_anything_begins(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        build_federation(configured(blobs(tmp_path), **changes))


def test_a_method_without_a_teacher_needs_none_for_tables(tmp_path):
    config = configured(blobs(tmp_path), teacher={"model": "cnn-s"}, method={"name": "fedmd"})
    assert len(build_federation(config).clients) == 4
