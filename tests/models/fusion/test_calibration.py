"""Calibration against truth that is known, scikit-learn, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression

from histoweave.metrics import expected_calibration_error
from histoweave.models.fusion._calibration import KEPT_SLOPE, KINDS, Calibrator

NAMES = ["a", "b", "c"]


def simulate(n: int, seed: int, distort=lambda p: p):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    p = softmax(1.3 * (rng.normal(size=(n, 3)) + 1.3 * np.eye(3)[y]), axis=1)
    q = distort(p)
    return q / q.sum(axis=1, keepdims=True), y


def error(p, y):
    return expected_calibration_error(np.array(NAMES)[y], p, classes=NAMES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("power", [0.3, 4.0])
def test_wrong_temperature_is_undone(kind, power):
    distort = lambda p: p**power  # noqa: E731
    p, y = simulate(2000, 0, distort)
    new, truth = simulate(4000, 1, distort)
    after = Calibrator(kind).fit(p, y, np.ones(len(y))).apply(new)
    assert error(new, truth) > 0.1
    assert error(after, truth) < 0.03
    np.testing.assert_allclose(after.sum(axis=1), 1)


def test_isotonic_mends_what_a_temperature_cannot():
    def squash(p):  # sure of little things, never sure of great ones: no power of p is the way back
        return 0.25 + 0.5 / (1 + np.exp(-30 * (p - 0.5)))

    p, y = simulate(3000, 0, squash)
    new, truth = simulate(6000, 1, squash)
    left = {kind: error(Calibrator(kind).fit(p, y, np.ones(len(y))).apply(new), truth) for kind in KINDS}
    assert left["isotonic"] < 0.03
    assert left["isotonic"] < left["temperature"]


def test_isotonic_is_scikit_learns_on_all_classes_at_once_and_keeps_the_ranking():
    p, y = simulate(500, 2, lambda p: p**3)
    weights = np.random.default_rng(0).uniform(0.1, 2, 500)
    calibrator = Calibrator("isotonic").fit(p, y, weights)
    scaled = calibrator.scale.combine(p[None])
    peer = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    peer.fit(scaled.ravel(), np.eye(3)[y].ravel(), np.repeat(weights, 3))
    new, _ = simulate(300, 3, lambda p: p**3)
    scaled = calibrator.scale.combine(new[None])
    expected = (1 - KEPT_SLOPE) * peer.predict(scaled.ravel()).reshape(scaled.shape) + KEPT_SLOPE * scaled
    after = calibrator.apply(new)
    np.testing.assert_allclose(after, expected / expected.sum(axis=1, keepdims=True), atol=1e-9)
    np.testing.assert_array_equal(after.argsort(axis=1), scaled.argsort(axis=1))


def test_class_shares_come_back():
    rng = np.random.default_rng(0)
    y = rng.choice(3, 3000, p=[0.8, 0.15, 0.05])
    balanced = softmax(1.3 * rng.normal(size=(3000, 3)) + 1.7 * np.eye(3)[y], axis=1)
    after = Calibrator().fit(balanced, y, np.ones(3000)).apply(balanced)
    np.testing.assert_allclose(after.mean(axis=0), [0.8, 0.15, 0.05], atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip_is_exact(kind):
    p, y = simulate(200, 0)
    calibrator = Calibrator(kind).fit(p, y, np.ones(200))
    again = Calibrator.from_state(*calibrator.state())
    np.testing.assert_array_equal(again.apply(p), calibrator.apply(p))
    np.testing.assert_allclose(Calibrator.identity(3).apply(p), p, atol=1e-3)
