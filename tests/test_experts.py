"""Whom to believe about a public sample: density ratios from nearest neighbours, and the mixture of experts."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.experts import LARGEST, MOST, evidence, log_density_ratio, mixture_of_experts, normalised

RNG = np.random.default_rng(0)


def normal(n: int, centre: float, dim: int = 5) -> np.ndarray:
    return np.random.default_rng([n, abs(int(centre * 10))]).normal(centre, 1, (n, dim)).astype(np.float32)


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_a_cluster_is_not_the_surer_the_more_members_it_has():
    said = np.float32([[1, 0, -2], [0, 2, -1]])
    np.testing.assert_allclose(evidence(said), [1.5, 3, -4.5])
    np.testing.assert_allclose(evidence(np.tile(said, (20, 1))), evidence(said), rtol=1e-5)


# --- log density ratios -----------------------------------------------------------------------------------------------


def test_the_ratio_of_two_normal_mixtures_is_estimated_in_order_and_in_size():
    """Catches distances taken for densities, a forgotten balance of the classes, a sample that is its own neighbour."""
    public = np.concatenate([normal(300, 0), normal(300, 1.5)])
    estimated = log_density_ratio(normal(60, 0), public)
    near, far = (-np.square(public - centre).sum(axis=1) / 2 for centre in (0, 1.5))
    true = near - np.logaddexp(near, far) + np.log(2)
    assert np.corrcoef(np.exp(estimated), np.exp(true))[0, 1] > 0.5
    for known in (slice(0, 300), slice(300, 600)):
        assert np.sign(np.median(estimated[known])) == np.sign(np.median(true[known]))


def test_where_private_and_public_data_are_alike_the_ratio_says_nothing():
    estimated = log_density_ratio(normal(100, 0), np.random.default_rng(5).normal(0, 1, (400, 5)))
    assert np.abs(estimated).mean() < 0.3


def test_features_may_have_any_units_and_images_any_type():
    private, public = normal(50, 0), np.concatenate([normal(100, 0), normal(100, 1.5)])
    units = np.float32([1, 1000, 1e-3, 5, 1])
    np.testing.assert_allclose(
        log_density_ratio(private * units, public * units), log_density_ratio(private, public), rtol=1e-2, atol=1e-2
    )
    images = RNG.integers(0, 255, (30, 1, 4, 4)).astype(np.uint8)
    assert log_density_ratio(images[:10], images).shape == (30,)


@pytest.mark.parametrize(
    ("private", "public"),
    [
        (np.zeros((1, 3)), normal(5, 0, 3)),
        (normal(5, 0, 3), np.zeros((1, 3))),
        (np.ones((4, 3)), np.ones((6, 3))),
        (np.zeros((4, 1, 2, 2), np.uint8), np.zeros((6, 1, 2, 2), np.uint8)),
    ],
)
def test_without_evidence_the_log_ratios_are_zero(private, public):
    np.testing.assert_array_equal(log_density_ratio(private, public), np.zeros(len(public)))


def test_private_samples_that_are_public_ones_too_give_finite_ratios():
    public = normal(20, 0)
    estimated = log_density_ratio(public[:10], public)
    assert np.isfinite(estimated).all()
    assert np.abs(estimated).max() <= LARGEST
    assert estimated.dtype == np.float32


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_who_has_little_claims_little(n):
    """Catches weights that make as much of three private samples as of all public ones."""
    public = np.random.default_rng(5).normal(0, 1, (400, 5))
    claims = [np.abs(log_density_ratio(normal(n, 0.1 * seed), public)).max() for seed in range(5)]
    assert np.mean(claims) < 4


def test_samples_that_are_there_several_times_change_little():
    private, public = normal(30, 0), np.concatenate([normal(100, 0), normal(100, 1.5)])
    once, often = log_density_ratio(private, public), log_density_ratio(np.concatenate([private] * 5), public)
    assert np.corrcoef(once, often)[0, 1] > 0.9


def test_ratios_are_normalised_so_that_a_claim_to_know_everything_says_nothing():
    np.testing.assert_allclose(normalised(np.full(7, 9.0)), 0, atol=1e-6)
    ratios = normalised(RNG.normal(0, 3, 50))
    assert np.exp(ratios.astype(np.float64)).mean() == pytest.approx(1, rel=1e-5)
    estimated = log_density_ratio(normal(60, 0), np.concatenate([normal(300, 0), normal(300, 1.5)]))
    assert np.exp(estimated.astype(np.float64)).mean() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("m", [150, 1000])
def test_a_few_samples_with_a_twin_among_the_private_ones_do_not_silence_the_others(m):
    """Catches ratios without an upper bound: one sample in a thousand had all the mass, and the others almost none."""
    said = np.random.default_rng(m).normal(0, 1, m)
    few = said.copy()
    few[: m // 120] = LARGEST
    np.testing.assert_allclose(normalised(few)[m // 120 :] - normalised(said)[m // 120 :], 0, atol=3)
    for claims in (said, few):
        ratios = np.exp(normalised(claims))
        assert ratios.mean() == pytest.approx(1, abs=1e-3)
        assert ratios.max() <= MOST * (1 + 1e-5)
        np.testing.assert_allclose(normalised(normalised(claims)), normalised(claims), atol=1e-5)
    assert np.exp(normalised(few)).max() == pytest.approx(MOST, rel=1e-3)


def test_private_samples_that_are_public_too_do_not_hide_whose_the_others_are():
    """The same, from the data: twins of public samples in the private set, which tables with few values have."""
    public = np.concatenate([normal(300, 0), normal(300, 1.5)])
    private = np.concatenate([normal(600, 0), np.repeat(public[590:592], 4, axis=0)])
    estimated = log_density_ratio(private, public)
    assert estimated.max() == pytest.approx(np.log(MOST), abs=1e-3)
    assert np.median(estimated[:300]) > 0 > np.median(estimated[300:])


def test_a_feature_that_is_constant_in_public_is_left_out():
    private, public = normal(50, 0), np.concatenate([normal(100, 0), normal(100, 1.5)])
    with_constant = [
        np.concatenate([x, np.full((len(x), 1), c, np.float32)], axis=1) for x, c in ((private, 0.7), (public, 0.1))
    ]
    np.testing.assert_allclose(log_density_ratio(*with_constant), log_density_ratio(private, public), atol=1e-4)


# --- the mixture ------------------------------------------------------------------------------------------------------


def test_a_cluster_listens_to_the_one_whose_sample_it_is():
    experts = np.float32([[[0.9, 0.1]], [[0.2, 0.8]]])
    for log_ratios, second in [
        ([[0], [0]], 0.1),  # no evidence: the prior
        ([[0], [np.log(9)]], 0.5),  # as much evidence as it takes to make up for it
        ([[-30], [30]], 1),
        ([[30], [-30]], 0),
    ]:
        mixed = mixture_of_experts(experts, log_ratios, own=0.9)
        np.testing.assert_allclose(mixed[0], (1 - second) * experts[0] + second * experts[1], atol=1e-6)
    np.testing.assert_allclose(mixture_of_experts(experts, [[0], [0]], own=0.9)[1, 0], [0.27, 0.73], rtol=1e-5)


def test_targets_are_probabilities_and_the_prior_of_the_others_is_shared():
    experts = RNG.dirichlet(np.ones(3), (4, 7))
    mixed = mixture_of_experts(experts, RNG.normal(0, 20, (4, 7)))
    np.testing.assert_allclose(mixed.sum(axis=2), 1, rtol=1e-6)
    even = mixture_of_experts(experts, np.zeros((4, 7)), own=0.7)
    np.testing.assert_allclose(even[2], 0.6 * experts[2] + 0.1 * experts.sum(axis=0), rtol=1e-6)


def test_one_cluster_has_nobody_to_listen_to():
    experts = RNG.dirichlet(np.ones(3), (1, 7))
    np.testing.assert_allclose(mixture_of_experts(experts, np.full((1, 7), 40)), experts, rtol=1e-6)
