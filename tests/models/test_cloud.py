"""Distances from the training rows: against singular vectors and the plain covariance."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave.models._cloud import Cloud, Ruler


def test_distance_is_mahalanobis_on_components_and_what_they_leave():
    """Shrinkage is small with 4,000 rows."""
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(10, 30))

    def draw(n, scale):
        return rng.normal(size=(n, 10)) * np.linspace(3, 1, 10) * scale @ plane + rng.normal(size=(n, 30)) * 0.3 + 5

    X, new = draw(4000, 1.0), draw(500, 3.0)
    cloud = Cloud.fit(X, scale=False, random_state=0)
    directions = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)[2][:10]

    def coordinates(values):
        centred = values - X.mean(axis=0)
        rest = centred - centred @ directions.T @ directions
        return np.column_stack([centred @ directions.T, np.log(np.sqrt((rest**2).mean(axis=1)))])

    Z, asked = coordinates(X), coordinates(new)
    centred = asked - Z.mean(axis=0)
    exact = np.sqrt(np.einsum("ij,jk,ik->i", centred, np.linalg.inv(np.cov(Z.T)), centred) / 11)
    np.testing.assert_allclose(np.exp(cloud.distance(new)), exact, rtol=0.05)


def test_share_is_of_the_squares():
    ruler = Ruler(np.ones(3), np.array([1.0, 2.0, 5.0]))
    assert ruler.share(None) == 1
    assert ruler.share(np.array([True, False, True])) == pytest.approx(6 / 8)


def test_arrays_make_it_again():
    X = np.random.default_rng(0).normal(size=(200, 12))
    cloud = Cloud.fit(X, scale=True, random_state=0)
    again = Cloud.from_arrays(cloud.arrays())
    np.testing.assert_array_equal(again.distance(X), cloud.distance(X))
