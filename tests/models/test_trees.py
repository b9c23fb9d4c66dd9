"""Forests as flat arrays are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

from histoweave.models._trees import Trees


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 6))
    return X, np.stack([X[:, 0] ** 2 + X[:, 1], X[:, 2]], axis=1), rng.normal(size=(50, 6))


@pytest.mark.parametrize("leaf", [3, 200])  # no split at all
@pytest.mark.parametrize("weighted", [False, True])
def test_regression(drawn, leaf, weighted):
    X, y, new = drawn
    weight = np.linspace(0.1, 2, len(X)) if weighted else None
    forest = ExtraTreesRegressor(20, min_samples_leaf=leaf, random_state=4, max_features=0.5).fit(X, y, weight)
    trees = Trees.grow(X, y, 20, min_leaf=leaf, seed=4, max_features=0.5, row_weights=weight)
    for values in (X, new):  # training rows lie where ties with thresholds would show
        np.testing.assert_allclose(trees.predict(values), forest.predict(values), rtol=1e-5, atol=1e-6)


def test_indicators_of_classes_are_split_as_by_gini(drawn):
    """Not the same trees, since equal splits are told apart by rounding, but the same forest where there are many."""
    X, y, new = drawn
    codes = np.digitize(y[:, 0], [0.0, 1.5])
    forest = ExtraTreesClassifier(3000, min_samples_leaf=2, random_state=0, n_jobs=1).fit(X, codes)
    trees = Trees.grow(X, np.eye(3)[codes], 3000, min_leaf=2, seed=1, max_features="sqrt")
    np.testing.assert_allclose(trees.predict(new), forest.predict_proba(new), atol=0.03)


def test_arrays_are_all_there_is(drawn):
    X, y, new = drawn
    trees = Trees.grow(X, y, 5, min_leaf=1, seed=0)
    again = Trees(trees.arrays(), trees.depth)
    np.testing.assert_array_equal(again.predict(new), trees.predict(new))


def test_widened_leaves_hold_zero_elsewhere(drawn):
    X, y, new = drawn
    trees = Trees.grow(X, y, 5, min_leaf=1, seed=0)
    wide = trees.widened(np.array([1, 3]), 4).predict(new)
    np.testing.assert_array_equal(wide[:, [1, 3]], trees.predict(new))
    assert not wide[:, [0, 2]].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_single_precision_cannot_hold_is_refused(drawn, value):
    X, y, _ = drawn
    X[3, 2] = value
    with pytest.raises(ValueError, match="Trees need finite features"):
        Trees.grow(X, y, 5, min_leaf=1, seed=0)
