from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from cosmosfl.data.partition import grouped_dirichlet

datasets = pytest.importorskip("datasets", reason="needs cosmosfl[data]")
flower = pytest.importorskip("flwr_datasets.partitioner", reason="needs cosmosfl[data]")

from cosmosfl.data.flower_partitioners import (  # noqa: E402 - only where the libraries are
    PARTITIONERS,
    GroupedDirichletPartitioner,
    partition_by_name,
    partition_with,
)


def labels_of(n_classes, per_class, seed=0):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(n_classes), per_class))


def dataset_of(labels):
    return datasets.Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})


def split(name, train, test, n_clients, seed=0, **options):
    return partition_by_name(name, train, test, n_clients=n_clients, rng=np.random.default_rng(seed), **options)


def counts(parts, labels):
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def check_disjoint(parts, n_samples):
    given = np.concatenate(parts)
    assert len(np.unique(given)) == len(given)
    assert given.min() >= 0
    assert given.max() < n_samples


# The paper's split as a partitioner of theirs


@pytest.fixture
def paper():
    partitioner = GroupedDirichletPartitioner(10, "label", num_groups=5, mixing=0.0, seed=3)
    partitioner.dataset = dataset_of(labels_of(47, 40))
    partitioner.test.dataset = dataset_of(labels_of(47, 40, seed=1))
    return partitioner


def test_47_classes_in_5_groups(paper):
    assert isinstance(paper, flower.Partitioner)
    assert paper.num_partitions == paper.test.num_partitions == 10
    assert paper.groups == (0, 1, 2, 3, 4) * 2
    classes = [set(paper.load_partition(i)["label"][:]) for i in range(10)]
    groups = [classes[g] | classes[g + 5] for g in range(5)]
    assert [len(group) for group in groups] == [10, 10, 9, 9, 9]
    assert set.union(*groups) == set(range(47))


def test_partitions_are_those_of_the_pure_function(paper):
    train, test = labels_of(47, 40), labels_of(47, 40, seed=1)
    rng = np.random.default_rng(3)
    wanted = grouped_dirichlet(train, test, n_clients=10, n_groups=5, alpha=5.0, mixing=0.0, rng=rng)
    for i in range(10):
        assert paper.load_partition(i)["row"][:] == wanted.train[i].tolist()
        assert paper.test.load_partition(i)["row"][:] == wanted.test[i].tolist()


def test_the_test_split_has_the_same_proportions(paper):
    for i in range(10):
        train, test = (np.bincount(p.load_partition(i)["label"][:], minlength=47) for p in (paper, paper.test))
        np.testing.assert_array_equal(train, test)  # as many samples of each class in both


def test_the_training_split_does_not_depend_on_the_test_split(paper):
    alone = GroupedDirichletPartitioner(10, "label", num_groups=5, mixing=0.0, seed=3)
    alone.dataset = dataset_of(labels_of(47, 40))
    assert alone.load_partition(4)["row"][:] == paper.load_partition(4)["row"][:]


def test_the_test_split_waits_for_the_training_split():
    partitioner = GroupedDirichletPartitioner(4, "label", num_groups=2)
    partitioner.test.dataset = dataset_of(labels_of(4, 10))
    with pytest.raises(AttributeError, match="load a partition of the training split first"):
        partitioner.test.load_partition(0)
    partitioner.dataset = dataset_of(labels_of(4, 10))
    assert len(partitioner.test.load_partition(0))


def test_words_as_labels():
    words = np.array(["ant", "bee", "cat", "dog"])[labels_of(4, 10)]
    partitioner = GroupedDirichletPartitioner(2, "label", num_groups=2, mixing=0.0)
    partitioner.dataset = dataset_of(words)
    assert set(partitioner.load_partition(1)["label"][:]) == {"cat", "dog"}


def test_in_a_federated_dataset(tmp_path, monkeypatch):
    telemetry = pytest.importorskip("flwr_datasets.common.telemetry")
    monkeypatch.setattr(telemetry, "FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = {}
    for name in ("train", "test"):
        files[name] = str(tmp_path / f"{name}.parquet")
        dataset_of(labels_of(6, 20)).to_parquet(files[name])
    partitioner = GroupedDirichletPartitioner(4, "label", num_groups=2, mixing=0.0)
    federated = sys.modules["flwr_datasets"].FederatedDataset(
        dataset="parquet", partitioners={"train": partitioner, "test": partitioner.test}, data_files=files
    )
    train, test = (federated.load_partition(1, name) for name in ("train", "test"))
    assert set(train["label"][:]) == set(test["label"][:]) == {3, 4, 5}
    rows = [row for i in range(4) for row in federated.load_partition(i, "train")["row"][:]]
    assert sorted(rows) == list(range(120))


def test_impossible_partitions_end_with_the_client(paper):
    with pytest.raises(ValueError, match=r"partition_id: 10; expected 0\.\.9"):
        paper.load_partition(10)
    with pytest.raises(ValueError, match=r"partition_id: -1; expected 0\.\.9"):
        paper.test.load_partition(-1)
    starved = GroupedDirichletPartitioner(20, "label", num_groups=2, alpha=0.001)
    starved.dataset = dataset_of(labels_of(4, 10))
    with pytest.raises(ValueError, match=r"client \d+ would have no private samples"):
        starved.load_partition(0)


# Their partitioners for a federation here


@pytest.mark.parametrize("name", PARTITIONERS)
def test_every_index_at_most_once_and_the_same_for_the_same_seed(name):
    train, test = labels_of(10, 60), labels_of(10, 30, seed=1)
    partition = split(name, train, test, 10)
    assert partition.groups is None
    assert len(partition.train) == len(partition.test) == 10
    check_disjoint(partition.train, 600)
    check_disjoint(partition.test, 300)
    again, other = (split(name, train, test, 10, seed=seed) for seed in (0, 1))
    for kind in ("train", "test"):
        same = zip(getattr(partition, kind), getattr(again, kind), strict=True)
        assert all(np.array_equal(a, b) for a, b in same)
    assert any(not np.array_equal(a, b) for a, b in zip(partition.train, other.train, strict=True))


@pytest.mark.parametrize("name", PARTITIONERS)
def test_the_test_set_follows_the_training_proportions(name):
    train, test = labels_of(10, 120), labels_of(10, 60, seed=1)
    partition = split(name, train, test, 10)
    of_train, of_test = counts(partition.train, train), counts(partition.test, test)
    assert of_train.sum() == 1200
    assert of_test.sum() == 600
    assert np.abs(of_test - of_train / 2).max() <= 1


def test_iid():
    train = labels_of(10, 100)
    partition = split("iid", np.sort(train), train, 4)
    assert [len(part) for part in partition.train] == [250] * 4
    assert (counts(partition.train, np.sort(train)) > 10).all()  # sorted labels come out mixed


def test_dirichlet_by_alpha():
    train = labels_of(10, 100)
    even, skewed = (counts(split("dirichlet", train, train, 5, alpha=a).train, train) for a in (1000, 0.2))
    assert even.std() < 3
    assert skewed.std() > 20


def test_pathological():
    train = labels_of(10, 100)
    held = counts(split("pathological", train, train, 10, classes_per_client=3).train, train) > 0
    assert held.sum(axis=1).tolist() == [3] * 10
    assert held.any(axis=0).all()
    held = counts(split("pathological", train, train, 10, assignment="deterministic").train, train) > 0
    assert np.flatnonzero(held[9]).tolist() == [0, 9]


def test_pathological_says_which_classes_reach_nobody():
    train = labels_of(4, 10)
    with pytest.warns(UserWarning, match="no client trains on class 2, 3; its samples are not used"):
        partition = split("pathological", train, train, 2, classes_per_client=1)
    assert set(train[np.concatenate(partition.test)]) == {0, 1}


def test_quantity_skew():
    train = labels_of(10, 55)
    sizes = [len(part) for part in split("quantity-skew", train, train, 10).train]
    np.testing.assert_allclose(sizes, np.arange(10, 101, 10), atol=3)
    assert sum(sizes) == 550
    sizes = [len(part) for part in split("quantity-skew", train, train, 4, growth="exponential").train]
    assert sizes == sorted(sizes)
    assert sizes[3] > 2 * sizes[2]
    partition = split("quantity-skew", train, train, 3, sizes=[5, 50, 100])
    assert [len(part) for part in partition.train] == [5, 50, 100]


def test_samples_per_client():
    train = labels_of(10, 100)
    whole, part = (split("quantity-skew", train, train, 4, samples_per_client=n) for n in (None, 150))
    assert [len(p) for p in part.train] == [100, 150, 150, 150]
    assert all(set(p) <= set(w) for p, w in zip(part.train, whole.train, strict=True))
    assert [len(p) for p in part.test] == [len(p) for p in whole.test]


@pytest.mark.parametrize(
    ("name", "n_clients", "options", "complaint"),
    [
        ("iid", 0, {}, r"clients: 0; expected 1 to 100"),
        ("iid", 101, {}, r"clients: 101; expected 1 to 100"),
        ("iid", 2, {"samples_per_client": 0}, "samples_per_client: 0; expected at least 1"),
        (
            "dirichlet",
            20,
            {"alpha": 0.001},
            r"split 'dirichlet' \(20 clients, 100 samples, alpha 0.001, min_samples 10\): .*; raise alpha, or lower",
        ),
        ("dirichlet", 5, {"min_samples": 1000}, "min_samples 1000"),
        ("dirichlet", 5, {"alpha": 0}, "alpha: 0; expected a number above 0"),
        ("dirichlet", 40, {"alpha": 0.01, "min_samples": 0}, r"client \d+ would have no private samples; raise"),
        ("pathological", 5, {"classes_per_client": 6}, "take fewer clients or fewer classes for each"),
        ("pathological", 5, {"classes_per_client": 0}, "classes_per_client: 0; expected at least 1"),
        ("pathological", 90, {"classes_per_client": 4}, "take fewer clients or fewer classes for each"),
        ("pathological", 5, {"assignment": "none"}, "none"),
        ("quantity-skew", 30, {"growth": "exponential"}, "take fewer clients, or another growth or other sizes"),
        ("quantity-skew", 3, {"growth": "linar"}, "growth: 'linar' is not known; did you mean 'linear'"),
        ("quantity-skew", 3, {"sizes": [1, 2]}, "sizes: 2 numbers; expected 3, one for each client"),
        ("quantity-skew", 2, {"sizes": [60, 60]}, "take fewer clients, or another growth or other sizes"),
        ("dirichlet", 5, {"alhpa": 1}, "split 'dirichlet': 'alhpa' is not known; did you mean 'alpha'"),
        ("iid", 5, {"alpha": 1}, "option of the split 'iid': 'alpha'; there are none"),
        ("patological", 5, {}, "split: 'patological' is not known; did you mean 'pathological'"),
    ],
)
def test_impossible_settings_end_quickly(name, n_clients, options, complaint):
    labels = labels_of(5, 20)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=complaint):
        split(name, labels, labels, n_clients, **options)
    assert time.perf_counter() - start < 5


def test_a_client_without_test_samples_is_named():
    with pytest.raises(ValueError, match=r"client \d would have no test samples; take fewer clients"):
        split("iid", labels_of(5, 20), labels_of(5, 1), 9)


def test_a_partitioner_of_ones_own():
    train, test = labels_of(4, 30), labels_of(4, 15)
    writers = np.arange(120) % 3
    natural = flower.NaturalIdPartitioner(partition_by="writer")
    partition = partition_with(natural, train, test, rng=np.random.default_rng(0), columns={"writer": writers})
    assert sorted(writers[part].tolist() for part in partition.train) == [[w] * 40 for w in range(3)]
    check_disjoint(partition.test, 60)


def test_a_partitioner_that_gives_a_sample_twice():
    class Everything(flower.IidPartitioner):
        def load_partition(self, partition_id):
            return self.dataset

    with pytest.raises(ValueError, match=r"gave out 20 samples more than once, such as 0"):
        partition_with(Everything(2), labels_of(2, 10), labels_of(2, 10), rng=np.random.default_rng(0))


def test_without_the_library_the_error_says_what_to_install():
    code = (
        "import sys\n"
        "sys.modules['flwr_datasets'] = None\n"
        "import cosmosfl.data.partition\n"
        "try:\n"
        "    import cosmosfl.data.flower_partitioners\n"
        "except ImportError as error:\n"
        "    assert \"pip install 'cosmosfl[data]'\" in str(error), error\n"
        "else:\n"
        "    raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
