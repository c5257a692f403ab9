"""Means over seeds and paired tests: against scipy, against tables, and where nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cosmosfl.evaluation.statistics import OverSeeds, holm, over_seeds, paired_t_test, signed_rank_test

# Student's own data: hours of sleep that two drugs gave the same ten patients (as R's `sleep`)
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=12)
pairs = st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=2, max_size=12)


# --- over seeds ---


def test_the_deviation_is_that_of_a_sample():
    summary = over_seeds([1.0, 2.0, 6.0])
    assert summary == OverSeeds(3, 3.0, pytest.approx(math.sqrt(7)))


def test_one_seed_has_no_deviation_rather_than_none_at_all():
    assert over_seeds([4.0]) == OverSeeds(1, 4.0, None)
    assert over_seeds([]) is None


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="values: NaN or infinity; expected finite numbers"):
        over_seeds([1.0, float("nan")])


# --- Student ---


def test_students_sleep_data():
    result = paired_t_test(DRUG_1, DRUG_2)
    assert result.n == 10
    assert result.difference == pytest.approx(-1.58)
    assert result.t == pytest.approx(-4.0621, abs=1e-4)
    assert result.p == pytest.approx(0.002833, abs=1e-6)
    assert (result.low, result.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)


@given(pairs)
def test_the_t_test_is_that_of_scipy(values):
    a, b = map(list, zip(*values, strict=True))
    result = paired_t_test(a, b)
    if len({x - y for x, y in values}) == 1:
        assert result.t is result.p is None
        return
    expected = stats.ttest_rel(a, b)
    assert (result.t, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_one_pair_has_a_difference_and_nothing_else():
    result = paired_t_test([3.0], [1.0])
    assert (result.n, result.difference) == (1, 2.0)
    assert result.low is result.high is result.t is result.p is None


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_differences_that_do_not_vary_have_no_p_value(shift):
    result = paired_t_test([0.3 + shift, 0.2 + shift, 0.1 + shift], [0.3, 0.2, 0.1])
    assert result.difference == pytest.approx(shift)
    assert result.t is result.p is None


# --- Wilcoxon ---


def test_the_signed_rank_test_of_the_sleep_data():
    result = signed_rank_test(DRUG_1, DRUG_2)
    assert result.n == 9  # one patient slept as long with either drug
    assert result.w == 0
    assert result.p == result.smallest == 2 / 2**9


@given(st.permutations(range(1, 9)), st.lists(st.booleans(), min_size=8, max_size=8))
def test_without_ties_the_signed_rank_test_is_that_of_scipy(ranks, signs):
    d = [rank if sign else -rank for rank, sign in zip(ranks, signs, strict=True)]
    expected = stats.wilcoxon(d, method="exact")
    result = signed_rank_test(d, [0] * 8)
    assert (result.w, result.p) == (expected.statistic, pytest.approx(expected.pvalue))


def test_with_ties_all_signs_are_counted():
    d = np.array([1, 1, 2, 2, 2, 5, 7])
    ranks = stats.rankdata(d)
    signs = (np.arange(2**7)[:, None] >> np.arange(7)) & 1
    sums = signs @ ranks
    for mask in (0b1111111, 0b1111101, 0b1011010):
        own = d * (1 - 2 * ((~mask >> np.arange(7)) & 1))
        w = min(ranks[own > 0].sum(), ranks[own < 0].sum())
        expected = ((sums <= w) | (sums >= sums.max() - w)).mean()
        assert signed_rank_test(own.tolist(), [0] * 7).p == pytest.approx(min(1.0, expected))


@pytest.mark.parametrize(("n", "smallest"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625)])
def test_too_few_pairs_give_no_p_value_but_the_smallest_there_could_be(n, smallest):
    result = signed_rank_test([float(i + 1) for i in range(n)], [0.0] * n)
    assert result.p is None
    assert result.smallest == smallest


def test_all_differences_zero():
    result = signed_rank_test([1.0, 2.0, 0.3], [1.0, 2.0, 0.1 + 0.2])
    assert (result.n, result.w, result.p, result.smallest) == (0, 0.0, None, 1.0)


@given(pairs)
def test_the_signed_rank_test_does_not_depend_on_the_order_of_the_methods(values):
    a, b = map(list, zip(*values, strict=True))
    assert signed_rank_test(a, b) == signed_rank_test(b, a)


# --- Holm ---


def test_holm_of_a_textbook():
    # as R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") and statsmodels' multipletests give it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(probabilities)
def test_holm_keeps_the_order_and_lies_between_the_p_value_and_bonferroni(p):
    adjusted = holm(p)
    for before, after in zip(p, adjusted, strict=True):
        assert before <= after <= min(1.0, len(p) * before) + 1e-12
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    for x, y in zip(p, adjusted, strict=True):  # ties stay ties
        assert {z for q, z in zip(p, adjusted, strict=True) if q == x} == {y}


def test_holm_of_one_and_of_none():
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"p_values: 1.5; expected 0 to 1"):
        holm([0.1, 1.5])


@pytest.mark.parametrize("test", [paired_t_test, signed_rank_test])
def test_what_is_not_paired_is_refused(test):
    with pytest.raises(ValueError, match="a has 2 values and b has 1; expected pairs"):
        test([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="expected at least one pair"):
        test([], [])
