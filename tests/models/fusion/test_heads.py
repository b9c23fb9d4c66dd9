"""Heads against scikit-learn, which they store as plain arrays."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from histoweave.models.fusion._heads import HEADS, ForestHead, LinearHead


def data(n_classes: int, n: int = 150, d: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.sort(rng.choice(n_classes, n, p=np.arange(1, n_classes + 1) / sum(range(1, n_classes + 1))))
    X = (rng.normal(size=(n, d)) + y[:, None] * np.linspace(0, 1, d)).astype(np.float32)
    return X, y, rng.normal(size=(80, d)).astype(np.float32) * 2


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("C", [0.03, 1.0])
def test_linear_is_scikit_learns(n_classes, C):
    X, y, new = data(n_classes)
    scaler = StandardScaler().fit(X.astype(float))
    peer = LogisticRegression(C=C, class_weight="balanced", max_iter=1000).fit(scaler.transform(X.astype(float)), y)
    head = LinearHead(C).fit(X, y, n_classes, 0)
    expected = peer.predict_proba(scaler.transform(new.astype(float)))
    np.testing.assert_allclose(head.predict_proba(new), expected, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("min_leaf", [1, 5])
def test_forest_is_scikit_learns(n_classes, min_leaf):
    X, y, new = data(n_classes)
    peer = ExtraTreesClassifier(2000, min_samples_leaf=min_leaf, class_weight="balanced", random_state=3).fit(X, y)
    head = ForestHead(2000, min_leaf).fit(X, y, n_classes, 3)
    for values in (X, new):  # other trees, but many of them
        np.testing.assert_allclose(head.predict_proba(values), peer.predict_proba(values), atol=0.05)


@pytest.mark.parametrize("kind", list(HEADS))
def test_class_without_rows_has_probability_zero(kind):
    X, y, new = data(3)
    shifted = np.where(y == 2, 4, y)  # classes 0, 1 and 4 of 5
    head, plain = HEADS[kind]().fit(X, shifted, 5, 0), HEADS[kind]().fit(X, y, 3, 0)
    p = head.predict_proba(new)
    assert np.all(p[:, [2, 3]] == 0)
    np.testing.assert_allclose(p[:, [0, 1, 4]], plain.predict_proba(new), atol=1e-12)
    np.testing.assert_allclose(p.sum(axis=1), 1)


@pytest.mark.parametrize("kind", list(HEADS))
def test_two_of_three_classes(kind):
    X, y, new = data(2)
    p = HEADS[kind]().fit(X, np.where(y == 1, 2, 0), 3, 0).predict_proba(new)
    np.testing.assert_allclose(p[:, [0, 2]], HEADS[kind]().fit(X, y, 2, 0).predict_proba(new), atol=1e-12)
    assert np.all(p[:, 1] == 0)


@pytest.mark.parametrize("kind", list(HEADS))
def test_state_round_trip_is_exact(kind):
    X, y, new = data(3)
    head = HEADS[kind]().fit(X, y, 3, 0)
    config, arrays = head.state()
    assert config["kind"] == kind
    again = HEADS[kind].from_state(config, {k: v.copy() for k, v in arrays.items()})
    assert np.array_equal(again.predict_proba(new), head.predict_proba(new))


def test_constant_feature_carries_nothing():
    X, y, new = data(2)
    padded = [np.concatenate([v, np.full((len(v), 1), 7.0)], axis=1) for v in (X, new)]
    p = LinearHead().fit(padded[0], y, 2, 0).predict_proba(padded[1])
    np.testing.assert_allclose(p, LinearHead().fit(X, y, 2, 0).predict_proba(new), atol=1e-6)


@pytest.mark.parametrize("kind", list(HEADS))
def test_balanced_heads_do_not_favour_the_common_class(kind):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [380, 20])
    X = rng.normal(size=(400, 3)) + 1.5 * y[:, None]
    new_y = np.repeat([0, 1], 300)
    guess = HEADS[kind]().fit(X, y, 2, 0).predict_proba(rng.normal(size=(600, 3)) + 1.5 * new_y[:, None]).argmax(1)
    assert (guess[new_y == 1] == 1).mean() > (0.8 if kind == "linear" else 0.4)
