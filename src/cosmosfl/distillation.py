"""Losses on soft labels, and the one training loop that every torch learner uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""loss(module, inputs of a batch, targets of a batch) -> a scalar"""
Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""augment(inputs of a batch, generator) -> inputs of the same shape"""
Schedule = Callable[[float], float]
"""schedule(share of the training that is done, in [0, 1)) -> factor of the learning rate"""


class DivergenceError(ArithmeticError):
    """The training loss stopped being a finite number."""


def temper(probabilities: Tensor, temperature: float) -> Tensor:
    """Return probabilities (n, C) proportional to ``p ** (1 / temperature)``, as in the paper's p^(T).

    A temperature of 1 changes nothing, below 1 sharpens, above 1 flattens, and 0 gives the one-hot argmax (ties: the
    lowest class).
    """
    if temperature == 1:
        return probabilities
    if temperature == 0:
        return F.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).to(probabilities.dtype)
    return torch.softmax(probabilities.clamp_min(1e-12).log() / temperature, dim=1)


def second_softmax(probabilities: Tensor) -> Tensor:
    """Return the softmax of probabilities (n, C), as if they were logits.

    A departure of the research code: no class gets more than e times the probability of another, so that even certain
    targets come out nearly uniform.
    """
    return probabilities.softmax(dim=1)


def kl_to_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over samples of KL(targets || softmax(logits)), in nats. Both are (n, C)."""
    return F.kl_div(F.log_softmax(logits, dim=1), targets, reduction="batchmean")


def consistency(logits: Tensor, noisy: Tensor) -> Tensor:
    """Return the mean squared change of a model's probabilities under input noise.

    The regulariser of the paper's server loss: ``mean((softmax g(x) - softmax g(x + δ))²)``. The gradient flows
    through both terms.

    Parameters
    ----------
    logits, noisy
        ``g(x)`` and ``g(x + δ)``, both (n, C).
    """
    change: Tensor = logits.softmax(dim=1) - noisy.softmax(dim=1)
    return change.square().mean()


def flip_crop(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Mirror half of the images (n, channels, h, w) and shift each by up to `padding` pixels; the edge is repeated."""
    n, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=generator, device=images.device)

    padded = F.pad(images, (padding,) * 4, mode="replicate")
    rows = draw(2 * padding + 1) + torch.arange(height, device=images.device)
    columns = draw(2 * padding + 1) + torch.arange(width, device=images.device)
    columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    sample = torch.arange(n, device=images.device)[:, None, None]
    moved = padded[sample, :, rows[:, :, None], columns[:, None, :]]  # (n, h, w, channels)
    return moved.permute(0, 3, 1, 2)


def batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield index tensors that cover 0..n-1 once, shuffled, with no sample left out.

    A tail of one sample joins the batch before it, and a lone sample comes twice: batch normalisation needs two.
    """
    order = torch.from_numpy(rng.permutation(n))
    if n == 1:
        order = order.repeat(2)
    last_start = n - 1 if n > 1 and batch_size > 1 else n
    starts = [start for start in range(0, n, batch_size) if start < last_start]
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:end]


def n_batches(n: int, batch_size: int) -> int:
    """Return how many `batches` there are."""
    return math.ceil((n - 1) / batch_size) if n > 1 and batch_size > 1 else n


def ordered_batches(n: int, batch_size: int) -> Iterator[Tensor]:
    """Yield index tensors of full batches in order; the tail is dropped. A departure of the research code.

    Raises
    ------
    ValueError
        If the samples do not fill one batch, for nothing would be learned from them.
    """
    if n < batch_size:
        raise ValueError(
            f"ordered batches: {n} samples do not fill a batch of {batch_size}, and what does not is dropped; "
            "expected a smaller batch_size or more samples"
        )
    for start in range(0, n - n % batch_size, batch_size):
        yield torch.arange(start, start + batch_size)


def cosine(done: float) -> float:
    """Return the factor of a learning rate that falls from 1 to 0 along half a cosine (Loshchilov and Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * done))


def train(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
    clip_norm: float | None = None,
    augment: Augmentation | None = None,
    ordered: bool = False,
    schedule: Schedule | None = None,
) -> float:
    """Train `module` in place and return the mean loss of the last epoch.

    Parameters
    ----------
    inputs, targets
        The whole training set (n, ...) and (n,) or (n, C), on the module's device.
    loss
        The loss of a batch; its gradient is taken.
    epochs, batch_size
        Every epoch sees every sample once, in a new order (unless `ordered`).
    rng
        Source of all randomness: order, augmentation, dropout and noise.
    clip_norm
        Largest allowed norm of the gradient; None for no clipping.
    augment
        Applied afresh to the inputs of every batch.
    ordered
        Take `ordered_batches` instead.
    schedule
        Of the learning rate, such as `cosine`; None keeps it constant. The optimiser keeps the last one.

    Raises
    ------
    DivergenceError
        If a batch's loss is not finite. Nothing but the training loss is looked at.
    """
    seed = int(rng.integers(2**31))
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    mean = 0.0
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        generator = torch.Generator(device=inputs.device).manual_seed(seed + 1)
        module.train()
        for epoch in range(epochs):
            total, seen = torch.zeros((), device=inputs.device), 0
            n = len(inputs)
            for index in ordered_batches(n, batch_size) if ordered else batches(n, batch_size, rng):
                if schedule is not None:
                    factor = schedule((epoch * n + seen) / (epochs * n))
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                index = index.to(inputs.device)
                batch = inputs[index]
                if augment is not None:
                    batch = augment(batch, generator)
                value = loss(module, batch, targets[index])
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
                optimizer.step()
                total += value.detach() * len(index)
                seen += len(index)
            mean = float(total) / seen
            if not np.isfinite(mean):
                raise DivergenceError(
                    f"training loss is {mean} in epoch {epoch + 1} of {epochs}; a lower learning_rate may help"
                )
        module.eval()
    return mean
