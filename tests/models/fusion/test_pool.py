"""The log-linear pool against closed forms, finite differences and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize, minimize_scalar
from scipy.special import log_softmax, softmax

import histoweave.models.fusion._pool as pool_module
from histoweave.metrics import expected_calibration_error
from histoweave.models.fusion._pool import FLOOR, LogPool


def simulate(n: int, sharpness: list[float], *, k: int = 3, seed: int = 0, shares=None):
    """Heads of independent evidence: each reports its posterior raised to ``sharpness`` and renormalised."""
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=shares)
    heads = []
    for power in sharpness:
        evidence = rng.normal(size=(n, k)) + 1.2 * np.eye(k)[y]  # log-likelihood ratios are 1.2 x
        heads.append(softmax(power * 1.2 * evidence, axis=1))
    return np.stack(heads), y


def naive_loss(theta, heads, y, penalty):
    m, k = len(heads), heads.shape[2]
    logits = sum(w * np.log(np.clip(p, FLOOR, None)) for w, p in zip(theta[:m], heads, strict=True)) + theta[m:]
    away = theta - np.concatenate([np.full(m, 1 / m), np.zeros(k)])
    return -log_softmax(logits, axis=1)[np.arange(len(y)), y].sum() + penalty / 2 * (away**2).sum()


def test_known_weights_are_recovered():
    heads, y = simulate(20_000, [0.5, 2.0])
    pool = LogPool().fit(heads, y)
    np.testing.assert_allclose(pool.weights, [2.0, 0.5], rtol=0.05)  # the inverse of what spoiled them
    np.testing.assert_allclose(pool.bias, 0, atol=0.05)


def test_useless_head_gets_no_weight():
    heads, y = simulate(2000, [1.0])
    junk = simulate(2000, [1.0], seed=1)[0]
    pool = LogPool().fit(np.concatenate([heads, junk]), y)
    assert pool.weights[1] < 0.05
    assert pool.weights[0] == pytest.approx(1, abs=0.1)


def test_one_head_is_temperature_scaling():
    heads, y = simulate(3000, [3.0])
    pool = LogPool(penalty=1e-9).fit(heads, y)
    logs = np.log(np.clip(heads[0], FLOOR, None))

    def loss(weight):
        return -log_softmax(weight * logs, axis=1)[np.arange(len(y)), y].sum()

    best = minimize_scalar(loss, bounds=(0.01, 5), method="bounded").x
    assert pool.weights[0] == pytest.approx(best, rel=0.02)  # biases are fitted too, and are near 0


def test_optimum_is_that_of_a_naive_optimiser():
    heads, y = simulate(400, [0.4, 1.5, 1.0], shares=[0.6, 0.3, 0.1])
    pool = LogPool().fit(heads, y)
    start = np.concatenate([np.full(3, 1 / 3), np.zeros(3)])
    peer = minimize(naive_loss, start, (heads, y, 4.0), "SLSQP", bounds=[(0, None)] * 3 + [(None, None)] * 3, tol=1e-10)
    found = np.concatenate([pool.weights, pool.bias])
    assert naive_loss(found, heads, y, 4.0) <= peer.fun + 1e-4
    np.testing.assert_allclose(found, peer.x, atol=0.02)


def test_gradient_against_finite_differences(monkeypatch):
    heads, y = simulate(60, [0.5, 1.5])
    seen = {}

    def keep(loss, start, **kwargs):
        seen["loss"] = loss
        return minimize(loss, start, **kwargs)

    monkeypatch.setattr(pool_module, "minimize", keep)
    LogPool().fit(heads, y)
    theta = np.array([0.3, 0.9, 0.2, -0.4, 0.1])
    value, gradient = seen["loss"](theta)
    assert value == pytest.approx(naive_loss(theta, heads, y, 4.0))
    np.testing.assert_allclose(gradient, approx_fprime(theta, lambda t: seen["loss"](t)[0], 1e-7), rtol=1e-4)


def test_overconfident_repetitive_heads_become_calibrated():
    heads, y = simulate(6000, [4.0], shares=[0.7, 0.2, 0.1])
    twice = np.concatenate([heads, heads])  # the same evidence twice must not count twice
    p = LogPool().fit(twice[:, :3000], y[:3000]).combine(twice[:, 3000:])
    names = np.array(["a", "b", "c"])
    before = expected_calibration_error(names[y[3000:]], heads[0, 3000:], classes=list(names))
    after = expected_calibration_error(names[y[3000:]], p, classes=list(names))
    assert before > 0.15
    assert after < 0.03


def test_class_without_rows_keeps_no_bias():
    heads, y = simulate(500, [1.0], k=3)
    rows = y != 2
    pool = LogPool().fit(heads[:, rows], y[rows])
    assert pool.bias[2] == 0
    two = heads[:, rows][:, :, :2]
    other = LogPool().fit(two, y[rows])  # the rest is as if the class did not exist
    np.testing.assert_allclose(pool.weights, other.weights)
    np.testing.assert_allclose(pool.bias[:2], other.bias)


def test_certain_zero_is_not_believed_entirely():
    p = LogPool.equal(2, 2).combine(np.array([[[1.0, 0.0]], [[0.2, 0.8]]]))
    assert 0 < p[0, 1] < 0.5
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_equal_trust_is_the_geometric_mean():
    heads, _ = simulate(50, [1.0, 0.5])
    expected = np.sqrt(heads[0] * heads[1])
    np.testing.assert_allclose(LogPool.equal(2, 3).combine(heads), expected / expected.sum(1, keepdims=True), rtol=1e-6)
