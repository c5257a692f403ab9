"""Learning from private labels and from soft labels of the public set at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cosmosfl.data.sets import FloatArray, InputArray
from cosmosfl.distillation import batches, kl_to_targets
from cosmosfl.randomness import draw_seed

if TYPE_CHECKING:
    from cosmosfl.learners.torch import TorchLearner


class CoDistillation:
    """A term of the loss on public data: λ times the distance to soft labels, on the next batch of the public set.

    Parameters
    ----------
    learner
        Whose module is trained. Public inputs are treated like its private ones: scaled, augmented, in its precision
        and in batches of its size.
    inputs, targets
        The public set (m, ...) and its soft labels (m, C).
    rng
        Of the order and the augmentation.
    lam
        λ.
    loss
        ``"kl"``, the Kullback-Leibler divergence of the learner's probabilities from the soft labels, or ``"l2"``, the
        squared distance; averaged over public samples.
    """

    def __init__(
        self,
        learner: TorchLearner,
        inputs: InputArray,
        targets: FloatArray,
        rng: np.random.Generator,
        *,
        lam: float = 1.0,
        loss: Literal["kl", "l2"] = "kl",
    ) -> None:
        self.learner = learner
        self.inputs = inputs
        self.targets = targets
        self.lam = lam
        self.loss = loss
        self.generator = torch.Generator(device=learner.device).manual_seed(draw_seed(rng))
        self.batches = self._endless(rng)

    def _endless(self, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
        while True:
            for index in batches(len(self.inputs), self.learner.batch_size, rng):
                yield index.numpy()

    def __call__(self, module: nn.Module) -> Tensor:
        """Return the term for the next batch."""
        index = next(self.batches)
        x = self.learner.tensor(self.inputs[index])
        if self.learner.augment is not None:
            x = self.learner.augment(x, self.generator)
        logits = self.learner.logits(module, x)
        targets = torch.from_numpy(self.targets[index]).to(x.device)
        if self.loss == "kl":
            distance = kl_to_targets(logits, targets)
        else:
            distance = (logits.softmax(dim=1) - targets).square().sum(dim=1).mean()
        return self.lam * distance
