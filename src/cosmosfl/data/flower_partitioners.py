"""Splits as partitioners of Flower Datasets (`flwr_datasets`), which are the extra ``cosmosfl[data]``.

Both ways round: the paper's split is a partitioner that fits into their `FederatedDataset`, and their
partitioners, or anybody's, split a federation here. Those know nothing of a test set, so here it follows: of
every class a client gets the share of the test samples that it has of the training samples.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cosmosfl.data.partition import Partition, divide, grouped_dirichlet
from cosmosfl.data.sets import IntArray
from cosmosfl.naming import unknown
from cosmosfl.randomness import draw_seed

try:
    from datasets import Dataset
    from flwr_datasets import partitioner as flower
except ImportError as error:
    raise ImportError(f"{error.name} is not installed; pip install 'cosmosfl[data]'") from error

_INDEX = "index"
_LABEL = "label"


class GroupedDirichletPartitioner(flower.Partitioner):  # type: ignore[misc]
    """The paper's split, `cosmosfl.data.partition.grouped_dirichlet`, as a partitioner of Flower Datasets.

    The test split follows the proportions of the training split; `test` is the partitioner for it::

        partitioner = GroupedDirichletPartitioner(25, "label")
        both = {"train": partitioner, "test": partitioner.test}
        federated = FederatedDataset(dataset=..., partitioners=both)
        federated.load_partition(3, "train"), federated.load_partition(3, "test")

    or, with a `datasets.Dataset` at hand, ``partitioner.dataset = ...`` and ``partitioner.test.dataset = ...``.

    Parameters
    ----------
    num_partitions
        How many partitions.
    partition_by
        The column of the labels.
    num_groups
        Into how many groups the sorted classes are cut; partition i belongs to group ``i % num_groups``.
    alpha
        Concentration of the Dirichlet distribution by which the partitions of a group share a class.
    mixing
        Fraction of every partition that is pooled and dealt out again, in [0, 1].
    seed
        Of all random choices.
    samples_per_partition
        Keep at most this many training samples of each, at random; None for all.
    """

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        *,
        num_groups: int = 5,
        alpha: float = 5.0,
        mixing: float = 0.1,
        seed: int = 42,
        samples_per_partition: int | None = None,
    ) -> None:
        super().__init__()
        self.test = _TestPartitioner(self)
        self._num_partitions = num_partitions
        self._partition_by = partition_by
        self._num_groups = num_groups
        self._alpha = alpha
        self._mixing = mixing
        self._seed = seed
        self._samples_per_partition = samples_per_partition
        self._partition: Partition | None = None

    @property
    def num_partitions(self) -> int:
        """How many partitions."""
        return self._num_partitions

    @property
    def groups(self) -> tuple[int, ...]:
        """The group of each partition."""
        return tuple(i % self._num_groups for i in range(self._num_partitions))

    def load_partition(self, partition_id: int) -> Dataset:
        """Return one partition of the training split.

        Raises
        ------
        ValueError
            If there is no such partition, or one would stay empty; the message says which.
        """
        if self._partition is None:
            self._partition = self._split(self.dataset)
        return _select(self.dataset, self._partition.train, partition_id)

    def _split(self, test_dataset: Dataset) -> Partition:
        # The training part does not depend on the test split: what is drawn for the latter is drawn last.
        labels = (np.asarray(dataset[self._partition_by][:]) for dataset in (self.dataset, test_dataset))
        return grouped_dirichlet(
            *labels,
            n_clients=self._num_partitions,
            n_groups=self._num_groups,
            alpha=self._alpha,
            mixing=self._mixing,
            rng=np.random.default_rng(self._seed),
            samples_per_client=self._samples_per_partition,
        )


class _TestPartitioner(flower.Partitioner):  # type: ignore[misc]
    """The partitioner of the test split, in the proportions of the training split."""

    def __init__(self, training: GroupedDirichletPartitioner) -> None:
        super().__init__()
        self._training = training
        self._partition: Partition | None = None

    @property
    def num_partitions(self) -> int:
        """How many partitions."""
        return self._training.num_partitions

    def load_partition(self, partition_id: int) -> Dataset:
        """Return one partition of the test split.

        Raises
        ------
        AttributeError
            If the training split was not assigned yet, whose proportions this one follows.
        ValueError
            If there is no such partition, or one would stay empty; the message says which.
        """
        if self._partition is None:
            if not self._training.is_dataset_assigned():
                raise AttributeError(
                    "the test split follows the training split, which is not assigned yet; "
                    "load a partition of the training split first"
                )
            self._partition = self._training._split(self.dataset)
        return _select(self.dataset, self._partition.test, partition_id)


def _select(dataset: Dataset, parts: Sequence[IntArray], partition_id: int) -> Dataset:
    if not 0 <= partition_id < len(parts):
        raise ValueError(f"partition_id: {partition_id}; expected 0..{len(parts) - 1}")
    return dataset.select(parts[partition_id])


def partition_with(
    partitioner: Any,
    train_labels: IntArray,
    test_labels: IntArray,
    *,
    rng: np.random.Generator,
    columns: Mapping[str, npt.ArrayLike] | None = None,
) -> Partition:
    """Split by a partitioner of Flower Datasets.

    The partitioner gets a dataset with a column ``label`` and a column ``index``, in random order, since some
    partitioners cut it as it comes. The test samples of every class are divided in proportion to how many
    training samples of it each client got; a class that no client trains on is in nobody's test set, with a
    warning.

    Parameters
    ----------
    partitioner
        A `flwr_datasets.partitioner.Partitioner` that was not used yet.
    train_labels, test_labels
        Labels (n,) of what is to be divided.
    columns
        More columns for the partitioner, one value for each training sample, such as who wrote it.

    Returns
    -------
    Partition
        Without groups. Every index is in at most one client's set.

    Raises
    ------
    ValueError
        If a client would stay without private or test samples, or the partitioner gives out a sample twice.
    """
    order = rng.permutation(len(train_labels))
    table = {_INDEX: np.arange(len(train_labels)), _LABEL: np.asarray(train_labels)}
    for name, values in (columns or {}).items():
        table[name] = np.asarray(values)
    partitioner.dataset = Dataset.from_dict({name: values[order] for name, values in table.items()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="flwr_datasets")  # what matters comes as an error or from here
        parts = [partitioner.load_partition(i) for i in range(partitioner.num_partitions)]
    train = [np.asarray(part[_INDEX][:], np.int64) for part in parts]
    _check_disjoint(train)
    _check_filled("private", train)
    test = _follow(train, train_labels, test_labels, rng)
    _check_filled("test", test)
    return Partition(tuple(train), tuple(test), None)


def partition_by_name(
    name: str,
    train_labels: IntArray,
    test_labels: IntArray,
    *,
    n_clients: int,
    rng: np.random.Generator,
    samples_per_client: int | None = None,
    **options: Any,
) -> Partition:
    """Split by one of `PARTITIONERS`.

    Parameters
    ----------
    name
        A name in `PARTITIONERS`.
    train_labels, test_labels
        Labels (n,) of what is to be divided.
    samples_per_client
        Keep at most this many private samples of each client, at random; None for all.
    **options
        What the partitioner takes beyond the number of clients; see there.

    Returns
    -------
    Partition
        Without groups. Every index is in at most one client's set; the test set follows as in `partition_with`.

    Raises
    ------
    ValueError
        If a name, an option or a value is not possible, or a client would stay without samples.
    """
    if name not in PARTITIONERS:
        raise ValueError(unknown("split", name, PARTITIONERS))
    make = PARTITIONERS[name]
    known = _options_of(make)
    for option in options:
        if option not in known:
            kind = f"option of the split {name!r}"
            raise ValueError(unknown(kind, option, known) if known else f"{kind}: {option!r}; there are none")
    if not 1 <= n_clients <= len(train_labels):
        raise ValueError(f"clients: {n_clients}; expected 1 to {len(train_labels)}, the number of samples")
    if samples_per_client is not None and samples_per_client < 1:
        raise ValueError(f"samples_per_client: {samples_per_client}; expected at least 1")
    try:
        partitioner = make(n_clients, draw_seed(rng), **options)
        partition = partition_with(partitioner, train_labels, test_labels, rng=rng)
    except ValueError as error:
        settings = "".join(f", {option} {value}" for option, value in {**known, **options}.items())
        where = f"split {name!r} ({n_clients} clients, {len(train_labels):,} samples{settings})"
        raise ValueError(f"{where}: {error}; {_ADVICE[name]}") from error
    if samples_per_client is None:
        return partition
    train = tuple(rng.permutation(part)[:samples_per_client] for part in partition.train)
    return Partition(train, partition.test, None)


def iid(n_clients: int, seed: int) -> flower.Partitioner:
    """Equal parts at random (`IidPartitioner`)."""
    return flower.IidPartitioner(n_clients)


def dirichlet(n_clients: int, seed: int, *, alpha: float = 0.5, min_samples: int = 10) -> flower.Partitioner:
    """Each class in proportions from a Dirichlet distribution (`DirichletPartitioner`).

    Parameters
    ----------
    alpha
        Large: clients are alike; small: each holds few classes.
    min_samples
        A draw that gives a client fewer is repeated, 10 times at most.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: {alpha!r}; expected a number above 0")
    return flower.DirichletPartitioner(n_clients, _LABEL, alpha=float(alpha), min_partition_size=min_samples, seed=seed)


def pathological(
    n_clients: int,
    seed: int,
    *,
    classes_per_client: int = 2,
    assignment: Literal["random", "deterministic", "first-deterministic"] = "first-deterministic",
) -> flower.Partitioner:
    """Few classes for each client (`PathologicalPartitioner`); a class is cut evenly among those who hold it.

    Parameters
    ----------
    classes_per_client
        How many classes each client holds.
    assignment
        "first-deterministic": the first class of client i is i modulo their number, the others are random, so
        that with enough clients every class is held. "deterministic": the classes that follow i. "random": all
        random.
    """
    if classes_per_client < 1:
        raise ValueError(f"classes_per_client: {classes_per_client}; expected at least 1")
    return flower.PathologicalPartitioner(
        n_clients, _LABEL, classes_per_client, class_assignment_mode=assignment, seed=seed
    )


def quantity_skew(
    n_clients: int,
    seed: int,
    *,
    growth: Literal["linear", "square", "exponential"] = "linear",
    sizes: Sequence[int] | None = None,
) -> flower.Partitioner:
    """Parts at random of different sizes.

    Parameters
    ----------
    growth
        How the size grows from client to client: as i, i² or eⁱ for i from 1 (`LinearPartitioner`,
        `SquarePartitioner`, `ExponentialPartitioner`).
    sizes
        The size of each client's part instead (`SizePartitioner`); what is left over is not used.
    """
    if sizes is not None:
        if len(sizes) != n_clients:
            raise ValueError(f"sizes: {len(sizes)} numbers; expected {n_clients}, one for each client")
        return flower.SizePartitioner([int(size) for size in sizes])
    laws = {
        "linear": flower.LinearPartitioner,
        "square": flower.SquarePartitioner,
        "exponential": flower.ExponentialPartitioner,
    }
    if growth not in laws:
        raise ValueError(unknown("growth", growth, laws))
    return laws[growth](n_clients)


PARTITIONERS: dict[str, Callable[..., flower.Partitioner]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "pathological": pathological,
    "quantity-skew": quantity_skew,
}
"""Name -> function of the number of clients, a seed and options, which makes the partitioner."""


_ADVICE = {
    "iid": "take fewer clients",
    "dirichlet": "raise alpha, or lower min_samples or the number of clients",
    "pathological": "take fewer clients or fewer classes for each",
    "quantity-skew": "take fewer clients, or another growth or other sizes",
}


def _options_of(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a function in `PARTITIONERS` with their defaults."""
    return {p.name: p.default for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}


def _check_disjoint(parts: Sequence[IntArray]) -> None:
    given, counts = np.unique(np.concatenate(parts), return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"the partitioner gave out {(counts > 1).sum():,} samples more than once, such as "
            f"{given[counts > 1][0]}; expected disjoint partitions"
        )


def _check_filled(kind: str, parts: Sequence[IntArray]) -> None:
    for i, part in enumerate(parts):
        if len(part) == 0:
            raise ValueError(f"client {i} would have no {kind} samples")


def _follow(
    train: Sequence[IntArray], train_labels: IntArray, test_labels: IntArray, rng: np.random.Generator
) -> list[IntArray]:
    """Divide the test samples of every class in proportion to the training samples."""
    classes, numbers = np.unique(train_labels, return_inverse=True)
    counts = np.stack([np.bincount(numbers[part], minlength=len(classes)) for part in train])
    held = counts.sum(axis=0) > 0
    if not held.all():
        names = ", ".join(str(c) for c in classes[~held])
        warnings.warn(f"no client trains on class {names}; its samples are not used", stacklevel=3)
    return divide(test_labels, classes[held], counts[:, held] / counts[:, held].sum(axis=0), rng)
