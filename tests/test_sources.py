from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmosfl.data import cache, hub, images, sources
from cosmosfl.data.sources import (
    SOURCES,
    Source,
    load_source,
    locate_source,
    source_from_arrays,
    source_from_datasets,
)

Image = pytest.importorskip("PIL.Image", reason="needs cosmosfl[data]")
pa = pytest.importorskip("pyarrow", reason="needs cosmosfl[data]")
pq = pytest.importorskip("pyarrow.parquet", reason="needs cosmosfl[data]")

NAMES = ["cat", "ant", "bee"]
GIVEN = {name: os.environ.get(name) for name in ("COSMOSFL_CACHE", "COSMOSFL_DATA")}


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    """A cache of the test's own, no data directory, and nobody asks the network."""
    monkeypatch.setenv("COSMOSFL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COSMOSFL_DATA", raising=False)

    def offline(location):
        raise hub.NotReachedError("there is no network in a test")

    monkeypatch.setattr(sources, "download", offline)


def made(n, *, colour=True, size=(5, 4), seed=0):
    """n images (n, channels, height, width) and labels in 0..2, each class there."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 3 if colour else 1, *size), dtype=np.uint8)
    return pixels, np.arange(n) % 3


def to_pil(pixels):
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def encode(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    to_pil(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(path, pixels, labels, *, columns=("image", "label"), names=NAMES, mode=None, encoded=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [encode(p) for p in pixels] if encoded is None else encoded
    image = pa.array(
        [{"bytes": e, "path": f"{i}.png"} for i, e in enumerate(encoded)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({columns[0]: image, columns[1]: labels})
    if names is not None:
        image_feature, label_feature = {"_type": "Image", "mode": mode}, {"_type": "ClassLabel", "names": names}
        features = dict(zip(columns, (image_feature, label_feature), strict=True))
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def write_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_set(root, train, test, *, prefix="", names=("train", "t10k"), suffix=""):
    for name, (pixels, labels) in zip(names, (train, test), strict=True):
        write_idx(root / f"{prefix}{name}-images-idx3-ubyte{suffix}", pixels[:, 0])
        write_idx(root / f"{prefix}{name}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))


def write_folders(root, pixels, labels, names=NAMES):
    for i, (p, label) in enumerate(zip(pixels, labels, strict=True)):
        path = root / names[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(p))


@pytest.fixture
def own(tmp_path):
    """A directory with a small set of parquet shards, the training split in two."""
    pixels, labels = made(7)
    write_parquet(tmp_path / "own" / "train-00000-of-00002.parquet", pixels[:4], labels[:4])
    write_parquet(tmp_path / "own" / "train-00001-of-00002.parquet", pixels[4:], labels[4:])
    write_parquet(tmp_path / "own" / "test-00000-of-00001.parquet", *made(4, seed=1))
    return tmp_path / "own"


@pytest.fixture
def tiny(monkeypatch):
    """Make a known data set small, so that it can be written in a test."""

    def shrink(name, *, n_train, n_test, n_classes, shape):
        entry = replace(
            SOURCES[name], n_train=n_train, n_test=n_test, n_classes=n_classes, shape=shape, class_names=None, system=()
        )
        monkeypatch.setitem(SOURCES, name, entry)

    return shrink


def check(source, train, test, names=tuple(NAMES)):
    assert source.train_inputs.dtype == source.test_inputs.dtype == np.uint8
    np.testing.assert_array_equal(source.train_inputs, train[0])
    np.testing.assert_array_equal(source.train_labels, train[1])
    np.testing.assert_array_equal(source.test_inputs, test[0])
    np.testing.assert_array_equal(source.test_labels, test[1])
    assert source.train_labels.dtype == source.test_labels.dtype == np.int64
    assert source.class_names == names


def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr("cosmosfl.data.splits.pixels", fail)


# What is known by name


def test_digits_stay_what_they_are():
    source = load_source("digits")
    assert source.train_inputs.shape == (1077, 1, 8, 8)
    assert source.test_inputs.shape == (720, 1, 8, 8)
    assert source.class_names == tuple("0123456789")
    arrays = source.train_inputs, source.train_labels, source.test_inputs, source.test_labels
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    assert digest.startswith("b75978e995f15b95")


def test_digits_need_no_optional_library():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('datasets', 'pyarrow', 'PIL', 'flwr_datasets')))\n"
        "from cosmosfl.data.sources import load_source\n"
        "load_source('digits')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_says_what_it_is():
    names = "digits fashion-mnist emnist-balanced emnist47 cifar10 cifar100 svhn tinyimagenet"
    assert set(SOURCES) == set(names.split())
    for entry in SOURCES.values():
        assert f"{entry.n_train:,} train" in entry.summary
        assert f"{entry.n_test:,} test" in entry.summary
        assert "\n" not in entry.summary
        assert entry.class_names is None or len(entry.class_names) == entry.n_classes
        assert entry.builtin or entry.obtain


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"'cifar1000' is not known; did you mean 'cifar100'\?"):
        load_source("cifar1000")


@pytest.mark.parametrize("name", [name for name, entry in SOURCES.items() if entry.builtin is None])
def test_a_missing_data_set_says_what_was_looked_for_and_how_to_get_it(name, tmp_path, tiny):
    tiny(name, n_train=1, n_test=1, n_classes=1, shape=(1, 1, 1))  # without the places of the system
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError) as raised:
        load_source(name, tmp_path / "data")
    message = str(raised.value)
    assert f"dataset '{name}' was not found" in message
    assert str(tmp_path / "data" / name) in message
    assert "To get it: " in message
    assert "{" not in message
    if SOURCES[name].hub:
        assert f"{SOURCES[name].hub.id}: there is no network in a test" in message
    with pytest.raises(FileNotFoundError, match="COSMOSFL_DATA"):
        load_source(name)


def test_without_the_library_the_hub_is_named_with_what_to_install(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("COSMOSFL_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileNotFoundError, match=r"datasets is not installed; pip install 'cosmosfl\[data\]'"):
        load_source("cifar10")


def test_parquet_without_pyarrow_says_what_to_install(own, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pyarrow is not installed; pip install 'cosmosfl\[data\]'"):
        load_source(own)


def test_a_data_directory_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"data directory: .*nowhere is not a directory"):
        load_source("cifar10", tmp_path / "nowhere")
    monkeypatch.setenv("COSMOSFL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"COSMOSFL_DATA: .*nowhere is not a directory"):
        load_source("cifar10")


def test_a_known_data_set_from_the_data_directory(tmp_path, tiny, monkeypatch):
    tiny("cifar100", n_train=6, n_test=4, n_classes=3, shape=(3, 5, 4))
    train, test = made(6), made(4, seed=1)
    columns_of_the_hub = ("img", "fine_label")
    write_parquet(tmp_path / "cifar100" / "train-0.parquet", *train, columns=columns_of_the_hub)
    write_parquet(tmp_path / "cifar100" / "test-0.parquet", *test)
    check(load_source("cifar100", tmp_path), train, test)
    monkeypatch.setenv("COSMOSFL_DATA", str(tmp_path))
    check(load_source("cifar100"), train, test)
    assert locate_source("cifar100") == str(tmp_path / "cifar100")
    assert locate_source("cifar10") is None
    assert locate_source("digits") == "built in"


def test_a_known_name_refuses_other_data(tmp_path, tiny, monkeypatch):
    tiny("cifar10", n_train=5, n_test=4, n_classes=3, shape=(3, 5, 4))
    write_parquet(tmp_path / "cifar10" / "train-0.parquet", *made(6))
    write_parquet(tmp_path / "cifar10" / "test-0.parquet", *made(4, seed=1))
    with pytest.raises(ValueError, match="number of training samples 6; expected 5 in 'cifar10'"):
        load_source("cifar10", tmp_path)
    assert len(load_source(tmp_path / "cifar10").train_labels) == 6


def test_a_config_of_a_cloned_hub_repository(tmp_path, tiny):
    tiny("svhn", n_train=6, n_test=4, n_classes=3, shape=(3, 5, 4))
    train, test = made(6), made(4, seed=1)
    for config in ("cropped_digits", "full_numbers"):
        write_parquet(tmp_path / "svhn" / config / "train-0.parquet", *train)
        write_parquet(tmp_path / "svhn" / config / "test-0.parquet", *test)
    write_parquet(tmp_path / "svhn" / "cropped_digits" / "extra-0.parquet", *made(9))
    check(load_source("svhn", tmp_path), train, test)
    with pytest.raises(ValueError, match=r"several directories \(cropped_digits, full_numbers\)"):
        load_source(tmp_path / "svhn")


def test_emnist_is_turned_upright(tmp_path, tiny):
    tiny("emnist-balanced", n_train=6, n_test=4, n_classes=3, shape=(1, 4, 5))
    train, test = made(6, colour=False), made(4, colour=False, seed=1)
    for prefix in ("emnist-balanced-", "emnist-letters-"):
        root = tmp_path / "emnist-balanced" / "gzip"
        write_idx_set(root, train, test, prefix=prefix, names=("train", "test"), suffix=".gz")
    upright = [(pixels.swapaxes(2, 3), labels) for pixels, labels in (train, test)]
    check(load_source("emnist-balanced", tmp_path), *upright, ("0", "1", "2"))


def test_a_known_data_set_from_a_place_of_the_system(tmp_path, tiny, monkeypatch):
    tiny("fashion-mnist", n_train=6, n_test=4, n_classes=3, shape=(1, 5, 4))
    entry = replace(SOURCES["fashion-mnist"], system=(str(tmp_path / "system"),), class_names=("a", "b", "c"))
    monkeypatch.setitem(SOURCES, "fashion-mnist", entry)
    train, test = made(6, colour=False), made(4, colour=False, seed=1)
    write_idx_set(tmp_path / "system", train, test, suffix=".gz")
    check(load_source("fashion-mnist"), train, test, ("a", "b", "c"))
    assert locate_source("fashion-mnist") == str(tmp_path / "system")


# A data set of one's own


def test_parquet_shards(own):
    source = load_source(own)
    assert source.name == "own"
    check(source, made(7), made(4, seed=1))


def test_a_directory_in_the_data_directory_by_its_name(own):
    check(load_source("own", own.parent), made(7), made(4, seed=1))


def test_parquet_in_directories_with_validation_for_test(tmp_path):
    write_parquet(tmp_path / "train" / "0000.parquet", *made(6))
    write_parquet(tmp_path / "validation" / "0000.parquet", *made(4, seed=1))
    check(load_source(tmp_path), made(6), made(4, seed=1))


def test_parquet_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs cosmosfl[data]")
    train, test = made(6, colour=False), made(4, colour=False, seed=1)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for name, (pixels, labels) in (("train", train), ("test", test)):
        table = {"image": [to_pil(p) for p in pixels], "label": labels}
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / f"{name}.parquet"))
    check(load_source(tmp_path), train, test)


def test_grey_stays_grey_and_webp_that_is_meant_to_be_grey_too(tmp_path):
    train, test = made(6, colour=False), made(4, colour=False, seed=1)
    webp = [[encode(p, "WEBP", lossless=True) for p in pixels] for pixels, _ in (train, test)]
    write_parquet(tmp_path / "train.parquet", *train, mode="L", encoded=webp[0])
    write_parquet(tmp_path / "test.parquet", *test, mode="L", encoded=webp[1])
    check(load_source(tmp_path), train, test)


def test_grey_among_colour_becomes_colour(tmp_path):
    pixels, labels = made(6)
    pixels[2] = pixels[2, :1]
    encoded = [encode(p[:1] if i == 2 else p) for i, p in enumerate(pixels)]
    write_parquet(tmp_path / "train.parquet", pixels, labels, encoded=encoded)
    write_parquet(tmp_path / "test.parquet", *made(4, seed=1))
    check(load_source(tmp_path), (pixels, labels), made(4, seed=1))


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_palettes_and_transparency_are_resolved(tmp_path, mode):
    colours = np.zeros((3, 3, 5, 4), np.uint8)
    colours[0, 0], colours[1, 1], colours[2] = 255, 128, 7
    for split in ("train", "test"):
        for i, p in enumerate(colours):
            path = tmp_path / split / NAMES[i] / "0.png"
            path.parent.mkdir(parents=True)
            image = to_pil(p).convert(mode, palette=Image.Palette.ADAPTIVE)
            image.save(path, **({"transparency": bytes([0, 255])} if mode == "P" else {}))
    source = load_source(tmp_path)
    assert source.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(source.train_inputs, colours[[1, 2, 0]])


def test_words_as_labels_are_sorted(tmp_path):
    train, test = made(6), made(4, seed=1)
    write_parquet(tmp_path / "train.parquet", train[0], [NAMES[i] for i in train[1]], names=None)
    write_parquet(tmp_path / "test.parquet", test[0], [NAMES[i] for i in test[1]], names=None)
    new = np.array([2, 0, 1])  # cat, ant, bee -> ant, bee, cat
    check(load_source(tmp_path), (train[0], new[train[1]]), (test[0], new[test[1]]), ("ant", "bee", "cat"))


def test_whole_numbers_without_names_are_their_own(tmp_path):
    write_parquet(tmp_path / "train.parquet", *made(6), names=None)
    write_parquet(tmp_path / "test.parquet", *made(4, seed=1), names=None)
    check(load_source(tmp_path), made(6), made(4, seed=1), ("0", "1", "2"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    train, test = made(600, colour=False), made(4, colour=False, seed=1)
    write_idx_set(tmp_path, train, test, suffix=suffix)
    check(load_source(tmp_path), train, test, ("0", "1", "2"))


def test_idx_packed_and_unpacked(tmp_path):
    train, test = made(6, colour=False), made(4, colour=False, seed=1)
    write_idx_set(tmp_path, train, test)
    write_idx_set(tmp_path, made(3, colour=False), made(3, colour=False), suffix=".gz")
    check(load_source(tmp_path), train, test, ("0", "1", "2"))


def test_image_folders(tmp_path):
    train, test = made(7), made(4, seed=1)
    write_folders(tmp_path / "train", *train)
    write_folders(tmp_path / "test", *test)
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    source = load_source(tmp_path)
    assert source.class_names == ("ant", "bee", "cat")
    order = np.concatenate([np.flatnonzero(train[1] == c) for c in (1, 2, 0)])
    np.testing.assert_array_equal(source.train_inputs, train[0][order])
    np.testing.assert_array_equal(source.train_labels, [0, 0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(source.test_labels, [0, 1, 2, 2])


def test_image_folders_with_numbers_are_sorted_by_value(tmp_path):
    pixels, _ = made(12)
    for split in ("train", "test"):
        write_folders(tmp_path / split, pixels, range(12), [str(i) for i in range(12)])
    source = load_source(tmp_path)
    assert source.class_names == tuple(str(i) for i in range(12))
    np.testing.assert_array_equal(source.train_inputs, pixels[source.train_labels])


def test_tinyimagenet_as_it_is_published(tmp_path, tiny):
    tiny("tinyimagenet", n_train=6, n_test=4, n_classes=3, shape=(3, 5, 4))
    train, test = made(6), made(4, seed=1)
    root = tmp_path / "tinyimagenet"
    for i, (p, label) in enumerate(zip(*train, strict=True)):
        path = root / "train" / NAMES[label] / "images" / f"{NAMES[label]}_{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(p))  # the content decides, not the name
    lines = []
    for i, (p, label) in enumerate(zip(*test, strict=True)):
        for split in ("val", "test"):
            path = root / split / "images" / f"{split}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(p))
        lines.append(f"val_{i}.JPEG\t{NAMES[label]}\t0\t0\t3\t3\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    source = load_source("tinyimagenet", tmp_path)
    assert source.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(source.test_inputs, test[0])
    np.testing.assert_array_equal(source.test_labels, np.array([2, 0, 1])[test[1]])


def test_links_are_followed_and_circles_end(tmp_path):
    write_folders(tmp_path / "elsewhere", *made(6))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train").symlink_to(tmp_path / "elsewhere")
    write_folders(tmp_path / "own" / "test", *made(3))
    (tmp_path / "own" / "circle").symlink_to(tmp_path / "own")
    assert len(load_source(tmp_path / "own").train_labels) == 6


# Damage


def test_paths_that_are_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no directory .*nothing"):
        load_source(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; expected a directory"):
        load_source(tmp_path / "file")


def test_an_empty_directory(tmp_path):
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(ValueError, match="cifar10: no data set among its 0 files; expected parquet"):
        load_source("cifar10", tmp_path)


def test_a_missing_split(own):
    (own / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"own: parquet shards without a test or valid split \(there: train\)"):
        load_source(own)


@pytest.mark.parametrize("content", [b"", b"PAR1 and nonsense", None])
def test_a_damaged_shard_is_named(own, content):
    shard = own / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: not a readable parquet file"):
        load_source(own)
    assert not list(Path(os.environ["COSMOSFL_CACHE"]).glob("*"))


@pytest.mark.parametrize("encoded", [b"", b"not an image", encode(made(1)[0][0])[:-30], None])
def test_a_damaged_image_is_named(own, encoded):
    pixels, labels = made(4, seed=1)
    write_parquet(
        own / "test-00000-of-00001.parquet", pixels, labels, encoded=[*(encode(p) for p in pixels[:3]), encoded]
    )
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet, row 3 \(3\.png\): "):
        load_source(own)
    assert not list(Path(os.environ["COSMOSFL_CACHE"]).glob("*"))  # nothing half-done stays


def test_images_of_several_sizes(tmp_path):
    write_folders(tmp_path / "train", *made(6))
    write_folders(tmp_path / "test", *made(6, seed=1))
    (tmp_path / "train" / "cat" / "000.png").write_bytes(encode(made(1, size=(9, 8))[0][0]))
    with pytest.raises(ValueError, match=r"cat/000\.png: 8×9 pixels; expected 4×5"):
        load_source(tmp_path)
    shutil.rmtree(tmp_path / "train")
    write_folders(tmp_path / "train", *made(6, size=(9, 8)))
    with pytest.raises(ValueError, match=r"test/ant/001\.png: 4×5 pixels; expected 8×9"):
        load_source(tmp_path)


def test_images_of_16_bits(tmp_path):
    write_folders(tmp_path / "train", *made(6))
    write_folders(tmp_path / "test", *made(6))
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "test" / "cat" / "000.png")
    with pytest.raises(ValueError, match=r"cat/000\.png: an image of mode 'I;16'; expected 8-bit"):
        load_source(tmp_path)


def test_an_image_outside_a_class(tmp_path):
    write_folders(tmp_path / "train", *made(6))
    write_folders(tmp_path / "test", *made(6))
    (tmp_path / "train" / "stray.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"stray\.png: not in the directory of a class; expected train/"):
        load_source(tmp_path)


def test_a_class_only_in_the_test_split(tmp_path):
    write_folders(tmp_path / "train", *made(6), ["a", "b", "c"])
    write_folders(tmp_path / "test", *made(6), ["a", "b", "new"])
    with pytest.raises(ValueError, match=r"test split: label 'new' is not among the 3 classes \(a, b, c\)"):
        load_source(tmp_path)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0, 1, 2, 3], r"label 3; expected 0\.\.2"),
        ([0, 1, -1, 2], r"label -1; expected 0\.\.2"),
        ([0, 1, 2, None], "1 rows without a label"),
        ([0.0, 1.0, 2.0, 0.5], "labels of type float64"),
    ],
)
def test_wrong_labels_in_parquet(own, labels, complaint):
    write_parquet(own / "test-00000-of-00001.parquet", made(4)[0], labels)
    with pytest.raises(ValueError, match=rf"test-00000-of-00001\.parquet: {complaint}"):
        load_source(own)


def test_class_names_that_differ_between_shards(own):
    write_parquet(own / "test-00000-of-00001.parquet", *made(4), names=["cat", "bee", "ant"])
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet: its class names differ from"):
        load_source(own)


def test_columns_that_are_not_there(own):
    write_parquet(own / "train-00000-of-00002.parquet", *made(4), columns=("picture", "label"))
    with pytest.raises(ValueError, match="columns picture, label; expected 'image' or 'img' for the images"):
        load_source(own)


def break_idx(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-10])
    elif how == "long":
        packed = path.suffix == ".gz"
        path.write_bytes(gzip.compress(gzip.decompress(content) + b"x") if packed else content + b"x")
    else:
        path.write_bytes(b"" if how == "empty" else b"nonsense" * 9)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("how", ["cut", "long", "empty", "nonsense"])
def test_a_damaged_idx_file_is_named(tmp_path, suffix, how):
    write_idx_set(tmp_path, made(6, colour=False), made(4, colour=False), suffix=suffix)
    break_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", how)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte"):
        load_source(tmp_path)


def test_idx_files_that_disagree_or_are_missing(tmp_path):
    write_idx_set(tmp_path, made(6, colour=False), made(4, colour=False))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: 4 images; expected 3 as in t10k-labels-"):
        load_source(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="labels of the test split: none; expected one"):
        load_source(tmp_path)


# The cache


def test_the_second_time_nothing_is_decoded(own, monkeypatch):
    first = load_source(own)
    assert isinstance(first.train_inputs, np.memmap)
    assert not first.train_inputs.flags.writeable
    forbid_decoding(monkeypatch)
    check(load_source(own), made(7), made(4, seed=1))
    monkeypatch.chdir(own.parent)
    check(load_source("own"), made(7), made(4, seed=1))  # the same place by another path


def test_a_changed_file_is_read_again_and_the_old_entry_goes(own):
    load_source(own)
    write_parquet(own / "test-00000-of-00001.parquet", *made(5, seed=2))
    check(load_source(own), made(7), made(5, seed=2))
    os.utime(own / "test-00000-of-00001.parquet", ns=(1, 1))
    load_source(own)
    assert len(list(Path(os.environ["COSMOSFL_CACHE"]).iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_damaged_entry_is_made_anew(own, damage):
    load_source(own)
    (entry,) = Path(os.environ["COSMOSFL_CACHE"]).iterdir()
    path = entry / "train_inputs.npy"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7] if damage == "cut" else b"")
    check(load_source(own), made(7), made(4, seed=1))
    assert list(Path(os.environ["COSMOSFL_CACHE"]).iterdir()) == [entry]


def test_what_a_killed_process_left_is_not_read_and_goes_after_a_day(own):
    directory = Path(os.environ["COSMOSFL_CACHE"])
    fresh, old = (directory / f".unfinished-{name}" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.mkdir(parents=True)
        (path / "train_inputs.npy").write_bytes(b"half")
    os.utime(old, (0, 0))
    check(load_source(own), made(7), made(4, seed=1))
    assert fresh.exists()
    assert not old.exists()


def test_processes_that_race_get_the_same(own):
    results: list[Source] = []
    barrier = threading.Barrier(4)

    def load():
        barrier.wait()
        results.append(load_source(own))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for source in results:
        check(source, made(7), made(4, seed=1))
    assert len(list(Path(os.environ["COSMOSFL_CACHE"]).iterdir())) == 1


def test_a_cache_that_cannot_be_written(own, tmp_path, monkeypatch):
    (tmp_path / "in the way").write_text("")
    monkeypatch.setenv("COSMOSFL_CACHE", str(tmp_path / "in the way" / "cache"))
    with pytest.warns(UserWarning, match=r"the cache cannot be written .* inputs of 'own' are kept in memory"):
        source = load_source(own)
    check(source, made(7), made(4, seed=1))
    assert not source.train_inputs.flags.writeable


def test_a_full_disk(own, monkeypatch):
    def full(file, header):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        check(load_source(own), made(7), made(4, seed=1))
    assert not list(Path(os.environ["COSMOSFL_CACHE"]).iterdir())


def test_where_the_cache_is(monkeypatch):
    monkeypatch.delenv("COSMOSFL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_directory() == Path("/somewhere/cosmosfl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_directory() == Path.home() / ".cache" / "cosmosfl"


# In memory


@pytest.mark.parametrize("colour", [True, False])
def test_arrays_in_any_order_of_axes(colour):
    (pixels, labels), test = made(6, colour=colour), made(4, colour=colour, seed=1)
    forms = [pixels, pixels.transpose(0, 2, 3, 1), [to_pil(p) for p in pixels]]
    forms += [pixels / 255, pixels.astype(np.int32), pixels.astype(np.float64)]
    if not colour:
        forms.append(pixels[:, 0])
    for form in forms:
        check(source_from_arrays("mine", form, labels, *test, class_names=NAMES), (pixels, labels), test)


def test_words_in_arrays():
    train, test = made(6), made(4, seed=1)
    words = np.array(NAMES, dtype=object)
    source = source_from_arrays("mine", train[0], words[train[1]], test[0], [NAMES[i] for i in test[1]])
    assert source.class_names == ("ant", "bee", "cat")
    assert source.train_labels.tolist() == [2, 0, 1, 2, 0, 1]
    source = source_from_arrays("mine", train[0], words[train[1]], test[0], words[test[1]], NAMES)
    check(source, train, test)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train_inputs": np.zeros((6, 20))}, r"train_inputs: shape \(6, 20\); expected"),
        ({"train_inputs": np.zeros((6, 2, 5, 4))}, r"train_inputs: shape \(6, 2, 5, 4\)"),
        ({"train_inputs": np.full((6, 5, 4), 256)}, r"train_inputs: values from 256 to 256; expected 0\.\.255"),
        ({"train_inputs": np.full((6, 5, 4), np.nan)}, "train_inputs: values from nan"),
        ({"train_inputs": np.full((6, 5, 4), 1.5)}, r"train_inputs: fractions up to 1\.5"),
        ({"train_inputs": np.array([["a"]])}, "train_inputs: dtype <U1"),
        ({"test_inputs": np.zeros((4, 3, 9, 9))}, "mine: training inputs of shape"),
        ({"test_inputs": np.zeros((0, 3, 5, 4)), "test_labels": []}, "test_labels: no samples"),
        ({"train_labels": [0, 1]}, r"train_labels: shape \(2,\); expected \(6,\)"),
        ({"train_labels": [0, 1, 2, 0, 1, 9]}, r"train_labels: label 9; expected 0\.\.2"),
        ({"test_labels": ["cat"] * 4}, "test_labels: labels of type <U3; expected int64 as in train_labels"),
    ],
)
def test_wrong_arrays(change, complaint):
    names = ("train_inputs", "train_labels", "test_inputs", "test_labels")
    arguments = dict(zip(names, (*made(6), *made(4)), strict=True))
    with pytest.raises(ValueError, match=complaint):
        source_from_arrays("mine", **{**arguments, **change}, class_names=NAMES)


def test_a_picture_is_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    picture = np.full((1, 8, 16), 200, np.uint8)
    opened = images.open_image(encode(picture, "JPEG", exif=exif.tobytes()), "picture")
    assert images.pixels(opened, 1, "picture").shape == (1, 16, 8)


# Objects of Hugging Face


@pytest.fixture
def hugging():
    datasets = pytest.importorskip("datasets", reason="needs cosmosfl[data]")

    def make(pixels, labels, columns=("image", "label"), names=NAMES):
        features = {columns[0]: datasets.Image(), columns[1]: datasets.ClassLabel(names=names)}
        table = {columns[0]: [{"bytes": encode(p), "path": None} for p in pixels], columns[1]: labels}
        return datasets.Dataset.from_dict(table, features=datasets.Features(features))

    make.library = datasets
    return make


def test_datasets_in_memory(hugging):
    train, test = made(7), made(4, seed=1)
    both = [hugging(*split, ("img", "fine")) for split in (train, test)]
    source = source_from_datasets(*both, name="mine")
    assert source.name == "mine"
    check(source, train, test)
    assert not Path(os.environ["COSMOSFL_CACHE"]).exists()


def test_datasets_on_disk_are_cached(hugging, tmp_path, monkeypatch):
    train, test = made(7), made(4, seed=1)
    on_disk = []
    for name, split in (("train", train), ("test", test)):
        hugging(*split).save_to_disk(str(tmp_path / name))
        on_disk.append(hugging.library.load_from_disk(str(tmp_path / name)))
    check(source_from_datasets(*on_disk), train, test)
    other = on_disk[0].select([3, 1, 5])
    check(source_from_datasets(other, on_disk[1]), (train[0][[3, 1, 5]], train[1][[3, 1, 5]]), test)
    forbid_decoding(monkeypatch)
    check(source_from_datasets(other, on_disk[1]), (train[0][[3, 1, 5]], train[1][[3, 1, 5]]), test)


def test_datasets_with_images_in_files(hugging, tmp_path):
    train = made(6)
    write_folders(tmp_path, *train)
    paths = [str(tmp_path / NAMES[label] / f"{i:03}.png") for i, label in enumerate(train[1])]
    dataset = hugging.library.Dataset.from_dict({"image": paths, "label": train[1]})
    dataset = dataset.cast_column("image", hugging.library.Image())
    check(source_from_datasets(dataset, dataset), train, train, ("0", "1", "2"))


def test_datasets_of_arrays(hugging):
    train = made(6)
    dataset = hugging.library.Dataset.from_dict({"image": train[0], "label": [NAMES[i] for i in train[1]]})
    source = source_from_datasets(dataset, dataset)
    np.testing.assert_array_equal(source.train_inputs, train[0])
    assert source.class_names == ("ant", "bee", "cat")


def test_datasets_that_do_not_fit(hugging):
    dataset = hugging(*made(6))
    with pytest.raises(TypeError, match=r"test_dataset: DatasetDict; expected a datasets\.Dataset"):
        source_from_datasets(dataset, hugging.library.DatasetDict({"test": dataset}))
    with pytest.raises(ValueError, match="train_dataset: columns image, label; expected 'fine'"):
        source_from_datasets(dataset, dataset, label_column="fine")
    two = dataset.add_column("coarse", dataset["label"][:]).cast_column("coarse", dataset.features["label"])
    two = two.rename_column("label", "fine")
    with pytest.raises(ValueError, match="label_column: cannot be told from the columns image, fine, coarse"):
        source_from_datasets(two, two)
    with pytest.raises(ValueError, match="class names of the training and the test split differ"):
        source_from_datasets(dataset, hugging(*made(6), names=["a", "b", "c"]))


def test_from_the_hub_once(hugging, tiny, monkeypatch):
    tiny("cifar100", n_train=6, n_test=4, n_classes=3, shape=(3, 5, 4))
    train, test = made(6), made(4, seed=1)
    asked = []

    def download(location):
        asked.append(location.id)
        return hugging(*train, ("img", "fine_label")), hugging(*test, ("img", "fine_label"))

    monkeypatch.setattr(sources, "download", download)
    assert locate_source("cifar100") is None
    check(load_source("cifar100"), train, test)
    check(load_source("cifar100"), train, test)
    assert asked == ["uoft-cs/cifar100"]
    assert locate_source("cifar100") == "cache, from uoft-cs/cifar100"


def test_the_hub_is_asked_for_the_right_splits(hugging, monkeypatch):
    splits = {"train": "a training split", "valid": "a validation split"}
    monkeypatch.setattr(hugging.library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hugging.library, "load_dataset", lambda name, config: splits if config is None else {})
    assert hub.download(hub.HubLocation("somebody/some", test="valid")) == tuple(splits.values())
    with pytest.raises(hub.NotReachedError, match="KeyError"):
        hub.download(hub.HubLocation("somebody/some", "config"))


# Real data, in the cache of whoever runs the tests, so that it is decoded the first time only


@pytest.fixture
def real(monkeypatch):
    if GIVEN["COSMOSFL_CACHE"] is None:
        monkeypatch.delenv("COSMOSFL_CACHE")
    else:
        monkeypatch.setenv("COSMOSFL_CACHE", GIVEN["COSMOSFL_CACHE"])

    def load(name):
        root = GIVEN["COSMOSFL_DATA"]
        if not root:
            pytest.skip("COSMOSFL_DATA is not set")
        if not (Path(root) / name).is_dir():
            pytest.skip(f"COSMOSFL_DATA has no directory {name}")
        return load_source(name, root)

    return load


@pytest.mark.parametrize("name", ["cifar100", "emnist47"])
def test_real_data(name, real):
    source, entry = real(name), SOURCES[name]
    assert source.train_inputs.shape == (entry.n_train, *entry.shape)
    assert source.test_inputs.shape == (entry.n_test, *entry.shape)
    assert len(source.class_names) == entry.n_classes
    assert np.unique(source.train_labels).tolist() == list(range(entry.n_classes))
    assert 20 < source.train_inputs[:1000].mean() < 200


def test_real_fashion_mnist():
    if locate_source("fashion-mnist") is None:
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    source = load_source("fashion-mnist")
    assert source.train_inputs.shape == (60_000, 1, 28, 28)
    assert np.bincount(source.test_labels).tolist() == [1000] * 10
    assert source.class_names[9] == "Ankle boot"
