"""Torch modules as learners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import blobs
from cosmosfl import TorchLearner
from cosmosfl.distillation import batches, n_batches
from cosmosfl.protocol import Learner, NotFittedError
from cosmosfl.randomness import stream

X, Y = blobs(80, (0, 1, 2, 3), np.random.default_rng(0))
SOFT = np.eye(4, dtype=np.float32)[Y] * 0.9 + 0.025


def fitted(model="mlp", seed=0, epochs=30, **options) -> TorchLearner:
    learner = TorchLearner(model, **options)
    learner.fit(X, Y, n_classes=4, epochs=epochs, rng=stream(seed, "fit"))
    return learner


def accuracy(learner: Learner) -> float:
    return float((learner.predict_proba(X).argmax(axis=1) == Y).mean())


def test_it_is_a_learner_that_learns_hard_and_soft_labels():
    assert isinstance(TorchLearner("mlp"), Learner)
    assert accuracy(fitted()) > 0.95
    learner = TorchLearner("mlp")
    learner.distill(X, SOFT, epochs=30, rng=stream(0, "distill"))
    assert accuracy(learner) > 0.95
    assert abs(learner.predict_proba(X).max(axis=1).mean() - 0.925) < 0.03  # it learned the softness too


def test_probabilities_are_float32_rows_that_sum_to_one():
    P = fitted().predict_proba(X)
    assert P.shape == (80, 4)
    assert P.dtype == np.float32
    np.testing.assert_allclose(P.sum(axis=1), 1, atol=1e-5)
    assert fitted().predict_proba(X[:0]).shape == (0, 4)


def test_prediction_does_not_depend_on_its_batch_size():
    learner = fitted()
    np.testing.assert_allclose(learner.predict_proba(X, batch_size=7), learner.predict_proba(X), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        "mlp",
        lambda: nn.Linear(2, 4),
        lambda input_shape, n_classes: nn.Linear(input_shape[0], n_classes),
        nn.Linear(2, 4),
    ],
    ids=["name", "factory", "shaped factory", "module"],
)
def test_a_model_is_a_name_a_factory_or_a_module(model):
    assert accuracy(fitted(model, learning_rate=0.05)) > 0.9


def test_initialisation_comes_from_the_stream():
    def first_weight(seed: int) -> torch.Tensor:
        return next(fitted(seed=seed, epochs=1).module.parameters())

    assert torch.equal(first_weight(0), first_weight(0))
    assert not torch.equal(first_weight(0), first_weight(1))


def test_fit_goes_on_from_what_was_learned():
    learner = fitted(learning_rate=1e-2)
    assert accuracy(learner) > 0.95
    learner.fit(X[:4], Y[:4], n_classes=4, epochs=1, rng=stream(1))
    assert accuracy(learner) > 0.95


def test_state_restores_a_fresh_learner():
    learner = fitted()
    twin = TorchLearner("mlp")
    twin.restore(learner.state())
    assert np.array_equal(twin.predict_proba(X), learner.predict_proba(X))
    state = learner.state()
    learner.fit(X, Y, n_classes=4, epochs=1, rng=stream(0, "on"))
    assert not np.array_equal(state["module.1.weight"], learner.state()["module.1.weight"])  # a copy, not a view


def test_images_with_batch_normalisation_work_for_any_number_of_samples():
    for n in (1, 2, 33):
        images = np.random.default_rng(0).standard_normal((n, 1, 8, 8)).astype(np.float32)
        learner = TorchLearner("cnn-s")
        learner.fit(images, np.zeros(n, np.int64), n_classes=3, epochs=1, rng=stream(0))
        assert np.isfinite(learner.predict_proba(images)).all()


def test_uint8_images_are_scaled_to_minus_one_to_one():
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :2] + self.bias

    images = np.array([0, 255], np.uint8).reshape(1, 1, 1, 2)
    learner = TorchLearner(Probe)
    learner.distill(images, np.full((1, 2), 0.5, np.float32), epochs=0, rng=stream(0))
    logits = np.log(learner.predict_proba(images)[0])
    assert logits[1] - logits[0] == pytest.approx(2, abs=1e-4)


def test_read_only_inputs_are_fine():
    frozen = X.copy()
    frozen.flags.writeable = False
    learner = TorchLearner("mlp")
    learner.fit(frozen, Y, n_classes=4, epochs=1, rng=stream(0))
    learner.predict_proba(frozen)


def test_the_consistency_weight_changes_what_is_learned():
    def distilled(weight: float) -> np.ndarray:
        learner = TorchLearner("mlp", consistency=weight, consistency_noise=0.5)
        learner.distill(X, SOFT, epochs=10, rng=stream(0))
        return learner.predict_proba(X)

    assert not np.allclose(distilled(0), distilled(5), atol=1e-3)


def test_temperature_sharpens_the_targets():
    def confidence(temperature: float) -> float:
        learner = TorchLearner("mlp", temperature=temperature)
        learner.distill(X, 0.6 * SOFT + 0.1, epochs=60, rng=stream(0))
        return float(learner.predict_proba(X).max(axis=1).mean())

    assert confidence(2.0) < confidence(1.0) < confidence(0.0)


def test_bfloat16_learns_as_well_as_float32():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]

    def accuracy_of(precision: str, seed: int) -> float:
        learner = TorchLearner("cnn-s", precision=precision)
        learner.fit(images[:500], digits.target[:500], n_classes=10, epochs=5, rng=stream(seed))
        P = learner.predict_proba(images[500:])
        assert P.dtype == np.float32
        return float((P.argmax(1) == digits.target[500:]).mean())

    half, full = ([accuracy_of(p, seed) for seed in range(3)] for p in ("bfloat16", "float32"))
    assert half != full  # the setting does something
    assert np.mean(half) > np.mean(full) - 0.02


def test_the_two_learning_rates_are_separate():
    learner = fitted(distill_learning_rate=1e-9)
    before = learner.predict_proba(X)
    learner.distill(X, np.full((80, 4), 0.25, np.float32), epochs=5, rng=stream(0))
    np.testing.assert_allclose(learner.predict_proba(X), before, atol=1e-4)


def test_an_optimizer_can_be_given():
    made = []

    def sgd(parameters, rate):
        made.append(rate)
        return torch.optim.SGD(parameters, lr=rate)

    fitted(optimizer=sgd, learning_rate=0.3)
    assert made == [0.3]


def test_asking_too_early_is_a_clear_error():
    with pytest.raises(NotFittedError, match=r"TorchLearner\(mlp\) has not learned anything yet"):
        TorchLearner("mlp").predict_proba(X)


def test_a_module_with_a_wrong_number_of_outputs_is_named():
    with pytest.raises(ValueError, match=r"to shape \(1, 3\); expected \(1, 4\), one logit per class"):
        fitted(lambda: nn.Linear(2, 3))


def test_other_shapes_later_are_refused():
    with pytest.raises(ValueError, match=r"inputs \(3,\) with 4 classes; expected \(2,\) with 4"):
        fitted().distill(np.zeros((5, 3), np.float32), np.full((5, 4), 0.25, np.float32), epochs=1, rng=stream(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0}, "learning_rate: 0; expected a number above 0"),
        ({"batch_size": 0}, "batch_size: 0; expected a number of at least 1"),
        ({"temperature": -1}, "temperature: -1; expected a number of at least 0"),
        ({"precision": "half"}, "precision: 'half'; expected 'auto', 'float32' or 'bfloat16'"),
        ({"augment": "flip"}, "augment: 'flip'; expected 'flip-crop', a function or None"),
        ({"optimizer": "adma"}, "optimizer: 'adma'; expected one of adam"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TorchLearner("mlp", **options)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="'cnns' is not known; did you mean 'cnn-s'"):
        TorchLearner("cnns")


def test_a_factory_of_one_parameter_is_refused():
    with pytest.raises(ValueError, match="has 1 required parameters; expected none, or two"):
        fitted(lambda n_classes: nn.Linear(2, n_classes))


def test_a_cnn_on_flat_features_says_what_to_use():
    with pytest.raises(ValueError, match="a CNN takes images .* use 'mlp'"):
        fitted("cnn-s")


def test_auto_is_half_precision_where_the_processor_has_it(monkeypatch):
    assert TorchLearner("mlp").precision == "float32"
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("cosmosfl.learners.torch.supports_bfloat16", lambda device, native=native: native)
        assert TorchLearner("mlp", precision="auto").precision == precision
    with pytest.raises(ValueError, match="expected 'auto', 'float32' or 'bfloat16'"):
        TorchLearner("mlp", precision="float16")


# --- both sets at once ------------------------------------------------------------------------------------------------


def test_a_joint_fit_goes_through_the_public_set_as_often_as_told_and_its_rate_falls_to_zero():
    """Catches a schedule that is constant or reversed, epochs that are ignored, and a public set that is not used."""
    rates, sizes = [], []

    class Recording(torch.optim.SGD):
        def step(self, *rest):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*rest)

    def model(input_shape, n_classes):
        module = nn.Linear(input_shape[0], n_classes)
        module.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])) if module.training else None)
        return module

    learner = TorchLearner(model, batch_size=10, learning_rate=0.5, optimizer=lambda p, rate: Recording(p, lr=rate))
    rng = np.random.default_rng(0)
    inputs, public = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(40, 3)).astype(np.float32)
    labels = np.arange(20) % 2
    soft = np.tile(np.float32([0, 0, 1]), (40, 1))
    learner.fit_jointly(inputs, labels, public, soft, n_classes=3, epochs=5, rng=np.random.default_rng(1))
    assert len(rates) == 20  # 5 epochs of 4 public batches
    assert len(sizes) == 40  # each with a private one
    assert rates[0] == 0.5
    assert rates == sorted(rates, reverse=True)
    assert rates[10] == pytest.approx(0.25)
    assert rates[-1] < 0.01
    assert learner.predict_proba(public).argmax(axis=1).mean() > 1  # class 2 is known from the public set only
    assert (learner.predict_proba(inputs)[:, :2].sum(axis=1) > 0.2).mean() > 0.5  # the others from the private one


@pytest.mark.parametrize(("n", "size"), [(1, 4), (2, 4), (4, 4), (5, 4), (6, 4), (9, 4), (3, 1), (33, 32)])
def test_batches_are_counted_as_they_are_drawn(n, size):
    assert n_batches(n, size) == len(list(batches(n, size, np.random.default_rng(0))))


@pytest.mark.parametrize(("n", "m", "epochs"), [(40, 430, 5), (2000, 200, 1), (15, 430, 5), (1, 33, 2)])
def test_a_joint_fit_says_how_many_samples_its_steps_see(n, m, epochs):
    seen = []

    def model(input_shape, n_classes):
        module = nn.Linear(input_shape[0], n_classes)
        module.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])) if module.training else None)
        return module

    learner = TorchLearner(model)
    rng = np.random.default_rng(0)
    inputs, public = rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=(m, 3)).astype(np.float32)
    soft = np.full((m, 2), 0.5, np.float32)
    learner.fit_jointly(inputs, np.arange(n) % 2, public, soft, n_classes=2, epochs=epochs, rng=rng)
    assert learner.joint_samples(n, m, epochs) == pytest.approx(sum(seen), rel=0.05)
