"""Who gets which samples: the split of a data set into a public set and the clients' private and test sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import IntArray


@dataclass(frozen=True, eq=False)
class Partition:
    """Indices of each client's private samples and test samples, and the true group of each client (or None)."""

    train: tuple[IntArray, ...]
    test: tuple[IntArray, ...]
    groups: tuple[int, ...] | None


def take_public(labels: IntArray, fraction: float, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Set aside `fraction` of every class as the public set.

    Returns
    -------
    public, rest
        Indices into `labels`, shuffled. The caller takes only the inputs of the public ones.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"public fraction: {fraction!r}; expected a number between 0 and 1")
    public = []
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        public.append(members[: round(fraction * len(members))])
    chosen = rng.permutation(np.concatenate(public))
    return chosen, rng.permutation(np.setdiff1d(np.arange(len(labels)), chosen))


def grouped_dirichlet(
    train_labels: IntArray,
    test_labels: IntArray,
    *,
    n_clients: int,
    n_groups: int,
    alpha: float,
    mixing: float,
    rng: np.random.Generator,
    samples_per_client: int | None = None,
) -> Partition:
    """Split in the paper's way: label groups, Dirichlet proportions within a group, pooled mixing.

    Classes are sorted and cut into `n_groups` disjoint groups of as equal size as can be; clients belong to the groups
    in turn. Each class is divided among its group's clients with proportions drawn from Dirichlet(`alpha`), the test
    set with the *same* proportions. Then the fraction `mixing` of every client's samples is pooled and dealt out
    again, in training and test alike.

    Parameters
    ----------
    train_labels, test_labels
        Labels (n,) of what is to be divided.
    alpha
        Large: clients of a group are alike; small: each holds few of the group's classes.
    mixing
        Fraction of every client's samples that is redistributed, in [0, 1].
    samples_per_client
        Keep at most this many private samples of each client, at random; None for all.

    Returns
    -------
    Partition
        Every index is in at most one client's set.

    Raises
    ------
    ValueError
        If an argument is out of range, or a client would stay without private or test samples; the message names it.
    """
    classes = np.unique(train_labels)
    if n_clients < 1:
        raise ValueError(f"clients: {n_clients}; expected at least 1")
    if not 1 <= n_groups <= min(n_clients, len(classes)):
        raise ValueError(
            f"groups: {n_groups}; expected 1 to {min(n_clients, len(classes))}, since every group needs a "
            "client and a class"
        )
    if not alpha > 0:
        raise ValueError(f"alpha: {alpha!r}; expected a number above 0")
    if not 0 <= mixing <= 1:
        raise ValueError(f"mixing: {mixing!r}; expected a fraction in [0, 1]")
    groups = tuple(i % n_groups for i in range(n_clients))
    shares = np.zeros((n_clients, len(classes)))
    for g, members in enumerate(np.array_split(np.arange(len(classes)), n_groups)):
        owners = np.flatnonzero(np.array(groups) == g)
        shares[np.ix_(owners, members)] = rng.dirichlet(np.full(len(owners), alpha), size=len(members)).T
    train = _mix(divide(train_labels, classes, shares, rng), mixing, rng)
    test = _mix(divide(test_labels, classes, shares, rng), mixing, rng)
    for name, parts in (("private", train), ("test", test)):
        for i, part in enumerate(parts):
            if len(part) == 0:
                raise ValueError(
                    f"client {i} would have no {name} samples (alpha {alpha:g}, {n_clients} clients, "
                    f"{len(train_labels)} samples); raise alpha or mixing, or take fewer clients"
                )
    if samples_per_client is not None:
        if samples_per_client < 1:
            raise ValueError(f"samples_per_client: {samples_per_client}; expected at least 1")
        train = [part[:samples_per_client] for part in train]
    return Partition(tuple(train), tuple(test), groups)


def divide(
    labels: IntArray, classes: IntArray, shares: npt.NDArray[np.float64], rng: np.random.Generator
) -> list[IntArray]:
    """Divide each class among the clients in proportion to `shares` (clients, classes); each part is shuffled."""
    parts: list[list[IntArray]] = [[] for _ in shares]
    for c, share in zip(classes, shares.T, strict=True):
        members = rng.permutation(np.flatnonzero(labels == c))
        cuts = np.rint(share.cumsum()[:-1] * len(members)).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _mix(parts: list[IntArray], mixing: float, rng: np.random.Generator) -> list[IntArray]:
    """Pool the fraction `mixing` of every part and deal the pool out again; no part changes its size."""
    given = [round(mixing * len(part)) for part in parts]
    pool = rng.permutation(np.concatenate([part[:n] for part, n in zip(parts, given, strict=True)]))
    dealt = np.split(pool, np.cumsum(given)[:-1])
    return [rng.permutation(np.concatenate([part[n:], new])) for part, n, new in zip(parts, given, dealt, strict=True)]
