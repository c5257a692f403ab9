"""Clients, messages and what is checked at the door."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression

import cosmosfl as cf
from cosmosfl.data.sets import PublicSet
from cosmosfl.methods.cosmos import PseudoLabels, TeacherLabels
from cosmosfl.protocol import InvalidMessageError, Message, check_probabilities
from cosmosfl.randomness import stream

X = np.zeros((4, 2), np.float32)
Y = np.array([0, 1, 0, 1])
LEARNER = cf.SklearnLearner(LogisticRegression())


# --- clients ---


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (X, [0, 1, 0], r"labels: shape \(3,\); expected \(4,\)"),
        (X, [0, 1, 0, -1], "smallest label -1; expected whole numbers 0..C-1"),
        (X, [0, 1, 0, 0.5], "dtype float64; expected whole numbers"),
        (X, ["a", "b", "a", "b"], "expected whole numbers"),
        (X[:0], [], "0 samples; expected at least 1"),
        (np.full((4, 2), np.nan), Y, "4 of 4 samples hold NaN or infinity"),
        (np.zeros(4), Y, r"shape \(4,\); expected \(n, features\)"),
        ([[1, 2], [3]], [0, 1], "rows of different lengths"),
        ([["a"], ["b"], ["c"], ["d"]], Y, "expected numbers"),
    ],
)
def test_bad_private_data_name_the_client_and_what_was_expected(inputs, labels, message):
    with pytest.raises(ValueError, match=f"client 'clinic-3': .*{message}"):
        cf.Client("clinic-3", LEARNER, inputs, labels)


def test_bad_test_data_and_a_bad_id_are_refused():
    with pytest.raises(ValueError, match="client 'c': EvaluationSet labels"):
        cf.Client("c", LEARNER, X, Y, test=(X, Y[:2]))
    with pytest.raises(ValueError, match="client id: ''; expected a non-empty string"):
        cf.Client("", LEARNER, X, Y)


def test_a_learner_that_lacks_methods_is_refused_with_their_names():
    with pytest.raises(TypeError, match="LogisticRegression lacks distill, state, restore; wrap"):
        cf.Client("c", LogisticRegression(), X, Y)


def test_whole_float_labels_and_lists_are_taken():
    client = cf.Client("c", LEARNER, X.tolist(), [0.0, 1.0, 0.0, 1.0])
    assert client.private.labels.dtype == np.int64
    assert client.private.inputs.dtype == np.float32


# --- the public set ---


def test_a_public_set_has_no_place_for_labels():
    assert [field.name for field in dataclasses.fields(PublicSet)] == ["inputs"]


def test_a_public_set_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="public set: 1 samples; expected at least 2"):
        PublicSet(X[:1])


def test_the_digest_tells_content_shape_and_type_apart():
    sets = [X, X + 1, X.reshape(2, 4), X.astype(np.uint8)]
    assert len({PublicSet(inputs).digest for inputs in sets}) == 4
    assert PublicSet(X).digest == PublicSet(X.copy()).digest


# --- messages ---


def test_messages_are_frozen_and_count_their_bytes():
    message = PseudoLabels(3, np.zeros((10, 4), np.float32))
    assert message.nbytes == 8 + 10 * 4 * 4
    assert TeacherLabels(0, None).nbytes == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.round = 4


def test_a_message_of_anything_else_is_an_error():
    @dataclasses.dataclass(frozen=True, eq=False)
    class Odd(Message):
        content: object

    with pytest.raises(TypeError, match="message field of type list"):
        _ = Odd([]).nbytes


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6), c=st.integers(2, 6))
def test_probabilities_pass_the_door_unchanged(seed, n, c):
    P = np.random.default_rng(seed).dirichlet(np.ones(c), n).astype(np.float32)
    np.testing.assert_allclose(check_probabilities(P, shape=(n, c), source="x"), P, atol=1e-6)


@given(hnp.arrays(np.float32, (3, 2), elements=st.floats(width=32)))
def test_whatever_passes_the_door_is_finite_and_sums_to_one(P):
    try:
        accepted = check_probabilities(P, shape=(3, 2), source="x")
    except InvalidMessageError:
        return
    assert np.isfinite(accepted).all()
    assert ((accepted >= 0) & (accepted <= 1)).all()
    np.testing.assert_allclose(accepted.sum(axis=1), 1, atol=2e-3)


GOOD = np.full((3, 2), 0.5, np.float32)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD.tolist(), r"returned list; expected an array \(3, 2\)"),
        (GOOD[:2], r"returned shape \(2, 2\); expected \(3, 2\), one row per sample and one column per class"),
        (GOOD[:, :1], r"returned shape \(3, 1\); expected \(3, 2\)"),
        (np.ones((3, 2), np.int64), "returned dtype int64; expected floating point"),
        (np.full((3, 2), np.nan), "returned NaN or infinity"),
        (np.array([[2.0, -1.0]] * 3), "returned values from -1 to 2; expected 0 to 1"),
        (GOOD * 0.9, r"returned rows that do not sum to one \(row 0: 0.9\)"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(bad, message):
    with pytest.raises(InvalidMessageError, match=f"client 'clinic-3': predict_proba {message}"):
        check_probabilities(bad, shape=(3, 2), source="client 'clinic-3': predict_proba")


# --- random streams ---


def test_streams_depend_on_all_of_their_key_and_nothing_else():
    draws = {stream(seed, *key).random() for seed in (0, 1) for key in [("fit", "a", 1), ("fit", "a1"), ("fit",), ()]}
    assert len(draws) == 8
    assert stream(0, "fit", "a", 1).random() in draws
