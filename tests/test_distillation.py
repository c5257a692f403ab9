"""Losses on soft labels and the training loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cosmosfl.distillation import DivergenceError, batches, consistency, flip_crop, kl_to_targets, temper, train


def test_temper_is_the_power_one_over_t():
    p = torch.tensor([[0.2, 0.8]])
    expected = p ** (1 / 0.5)
    torch.testing.assert_close(temper(p, 0.5), expected / expected.sum())
    assert temper(p, 1) is p
    assert temper(p, 1000)[0, 0] == pytest.approx(0.5, abs=1e-3)


def test_temperature_zero_is_one_hot():
    assert temper(torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]), 0).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_temper_keeps_zero_probabilities_finite():
    assert torch.isfinite(temper(torch.tensor([[0.0, 1.0]]), 2.0)).all()


def test_kl_is_zero_at_the_target_and_has_the_gradient_of_soft_cross_entropy():
    logits = torch.randn(5, 3, requires_grad=True)
    targets = torch.softmax(torch.randn(5, 3), dim=1)
    assert kl_to_targets(targets.log(), targets).item() == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(kl_to_targets(logits, targets), logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - targets).detach() / 5)


def test_soft_targets_are_not_flattened_by_a_second_softmax():
    # the research code's history: softmax of what already was a probability
    logits = torch.tensor([[4.0, 0.0]])
    target = logits.softmax(1)
    assert kl_to_targets(logits, target).item() < 1e-6 < kl_to_targets(logits, target.softmax(1)).item()


def test_the_consistency_term_has_a_gradient():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    x = torch.randn(8, 3)
    consistency(module(x), module(x + 0.5 * torch.randn_like(x))).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.abs().sum() > 0


def test_training_on_the_consistency_term_makes_a_model_smoother():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    x = torch.randn(64, 3)

    def penalty() -> torch.Tensor:
        return consistency(module(x), module(x + 0.5 * torch.randn_like(x)))

    before = penalty().item()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert penalty().item() < before / 2


def test_flip_crop_moves_each_image_by_its_own_shift_and_mirrors_some():
    image = torch.zeros(1, 2, 9, 9)
    image[0, :, 4, 4] = torch.tensor([1.0, 2.0])  # a dot in the middle stays inside at any shift
    generator = torch.Generator().manual_seed(0)
    moved = flip_crop(image.repeat(200, 1, 1, 1), generator)
    assert moved.shape == (200, 2, 9, 9)
    assert (moved[:, 0].flatten(1).sum(1) == 1).all()
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])  # channels move together
    assert len(set(moved[:, 0].flatten(1).argmax(1).tolist())) > 60  # of 81 positions
    ramp = torch.arange(9.0).repeat(1, 1, 9, 1)
    rising = flip_crop(ramp.repeat(200, 1, 1, 1), generator)[:, 0, 0].diff(dim=1).sum(1) > 0
    assert 60 < rising.sum() < 140


@pytest.mark.parametrize(("n", "size"), [(1, 4), (2, 1), (5, 4), (8, 4), (9, 4), (33, 32), (3, 100), (4, 3)])
def test_batches_cover_everything_once_and_leave_no_single_sample(n, size):
    parts = list(batches(n, size, np.random.default_rng(0)))
    seen = torch.cat(parts).tolist()
    assert sorted(seen) == ([0, 0] if n == 1 else list(range(n)))
    if size > 1:
        assert min(map(len, parts)) > 1
    assert max(map(len, parts)) <= size + 1


def test_batches_come_in_a_new_order_each_epoch():
    rng = np.random.default_rng(0)
    assert torch.cat(list(batches(50, 8, rng))).tolist() != torch.cat(list(batches(50, 8, rng))).tolist()


def _train(seed: int, **options) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    train(
        module, x, y, lambda m, a, b: F.cross_entropy(m(a), b), torch.optim.SGD(module.parameters(), lr=0.1),
        epochs=3, batch_size=4, rng=np.random.default_rng(seed), **options,
    )  # fmt: skip
    return module


def test_training_depends_on_its_own_stream_only():
    first = _train(5)
    torch.rand(3)  # somebody else draws from the global stream in between
    assert torch.equal(first[0].weight, _train(5)[0].weight)
    assert not torch.equal(first[0].weight, _train(6)[0].weight)


def test_training_leaves_the_global_stream_alone_and_the_module_in_evaluation_mode():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.random.fork_rng():
        module = _train(5)
    assert torch.equal(torch.rand(1), expected)
    assert not module.training


def test_gradients_are_clipped():
    free, clipped = _train(5), _train(5, clip_norm=1e-6)
    torch.manual_seed(0)
    start = nn.Linear(2, 8).weight
    assert (clipped[0].weight - start).abs().max() < 1e-4 < (free[0].weight - start).abs().max()


def test_augmentation_is_applied_afresh_to_each_batch():
    seen: list[float] = []

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = torch.rand(1, generator=generator)
        seen.append(noise.item())
        return x + noise

    _train(5, augment=augment)
    assert len(set(seen)) == len(seen) == 3 * 5


def test_divergence_is_an_error_that_says_what_may_help():
    module = nn.Linear(1, 1)
    with pytest.raises(DivergenceError, match="training loss is nan in epoch 1 of 2; a lower learning_rate may help"):
        train(
            module, torch.ones(4, 1), torch.ones(4), lambda m, a, b: m(a).sum() * float("nan"),
            torch.optim.SGD(module.parameters(), lr=1.0), epochs=2, batch_size=2, rng=np.random.default_rng(0),
        )  # fmt: skip
