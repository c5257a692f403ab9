"""Whom to believe about a public sample: those whose own data look like it.

A cluster is an expert for the samples that its members could have met, and guesses on all others. The public set is
mostly others. So each client says, for every public sample, how much more likely it is among its private data than
among public data, and a cluster's target becomes the mean of all clusters' predictions, weighted by how likely the
sample is to be of each. Pure functions.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import FloatArray, InputArray

OWN = 0.95
"""The prior probability that a sample that a cluster's members meet is of their cluster's distribution; the other
clusters share the rest. The predictions alone cannot tell it."""
COMPONENTS = 50
"""Principal components of the public set that distances are measured in."""
FITTED = 2000
"""Public samples that the components are found on, at most; evenly spaced."""
NEIGHBOURS = 3
LARGEST = 10.0
"""Log ratios are cut off here, beyond what data have (7.5 at most in the cpu presets): one client's claim, or a private
sample that is a public one too, is not to outweigh everybody. A client that claims more is rejected."""


def log_density_ratio(private: InputArray, public: InputArray) -> FloatArray:
    """Estimate ``log p_private(x) / p_public(x)`` of every public sample x, from nearest neighbours.

    Where private samples are nearer than public ones, the private density is higher. How much higher is learned by a
    logistic regression with one feature, the logarithm of the ratio of the mean squared distances to the nearest
    public and the nearest private samples: it tells private samples from public ones, each left out of its own
    neighbours. Where distances say nothing of the kind (as between photographs), its slope and so all log ratios are
    near zero.

    Parameters
    ----------
    private
        Private inputs (n, ...), of the shape of the public ones.
    public
        Public inputs (m, ...).

    Returns
    -------
    ndarray
        (m,), float32; zeros if there are fewer than two samples of either kind, or no variation.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    if len(private) < 2 or len(public) < 2:
        return np.zeros(len(public), np.float32)
    own, common = (np.asarray(x, np.float32).reshape(len(x), -1) for x in (private, public))
    if public.ndim == 2:  # features with units of their own; pixels share one
        scale = common.std(axis=0)
        own, common = own[:, scale > 0] / scale[scale > 0], common[:, scale > 0] / scale[scale > 0]
    if common.shape[1] == 0 or np.ptp(common, axis=0).max() == 0:
        return np.zeros(len(public), np.float32)
    some = common[:: math.ceil(len(common) / FITTED)]
    components = PCA(min(COMPONENTS, *some.shape), svd_solver="full").fit(some)
    own, common = components.transform(own), components.transform(common)
    k = min(NEIGHBOURS, len(own) - 1, len(common) - 1)
    at_public = _nearest(common, common, k, itself=True) - _nearest(common, own, k)
    at_private = _nearest(own, common, k) - _nearest(own, own, k, itself=True)
    features = np.concatenate([at_private, at_public])[:, None]
    kinds = np.repeat([1, 0], [len(at_private), len(at_public)])
    classifier = LogisticRegression(C=100, class_weight="balanced").fit(features, kinds)
    ratio = classifier.decision_function(at_public[:, None])
    result: FloatArray = np.clip(ratio, -LARGEST, LARGEST).astype(np.float32)
    return result


def _nearest(at: FloatArray, others: FloatArray, k: int, *, itself: bool = False) -> npt.NDArray[np.float64]:
    """Return the log of the mean squared distance of each sample to the k nearest of `others`, but for itself."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(others)
    distances = index.kneighbors(None if itself else at)[0].astype(np.float64)
    result: npt.NDArray[np.float64] = np.log(np.maximum(np.square(distances).mean(axis=1), 1e-12))
    return result


def mixture_of_experts(experts: npt.ArrayLike, log_ratios: npt.ArrayLike, own: float = OWN) -> FloatArray:
    """Return what every cluster is to learn: all clusters' predictions, weighted by whose sample it may be.

    If x comes from cluster k's members, it is of the distribution of cluster j with probability ``w_j``, which is
    proportional to ``prior_kj · p_j(x) / p_public(x)``, and the members of j know best what it is then::

        target_k(x) = Σ_j w_j(x) expert_j(x)

    Parameters
    ----------
    experts
        (K, m, C): the mean predictions of each cluster's members.
    log_ratios
        (K, m): ``log p_j / p_public`` of each cluster. Its members' estimates are added up, as independent evidence.
    own
        Prior probability of the own cluster; the others have equal shares of the rest.

    Returns
    -------
    ndarray
        (K, m, C), float32.
    """
    experts, log_ratios = np.asarray(experts), np.asarray(log_ratios, np.float64)
    n_clusters = len(experts)
    if n_clusters == 1:
        return experts.astype(np.float32)
    ratios = np.exp(log_ratios - log_ratios.max(axis=0))  # (K, m), up to a factor of each sample
    targets = np.empty(experts.shape, np.float32)
    for k in range(n_clusters):
        prior = np.full((n_clusters, 1), (1 - own) / (n_clusters - 1))
        prior[k] = own
        weights = prior * ratios
        targets[k] = np.einsum("jm,jmc->mc", weights / weights.sum(axis=0), experts)
    return targets
