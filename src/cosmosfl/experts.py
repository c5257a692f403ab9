"""Whom to believe about a public sample: those whose own data look like it.

A cluster is an expert for the samples that its members could have met, and guesses on all others. The public set is
mostly others. So each client says, for every public sample, how much more likely it is among its private data than
among public data, and a cluster's target becomes the mean of all clusters' predictions, weighted by how likely the
sample is to be of each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cosmosfl.data.sets import FloatArray, InputArray
from cosmosfl.threads import libraries_are_imported

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

OWN = 0.95
"""The prior probability that a sample that a cluster's members meet is of their cluster's distribution; the other
clusters share the rest. An assumption, which the predictions cannot tell; in the paper's partition it is 0.92."""
COMPONENTS = 50
"""Principal components of the public set that distances are measured in."""
FITTED = 2000
"""Public samples that the components are found on, at most; evenly spaced."""
NEIGHBOURS = 3
SHARPNESS = 3.0
"""What the mean of a cluster's log ratios is multiplied with. Each is too cautious: it is from one noisy feature, and
the public samples that it is compared with are in part of its own distribution. With 3 the groups of the public samples
are likeliest or nearly so on six of seven data sets, with 2 or 5 members of 40 to 2,000 samples, and letters would like
more (``results/evidence.csv``)."""
LARGEST = 10.0
"""Log ratios are cut off here, and who claims more is rejected."""
MOST = 50.0
"""The largest ratio: what a client holds is of a kind that makes up a fiftieth of the public set, or more."""
PRIOR_VARIANCE = 10.0
"""Of the slope of the logistic regression: keeps it finite where the samples are told apart without an error."""


def log_density_ratio(private: InputArray, public: InputArray) -> FloatArray:
    """Estimate ``log p_private(x) / p_public(x)`` of every public sample x, from nearest neighbours.

    Where private samples are nearer than public ones, the private density is higher. How much higher is learned by a
    logistic regression with one feature, the logarithm of the ratio of the mean squared distances to the nearest
    public and the nearest private samples: it tells private samples from public ones, each left out of its own
    neighbours. Where distances say nothing of the kind, its slope and so all log ratios are near zero; a negative one
    is taken for zero.

    Parameters
    ----------
    private
        Private inputs (n, ...), of the shape of the public ones.
    public
        Public inputs (m, ...).

    Returns
    -------
    ndarray
        (m,), float32, `normalised`; zeros if there are fewer than two samples of either kind, or no variation.
    """
    from sklearn.linear_model import LogisticRegression

    libraries_are_imported()
    nothing = np.zeros(len(public), np.float32)
    if len(private) < 2 or len(public) < 2:
        return nothing
    own, common = (np.asarray(x).reshape(len(x), -1) for x in (private, public))
    if public.ndim == 2:  # features with units of their own; pixels share one
        own, common = own.astype(np.float64), common.astype(np.float64)
        scale = common.std(axis=0)
        varies = scale > 1e-6 * np.abs(common).max(axis=0)
        own, common = own[:, varies] / scale[varies], common[:, varies] / scale[varies]
    some = common[:: math.ceil(len(common) / FITTED)].astype(np.float64)
    if some.shape[1] == 0 or np.ptp(some, axis=0).max() == 0:
        return nothing
    components = _components(some)
    own, common = _projected(own, components), _projected(common, components)
    k = min(NEIGHBOURS, len(own) - 1, len(common) - 1)
    floor = 1e-6 * float(components.explained_variance_.sum())  # for samples that are there twice
    at_public = _nearest(common, common, k, floor, itself=True) - _nearest(common, own, k, floor)
    at_private = _nearest(own, common, k, floor) - _nearest(own, own, k, floor, itself=True)
    features = np.concatenate([at_private, at_public])[:, None]
    kinds = np.repeat([1, 0], [len(at_private), len(at_public)])
    weights = np.where(kinds == 1, 1, len(private) / len(public))  # as much of either, and no more than there is
    classifier = LogisticRegression(C=PRIOR_VARIANCE).fit(features, kinds, sample_weight=weights)
    slope = max(float(classifier.coef_[0, 0]), 0.0)
    return normalised(np.clip(slope * at_public, -LARGEST, LARGEST))


def _components(inputs: npt.NDArray[np.float64]) -> PCA:
    """Return the first `COMPONENTS` principal components of inputs (n, d), or all if there are fewer."""
    from sklearn.decomposition import PCA

    if min(inputs.shape) <= COMPONENTS:
        return PCA(svd_solver="full").fit(inputs)
    return PCA(COMPONENTS, svd_solver="arpack", random_state=0).fit(inputs)  # exact; photographs: 8 times faster


def _projected(inputs: npt.NDArray[Any], components: PCA) -> npt.NDArray[np.float64]:
    """Return inputs (n, d) in principal components, in blocks: all of them in double precision may not fit."""
    blocks = (inputs[start : start + FITTED] for start in range(0, len(inputs), FITTED))
    return np.concatenate([components.transform(block.astype(np.float64)) for block in blocks])


def normalised(log_ratios: npt.NDArray[Any]) -> FloatArray:
    """Return log ratios (m,) that are those of a density: over the public set, the ratios have the mean 1.

    So who says of every sample that it is likely says nothing. And no ratio is above `MOST`, or a few samples amid
    many private ones would leave next to nothing for all others.
    """
    values = log_ratios.astype(np.float64)
    highest = values.max(initial=0)
    ratios = np.exp(values - highest)
    descending, cut, level = np.sort(ratios)[::-1], 0, ratios.mean()
    while descending[cut] > MOST * level:  # ends while there are samples left, for these have a mean below MOST
        cut += 1
        level = descending[cut:].sum() / (len(values) - cut * MOST)
    result: FloatArray = np.minimum(values - highest - np.log(level), math.log(MOST)).astype(np.float32)
    return result


def _nearest(
    at: npt.NDArray[np.float64], others: npt.NDArray[np.float64], k: int, floor: float, *, itself: bool = False
) -> npt.NDArray[np.float64]:
    """Return the log of the mean squared distance of each sample to the k nearest of `others`, but for itself."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(others)
    distances = index.kneighbors(None if itself else at)[0]
    result: npt.NDArray[np.float64] = np.log(np.maximum(np.square(distances).mean(axis=1), floor))
    return result


def evidence(log_ratios: npt.ArrayLike) -> FloatArray:
    """Return what the log ratios (n, m) of a cluster's n members say together (m,): their mean, times `SHARPNESS`.

    Not their sum: they are estimates of the same number, and a cluster is not to be the surer the larger it is.
    """
    result: FloatArray = SHARPNESS * np.asarray(log_ratios, np.float32).mean(axis=0)
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
        (K, m): the `evidence` for each cluster.
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
