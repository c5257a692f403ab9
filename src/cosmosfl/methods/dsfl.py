"""DS-FL: distillation-based semi-supervised federated learning (Itahara et al. 2021, arXiv 2008.06180).

In every round the clients train on their private sets and predict a fresh part of the public set; the server returns
the mean of their predictions, sharpened; the clients learn from it. The sharpening is for clients with different data:
their mean is ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from cosmosfl.data.sets import FloatArray, PublicSet
from cosmosfl.methods.fedmd import ConsensusClient, ConsensusMethod, arithmetic_mean, softmax
from cosmosfl.protocol import Client, Task


class DSFL(ConsensusMethod):
    """Exchange the mean of all predictions on a fresh part of the public set, after entropy reduction; learn from it.

    A round is the paper's: train, predict, aggregate, distil. The model to deploy has distilled last, and
    ``client_after_fit`` is the accuracy before. The paper's server trains a model of its own in the same way; here
    there is none, for it is no client's.

    Parameters
    ----------
    subset
        Public samples in a round: their number (all, if there are fewer), or a fraction of the set as a float.
    temperature
        T of the entropy reduction, see `sharpened`. The paper's 0.1 is for ten classes. Where clients agree on nothing,
        only T below 1 / C makes their mean sharper; with a hundred classes, 0.1 *flattens* every mean that gives its
        first class less than about 0.45, so take less there.
    local_epochs, distill_epochs
        Epochs of a client on its private set, and on the part with the server's labels, in each round.
    """

    name: ClassVar[str] = "dsfl"
    summary: ClassVar[str] = "the mean of all predictions, sharpened, on a fresh part of the public set"

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1

    def client_side(self, client: Client, public: PublicSet, task: Task) -> ConsensusClient:
        """Return what `client` does."""
        return ConsensusClient(self, client, public, task)

    def consensus(self, predictions: Iterable[FloatArray]) -> FloatArray:
        """Return the mean, sharpened."""
        return sharpened(arithmetic_mean(predictions), self.temperature)


def sharpened(mean: FloatArray, temperature: float) -> FloatArray:
    """Return ``softmax(mean / T)`` of the mean's *probabilities* (s, C), as if they were logits.

    The paper's entropy reduction aggregation. It is not ``mean ** (1 / T)``: differences count, not ratios.
    """
    return softmax(mean.astype(np.float64) / temperature)
