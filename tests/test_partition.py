"""The paper's split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmosfl.data.partition import grouped_dirichlet, take_public

LABELS = np.repeat(np.arange(10), 60)
TEST = np.repeat(np.arange(10), 20)


def split(labels=LABELS, test=TEST, seed=0, **options):
    settings = {"n_clients": 10, "n_groups": 2, "alpha": 5.0, "mixing": 0.0} | options
    return grouped_dirichlet(labels, test, rng=np.random.default_rng(seed), **settings)


def test_the_public_set_takes_its_fraction_of_every_class():
    public, rest = take_public(LABELS, 0.2, np.random.default_rng(0))
    assert np.bincount(LABELS[public]).tolist() == [12] * 10
    assert sorted([*public, *rest]) == list(range(600))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_public_fraction_out_of_range_is_named(fraction):
    with pytest.raises(ValueError, match="public fraction: .*; expected a number between 0 and 1"):
        take_public(LABELS, fraction, np.random.default_rng(0))


@given(seed=st.integers(0, 10_000), mixing=st.floats(0, 1), n_groups=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_sample_goes_to_exactly_one_client(seed, mixing, n_groups):
    partition = split(seed=seed, mixing=mixing, n_groups=n_groups)
    assert sorted(np.concatenate(partition.train)) == list(range(600))
    assert sorted(np.concatenate(partition.test)) == list(range(200))


def test_without_mixing_a_client_holds_classes_of_its_group_only():
    partition = split()
    for part, group in zip(partition.train, partition.groups, strict=True):
        assert set(LABELS[part]) <= (set(range(5)) if group == 0 else set(range(5, 10)))


def test_mixing_moves_its_fraction_and_keeps_sizes():
    plain, mixed = split(), split(mixing=0.4)
    assert [len(p) for p in mixed.train] == [len(p) for p in plain.train]
    foreign = np.mean([np.mean((LABELS[p] >= 5) != (g == 1)) for p, g in zip(mixed.train, mixed.groups, strict=True)])
    assert foreign == pytest.approx(0.2, abs=0.05)  # half of what is dealt out again comes home


def test_test_proportions_are_those_of_training():
    partition = split(alpha=1.0)
    for train, test in zip(partition.train, partition.test, strict=True):
        ours = np.bincount(LABELS[train], minlength=10) / 60
        theirs = np.bincount(TEST[test], minlength=10) / 20
        np.testing.assert_allclose(ours, theirs, atol=0.051)


def test_classes_that_do_not_divide_evenly_are_all_dealt_out():
    labels = np.repeat(np.arange(47), 50)
    partition = split(labels, labels, n_clients=5, n_groups=5)
    assert [len(set(labels[part])) for part in partition.train] == [10, 10, 9, 9, 9]


def test_samples_per_client_is_an_upper_limit_for_training_only():
    partition = split(samples_per_client=7)
    assert {len(part) for part in partition.train} == {7}
    assert sum(map(len, partition.test)) == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clients": 0}, "clients: 0; expected at least 1"),
        ({"n_groups": 11}, "groups: 11; expected 1 to 10"),
        ({"n_groups": 3, "n_clients": 2}, "groups: 3; expected 1 to 2"),
        ({"alpha": 0}, "alpha: 0; expected a number above 0"),
        ({"mixing": 1.5}, "mixing: 1.5; expected a fraction"),
        ({"samples_per_client": 0}, "samples_per_client: 0; expected at least 1"),
        (
            {"n_clients": 2000},
            "client .* would have no private samples .* raise alpha or mixing, or take fewer clients",
        ),
    ],
)
def test_what_cannot_be_split_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        split(**options)
