"""Graphs, communities and mixtures behind the domains, against naive versions and planted partitions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from histoweave.models import _domains


def blobs(n_each=25, centres=((0, 0), (8, 0), (0, 8)), seed=0):
    rng = np.random.default_rng(seed)
    X = np.concatenate([rng.normal(c, 1.0, (n_each, 2)) for c in centres])
    return X, np.repeat(np.arange(len(centres)), n_each)


def test_components_are_those_of_the_naive_neighbourhood_mean():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4)).astype(np.float32)
    X[7] = np.nan
    rows_of = {"a": np.arange(30), "b": np.arange(30, 60)}
    ring = sp.random(60, 60, 0.05, random_state=1, format="csr").astype(bool)
    ring = (ring + ring.T).tolil()
    ring.setdiag(False)
    found = _domains.smooth_components(X, rows_of, [ring.tocsr()], 4)
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [7]

    scaled = X.astype(float)
    for rows in rows_of.values():
        scaled[rows] = (scaled[rows] - np.nanmean(scaled[rows], axis=0)) / np.nanstd(scaled[rows], axis=0)
    mean = np.full((60, 4), np.nan)
    for i in range(60):
        members = [i, *(j for j in range(60) if ring[i, j] and j != 7)]
        mean[i] = scaled[members].mean(axis=0)
    mean[7] = np.nan
    for rows in rows_of.values():
        mean[rows] -= np.nanmean(mean[rows], axis=0)
    kept = np.delete(np.arange(60), 7)
    distance = lambda Z: np.linalg.norm(Z[kept][:, None] - Z[kept][None], axis=2)  # noqa: E731
    ratio = distance(found)[0, 1] / distance(mean)[0, 1]
    np.testing.assert_allclose(distance(found), ratio * distance(mean), atol=1e-4)
    assert np.nansum(np.nanvar(found, axis=0)) == pytest.approx(1)


def test_edge_weights_are_the_share_of_common_neighbours():
    X, _ = blobs(8)
    graph = _domains.neighbour_graph(X, np.full(len(X), "s"), 4).toarray()
    order = np.argsort(np.linalg.norm(X[:, None] - X[None], axis=2), axis=1)
    near = [set(row[:5].tolist()) for row in order]  # itself and 4 more
    for i in range(len(X)):
        for j in range(len(X)):
            linked = i != j and (j in near[i] or i in near[j])
            expected = len(near[i] & near[j]) / len(near[i] | near[j]) if linked else 0
            assert graph[i, j] == pytest.approx(expected), (i, j)


def test_neighbours_come_evenly_from_all_sections():
    X, truth = blobs(20)
    far = np.concatenate([X, X + 2])  # twice the spread of a group
    graph = _domains.neighbour_graph(far, np.repeat(["s", "t"], len(X)), 8)
    across = graph[: len(X), len(X) :].toarray()
    assert (across > 0).any(axis=1).all()
    same = np.add.outer(truth, -truth) == 0
    assert across[same].sum() / across.sum() > 0.9


def test_communities_have_the_largest_modularity():
    graph = sp.block_diag([np.ones((n, n)) for n in (3, 4, 5)], format="lil")
    graph[0, 11] = graph[11, 0] = graph[4, 8] = graph[8, 4] = 0.5
    graph.setdiag(0)
    communities = _domains.Communities(graph.tocsr())
    assert communities.cut(1.0, 0).tolist() == [2] * 3 + [1] * 4 + [0] * 5
    assert communities.cut(0.001, 0).tolist() == [0] * 12


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_the_number_asked_for_is_found(k):
    X, truth = blobs(40)
    communities = _domains.Communities(_domains.neighbour_graph(X, np.full(len(X), "s"), 10))
    labels, resolution = communities.cut_into(k, seed=1)
    assert sorted(set(labels)) == list(range(k))
    assert resolution > 0
    if k == 3:
        assert adjusted_rand_score(truth, labels) > 0.95


def test_parts_that_no_resolution_joins_are_merged_by_their_links():
    graph = sp.block_diag([np.ones((n, n)) - np.eye(n) for n in (9, 8, 7, 3)], format="lil")
    graph[24, 9] = graph[9, 24] = 1e-9  # the smallest hangs on the second
    labels, _ = _domains.Communities(graph.tocsr()).cut_into(3, seed=0)
    assert labels.tolist() == [1] * 9 + [0] * 8 + [2] * 7 + [0] * 3


def test_more_communities_than_rows_are_refused():
    X, _ = blobs(4)
    communities = _domains.Communities(_domains.neighbour_graph(X, np.full(12, "s"), 3))
    with pytest.raises(ValueError, match="n_domains=13.*too many"):
        communities.cut_into(13, seed=0)


def test_mixture_recovers_clusters_and_their_number():
    X, truth = blobs(60)
    for k in (3, None):
        labels, found = _domains.mixture(X, k, 0)
        assert found == 3
        assert adjusted_rand_score(truth, labels) > 0.95


def test_components_are_the_most_probable_of_a_spherical_mixture():
    X, _ = blobs(60, centres=((0, 0), (3, 0), (0, 3)))
    labels, _ = _domains.mixture(X, 3, 0)
    means = np.stack([X[labels == c].mean(axis=0) for c in range(3)])
    likelihood = -((X[:, None] - means) ** 2).sum(axis=2)  # of Gaussians alike, but for constants
    np.testing.assert_array_equal(labels, likelihood.argmax(axis=1))


@pytest.mark.parametrize("shape", [(200, 3), (400, 15)])
def test_noise_is_one_domain(shape):
    found = [
        _domains.mixture(np.random.default_rng(seed).normal(size=shape) * np.linspace(2, 1, shape[1]), None, seed)[1]
        for seed in range(5)
    ]
    assert np.median(found) == 1


def test_criterion_is_the_likelihood_of_a_mixture_with_one_covariance():
    X, truth = blobs(40)
    X[:, 1] += X[:, 0]
    residual = X - np.stack([X[truth == c].mean(axis=0) for c in range(3)])[truth]
    log_p = multivariate_normal(cov=residual.T @ residual / len(X)).logpdf(residual) - np.log(3)
    free = len(X) * (np.log(2 * np.pi) + 1) * 2  # constants of the data
    expected = -2 * log_p.sum() - free + 2 * 2 * np.log(len(X))
    assert _domains.criterion(X, truth, len(X)) == pytest.approx(expected)
    half = _domains.criterion(X, truth, len(X) / 2)
    assert 2 * half - 8 * np.log(len(X) / 2) == pytest.approx(expected - 4 * np.log(len(X)))


def test_fewer_observations_than_rows_tell_fewer_components():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(30, 2)), 10, axis=0)  # ten near copies of 30 draws of one cloud
    X += rng.normal(scale=0.05, size=X.shape)
    as_given, counted_once = (_domains.mixture(X, None, 0, shared=shared)[1] for shared in (1, 10))
    assert counted_once == 1 < as_given


def test_more_components_than_different_rows():
    X = np.repeat([[0.0, 0.0], [1.0, 0.0]], 10, axis=0)
    assert _domains.mixture(X, 2, 0)[0].tolist() == [0] * 10 + [1] * 10
    with pytest.raises(ValueError, match="only 2 different values: `n_domains=3`"):
        _domains.mixture(X, 3, 0)
    assert _domains.mixture(np.zeros((20, 2)), None, 0)[1] == 1


def test_number_of_components_of_a_few_rows():
    assert _domains.mixture(np.random.default_rng(0).normal(size=(8, 6)), None, 0)[1] == 1


def test_what_is_missing_is_taken_from_similar_rows():
    X, truth = blobs(20)
    other = np.where(truth[:, None] == 1, 5.0, -5.0) + np.zeros((60, 2))
    hidden = other.copy()
    hidden[::4] = np.nan
    np.testing.assert_allclose(_domains.filled([X, hidden])[:, 2:], other)
    np.testing.assert_array_equal(_domains.filled([X, other]), np.hstack([X, other]))


def test_numbers_go_by_size():
    assert _domains.by_size(np.array([7, 3, 3, 7, 3, 1])).tolist() == [1, 0, 0, 1, 0, 2]
    assert _domains.by_size(np.array([5, 2])).tolist() == [0, 1]


def test_most_central_partition_and_stability():
    a, b, c = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 2])
    best, stability = _domains.most_central([c, a, b])
    scores = [adjusted_rand_score(c, a), adjusted_rand_score(c, b), adjusted_rand_score(a, b)]
    assert stability == pytest.approx(np.mean(scores))
    assert best == int(np.argmax([scores[0] + scores[1], scores[0] + scores[2], scores[1] + scores[2]]))
    assert _domains.most_central([a, a])[1] == 1
    assert np.isnan(_domains.most_central([a])[1])
