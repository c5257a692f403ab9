"""Means over seeds, and tests between two methods that are paired by seed. Pure functions.

A method is run once per seed, and a seed decides about everything random: the split among the clients too. Two methods
with the same seed have seen the same clients, so they are compared seed by seed: by d_s = a_s - b_s, where a_s and b_s
are each method's mean over clients. The number of independent observations is the number n of seeds, not of clients:
clients of one federation learn from each other.

With the two to five seeds that are usual, a test can say little, and these functions say so: without variation or with
n = 1 there is no p-value, and a `SignedRankTest` says which is the smallest that it could have given at all.

References
----------
Student, "The probable error of a mean", Biometrika 6, 1908.
F. Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1, 1945.
S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
J. Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DIGITS = 9
"""Decimal places of differences: 0.3 - 0.1 is not 0.2, yet the two are to be a tie."""
SIGNIFICANT = 0.05
"""The usual level. A signed-rank test that cannot fall below it is not made."""


@dataclass(frozen=True)
class OverSeeds:
    """A number over seeds.

    Attributes
    ----------
    n
        Seeds.
    mean
        Their mean.
    std
        Standard deviation of the sample, ``sqrt(Σ (x_s - mean)² / (n - 1))``; None for one seed, which tells nothing
        about it.
    """

    n: int
    mean: float
    std: float | None


def over_seeds(values: Sequence[float]) -> OverSeeds | None:
    """Summarise one number per seed; None if there are none.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    numbers = _finite(values, "values")
    if not len(numbers):
        return None
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return OverSeeds(len(numbers), float(numbers.mean()), std)


@dataclass(frozen=True)
class PairedTest:
    """Student's t-test of paired differences.

    Attributes
    ----------
    n
        Pairs.
    difference
        Their mean difference d̄.
    low, high
        Its confidence interval; None where n is 1.
    t, p
        ``t = d̄ / (s / sqrt(n))`` with n - 1 degrees of freedom, and the two-sided p-value; None where n is 1 or all
        differences are the same, so that nothing is known of their variation.
    """

    n: int
    difference: float
    low: float | None
    high: float | None
    t: float | None
    p: float | None


def paired_t_test(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedTest:
    """Compare two methods whose values, (n,) each, are paired by seed.

    The interval is ``d̄ ± t((1 + confidence) / 2, n - 1) · s / sqrt(n)``, where s is the standard deviation (ddof = 1)
    of the differences. It assumes that they are near enough to normal, which few differences cannot show.

    Raises
    ------
    ValueError
        If the lengths differ, there are no pairs, or a value is not finite.
    """
    from scipy.stats import t as student

    d = differences(a, b)
    n, mean = len(d), float(d.mean())
    if n == 1:
        return PairedTest(1, mean, None, None, None, None)
    if (d == d[0]).all():
        return PairedTest(n, mean, mean, mean, None, None)
    error = float(d.std(ddof=1)) / math.sqrt(n)
    half = float(student.ppf((1 + confidence) / 2, n - 1)) * error
    t = mean / error
    return PairedTest(n, mean, mean - half, mean + half, t, float(2 * student.sf(abs(t), n - 1)))


@dataclass(frozen=True)
class SignedRankTest:
    """Wilcoxon's signed-rank test, exact.

    Attributes
    ----------
    n
        Pairs that differ; those that are the same are left out, as Wilcoxon did.
    w
        The smaller of the sums of the ranks of positive and of negative differences.
    p
        Two-sided; None where `smallest` is above `SIGNIFICANT`, or no pair differs.
    smallest
        The least p-value that n differences can reach: ``2 / 2ⁿ``. With five it is 0.0625.
    """

    n: int
    w: float
    p: float | None
    smallest: float


def signed_rank_test(a: Sequence[float], b: Sequence[float]) -> SignedRankTest:
    """Compare two methods whose values, (n,) each, are paired by seed, without assuming a distribution.

    The absolute differences are ranked, ties get their mean rank, and W is the sum of the ranks of one sign. Without an
    effect each sign is as likely as the other, so ``p = P(W ≤ w) + P(W ≥ n (n + 1) / 2 - w)`` is counted over all 2ⁿ
    signs of these very ranks: it is exact with ties too.

    Raises
    ------
    ValueError
        If the lengths differ, there are no pairs, or a value is not finite.
    """
    from scipy.stats import rankdata

    d = differences(a, b)
    d = d[d != 0]
    n = len(d)
    smallest = min(1.0, 2.0 ** (1 - n))
    ranks = np.rint(2 * rankdata(np.abs(d))).astype(np.int64)  # twice, since mean ranks may end in a half
    total = int(ranks.sum())
    positive = int(ranks[d > 0].sum())
    w = min(positive, total - positive)
    if smallest > SIGNIFICANT:
        return SignedRankTest(n, w / 2, None, smallest)
    probability = np.zeros(total + 1)  # of each sum of ranks with a positive sign
    probability[0] = 1
    for rank in ranks:
        probability[rank:] = (probability[rank:] + probability[: total + 1 - rank]) / 2
        probability[:rank] /= 2
    return SignedRankTest(n, w / 2, min(1.0, 2 * float(probability[: w + 1].sum())), smallest)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values (m,) adjusted for m comparisons, in the order given.

    With ``p_(1) ≤ … ≤ p_(m)``, the adjusted ones are ``max over j ≤ i of min(1, (m - j + 1) · p_(j))``. To reject where
    they are below α keeps the probability of any false rejection below α, however the tests depend on each other.

    Raises
    ------
    ValueError
        If a value is not between 0 and 1.
    """
    p = _finite(p_values, "p_values")
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p_values: {next(float(x) for x in p if x < 0 or x > 1)}; expected 0 to 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order]))
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return [float(value) for value in adjusted]


def differences(a: Sequence[float], b: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return a - b (n,), rounded so that what is the same is 0.

    Raises
    ------
    ValueError
        If the lengths differ, there are no pairs, or a value is not finite.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values and b has {len(second)}; expected pairs")
    if not len(first):
        raise ValueError("a: no values; expected at least one pair")
    result: npt.NDArray[np.float64] = np.round(first - second, DIGITS)
    return result


def _finite(values: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"{name}: shape {numbers.shape}; expected one axis")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name}: NaN or infinity; expected finite numbers")
    return numbers
