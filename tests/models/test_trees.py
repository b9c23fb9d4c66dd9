"""Forests as flat arrays say what scikit-learn's say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestRegressor

from histoweave.models._trees import Trees


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 6))
    return X, np.stack([X[:, 0] ** 2 + X[:, 1], X[:, 2]], axis=1), rng.normal(size=(50, 6))


@pytest.mark.parametrize("kind", [ExtraTreesRegressor, RandomForestRegressor])
def test_regression(drawn, kind):
    X, y, new = drawn
    forest = kind(20, min_samples_leaf=3, random_state=0).fit(X, y)
    trees = Trees.of(forest.estimators_, np.concatenate([e.tree_.value[:, :, 0] for e in forest.estimators_]))
    np.testing.assert_allclose(trees.predict(new), forest.predict(new), rtol=1e-5, atol=1e-6)


def test_classification_and_one_leaf(drawn):
    X, y, new = drawn
    codes = (y[:, 0] > 1).astype(int)
    for leaf in (2, 200):  # no split at all
        forest = ExtraTreesClassifier(10, min_samples_leaf=leaf, random_state=0).fit(X, codes)
        shares = [e.tree_.value[:, 0] / e.tree_.value[:, 0].sum(axis=1, keepdims=True) for e in forest.estimators_]
        trees = Trees.of(forest.estimators_, np.concatenate(shares))
        np.testing.assert_allclose(trees.predict(new), forest.predict_proba(new), atol=1e-6)


def test_arrays_are_all_there_is(drawn):
    X, y, new = drawn
    forest = ExtraTreesRegressor(5, random_state=0).fit(X, y)
    trees = Trees.of(forest.estimators_, np.concatenate([e.tree_.value[:, :, 0] for e in forest.estimators_]))
    again = Trees(trees.arrays(), trees.depth)
    np.testing.assert_array_equal(again.predict(new), trees.predict(new))
