"""The gate: its gradient, what it learns about who knows what, what a useless modality costs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import log_softmax, softmax

import histoweave.models.fusion._gate as gate_module
from histoweave.models import FusionClassifier
from histoweave.models.fusion._gate import Gate
from histoweave.models.fusion._pool import LogPool

NAMES = np.array(["region_1", "region_2", "region_3", "region_4"], dtype=object)


def blocks_of(image: list[int], gene: list[int], *, n: int = 400, seed: int = 0, strength: float = 3.0):
    """Two modalities, each of which sees the classes only as the groups named for it."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    found = {}
    for name, seen in (("image", image), ("gene", gene)):
        signal = strength * np.eye(4)[np.asarray(seen)[y]]
        found[name] = np.concatenate([signal + rng.normal(size=(n, 4)), rng.normal(size=(n, 4))], axis=1)
    return found, NAMES[y], rng.integers(0, 6, n)


def macro_f1(clf, blocks, y, **kwargs):
    from sklearn.metrics import f1_score

    return f1_score(y, clf.predict(blocks, **kwargs)["predicted"].to_numpy(), average="macro")


SPLIT = {"image": [0, 1, 2, 2], "gene": [0, 0, 1, 2]}


@pytest.mark.parametrize("seed", range(3))
def test_weights_say_which_modality_tells_a_region_spot_by_spot(seed):
    blocks, y, groups = blocks_of(**SPLIT, seed=seed)
    clf = FusionClassifier("gated", heads=("linear",)).fit(blocks, y, groups=groups)
    new, truth, _ = blocks_of(**SPLIT, n=1200, seed=100 + seed)
    weights = clf.spot_weights(new)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    by_image = np.isin(truth, NAMES[:2])
    assert np.mean((weights["image"] > 0.5).to_numpy() == by_image) > 0.9
    assert macro_f1(clf, new, truth) > max(macro_f1(clf, new, truth, modalities=[m]) for m in new) + 0.15


@pytest.mark.parametrize("method", ["stack", "gated"])
@pytest.mark.parametrize("useless", ["image", "gene"])
def test_useless_modality_costs_less_than_a_hundredth(method, useless):
    lost = []
    for seed in range(3):
        seen = {"image": [0, 1, 2, 3], "gene": [0, 1, 2, 3]} | {useless: [0, 0, 0, 0]}
        blocks, y, groups = blocks_of(**seen, seed=seed, strength=2.0)
        clf = FusionClassifier(method, heads=("linear",)).fit(blocks, y, groups=groups)
        new, truth, _ = blocks_of(**seen, n=1500, seed=100 + seed, strength=2.0)
        lost.append(max(macro_f1(clf, new, truth, modalities=[m]) for m in new) - macro_f1(clf, new, truth))
        assert clf.modality_weights()[useless] < 0.3 * clf.modality_weights().sum()
    assert np.mean(lost) < 0.01


def heads(n: int = 60, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return softmax(rng.normal(size=(4, n, 3)) + 1.5 * np.eye(3)[y], axis=2), y, rng.uniform(0.2, 2, n)


def naive_loss(theta, p, y, weights, penalty):
    """Row by row, as the class describes it."""
    u, total = theta.reshape(2, -1), penalty * (theta**2).sum() / 2
    pools = [LogPool().fit(p[m], y, weights, biased=False).combine(p[m]) for m in (slice(0, 2), slice(2, 4))]
    for i in range(len(y)):
        scores = []
        for m, pooled in enumerate(pools):
            q = pooled[i]
            certainty = 1 + (q * np.log(q)).sum() / np.log(3)
            scores.append(u[m] @ np.concatenate([q - 1 / 3, [certainty, 1]]))
        g = softmax(scores)
        total -= weights[i] * log_softmax(g[0] * np.log(pools[0][i]) + g[1] * np.log(pools[1][i]))[y[i]]
    return total


def test_loss_and_gradient(monkeypatch):
    p, y, weights = heads()
    seen = {}

    def keep(loss, start, **kwargs):
        seen["loss"] = loss
        return minimize(loss, start, **kwargs)

    monkeypatch.setattr(gate_module, "minimize", keep)
    Gate(np.array([0, 0, 1, 1])).fit(p, y, weights)
    theta = np.random.default_rng(1).normal(size=10)
    value, gradient = seen["loss"](theta)
    assert value == pytest.approx(naive_loss(theta, p, y, weights, 0.25))
    np.testing.assert_allclose(gradient, approx_fprime(theta, lambda t: seen["loss"](t)[0], 1e-7), rtol=1e-3, atol=1e-5)


def test_state_round_trip_is_exact():
    p, y, weights = heads()
    gate = Gate(np.array([0, 0, 1, 1])).fit(p, y, weights)
    again = Gate.from_arrays(gate.arrays())
    assert np.array_equal(again.combine(p), gate.combine(p))


def test_rows_weigh_what_they_have():
    blocks, y, groups = blocks_of(**SPLIT, n=200)
    clf = FusionClassifier("gated", heads=("linear",)).fit(blocks, y, groups=groups)
    blocks["gene"][:5] = np.nan
    blocks["image"][3:8] = np.nan
    weights = clf.spot_weights(blocks)
    assert (weights.loc[:2, "image"] == 1).all()
    assert weights.loc[3:4].isna().all(axis=None)
    assert (weights.loc[5:7, "gene"] == 1).all()
    with pytest.raises(ValueError, match="method='gated'"):
        FusionClassifier("stack").spot_weights(blocks)
