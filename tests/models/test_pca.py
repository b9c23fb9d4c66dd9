"""Principal components with features missing, against scikit-learn and the Gaussian's own formulas."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from histoweave._validate import HistoweaveWarning
from histoweave.models._pca import LinearMap


@pytest.fixture
def X():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(300, 3)) * [4, 3, 2]
    return (latent @ rng.normal(size=(3, 30)) + 5 + rng.normal(size=(300, 30))).astype(np.float64)


def test_with_all_features_scores_are_scikit_learns_but_for_the_stated_shrinkage(X):
    peer = PCA(3).fit(X)
    scores = LinearMap.principal(X, 3, 0).apply(X)
    shrinkage = 1 - peer.noise_variance_ / peer.explained_variance_  # posterior mean of probabilistic PCA
    np.testing.assert_allclose(scores, peer.transform(X) * shrinkage, rtol=1e-4, atol=1e-5)


def test_with_features_missing_it_is_the_gaussians_conditional_mean(X):
    peer = PCA(3).fit(X)
    present = np.random.default_rng(1).random(30) < 0.5
    U, noise = peer.components_.T, peer.noise_variance_
    D = np.diag(peer.explained_variance_ - noise)  # prior covariance of the scores
    Uo = U[present]
    gain = D @ Uo.T @ np.linalg.inv(Uo @ D @ Uo.T + noise * np.eye(present.sum()))
    expected = (X[:, present] - peer.mean_[present]) @ gain.T
    spoiled = np.where(present, X, 1e6)  # what is not there is not looked at
    np.testing.assert_allclose(LinearMap.principal(X, 3, 0).apply(spoiled, present), expected, rtol=1e-3, atol=1e-4)


def test_beats_zero_filling(X):
    linear = LinearMap.principal(X, 3, 0)
    full = linear.apply(X)
    present = np.random.default_rng(2).random(30) < 0.6
    estimated = linear.apply(X, present)
    filled = linear.apply(np.where(present, X, linear.mean))  # centred zeros, the usual way out
    error = [((v - full) ** 2).sum() for v in (estimated, filled)]
    assert error[0] < 0.3 * error[1]
    rebuilt = [v @ linear.components + linear.mean for v in (estimated, filled)]
    missing = [((v - X)[:, ~present] ** 2).mean() for v in rebuilt]
    assert missing[0] < 0.7 * missing[1]


def test_missing_rows_stay_missing_and_do_not_matter(X):
    gappy = np.concatenate([X, np.full((5, 30), np.nan)])
    scores = LinearMap.principal(gappy, 3, 0).apply(gappy)
    assert np.isnan(scores[300:]).all()
    np.testing.assert_array_equal(scores[:300], LinearMap.principal(X, 3, 0).apply(X))


def test_arrays_round_trip(X):
    linear = LinearMap.principal(X, 3, 0)
    again = LinearMap.from_arrays({k: v.copy() for k, v in linear.arrays().items()})
    assert np.array_equal(again.apply(X), linear.apply(X))


def test_fewer_rows_than_components_is_stated(X):
    with pytest.warns(HistoweaveWarning, match=r"more than 6 rows and 30 features allow; 5 are used"):
        linear = LinearMap.principal(X[:6], 10, 0)
    assert np.isfinite(linear.apply(X)).all()
    assert linear.apply(X).shape == (300, 5)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (0, 5)])
def test_nothing_to_learn_from(shape):
    with pytest.raises(ValueError, match="at least 2 rows and 2 features"):
        LinearMap.principal(np.zeros(shape), 2, 0)


def test_direction_without_variance_is_not_noise():
    rng = np.random.default_rng(0)
    flat = np.outer(rng.normal(size=50), rng.normal(size=6))  # rank one
    scores = LinearMap.principal(flat, 4, 0).apply(flat)
    assert np.isfinite(scores).all()
    assert np.abs(scores[:, 1:]).max() < 1e-3 * np.abs(scores[:, 0]).max()


def test_features_beside_the_components_stay_as_they_are(X):
    linear = LinearMap.principal(X, 3, 0)
    both = linear.beside(2)
    more = np.concatenate([X, np.random.default_rng(1).normal(size=(len(X), 2))], axis=1)
    np.testing.assert_allclose(both.apply(more)[:, :3], linear.apply(X), atol=1e-5)
    np.testing.assert_allclose(both.apply(more)[:, 3:], more[:, -2:], atol=1e-5)
    np.testing.assert_array_equal(LinearMap.from_arrays(both.arrays()).apply(more), both.apply(more))
