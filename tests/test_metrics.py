"""Accuracy and its summary."""

from __future__ import annotations

import numpy as np
import pytest

from cosmosfl.evaluation.metrics import Measurement, at_moment, score, summarise


def test_top1_and_top5_by_hand():
    P = np.array([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]] * 4, np.float32)
    assert score(P, np.array([0, 1, 4, 5])) == (25.0, 75.0, 4)


def test_a_model_that_knows_nothing_is_not_right_by_default():
    P = np.full((10, 10), 0.1, np.float32)
    assert score(P, np.arange(10)) == (10.0, 50.0, 10)


def test_summary_has_the_sample_standard_deviation_and_the_worst_client():
    summary = summarise({"a": 80.0, "b": 90.0, "c": 70.0})
    assert (summary.mean, summary.std, summary.min) == (80.0, pytest.approx(10.0), 70.0)
    assert summarise({"a": 80.0}).std == 0
    assert summarise({}) is None


def test_a_moment_is_taken_at_its_last_round_or_at_a_given_one():
    measured = [Measurement(r, "client", id, 10.0 * r, 50.0, 5) for r in (0, 1) for id in "ab"]
    measured.append(Measurement(2, "client_after_fit", "a", 99.0, 99.0, 5))
    assert at_moment(measured, "client").per_client == {"a": 10.0, "b": 10.0}
    assert at_moment(measured, "client", round=0).mean == 0
    assert at_moment(measured, "client", metric="top5").mean == 50
    assert at_moment(measured, "oracle") is None
