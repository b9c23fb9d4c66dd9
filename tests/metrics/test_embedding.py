"""Geometry of an embedding against closed forms and plain loops."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

import histoweave as hw


def test_effective_rank_of_known_spectra():
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(50, 4)) - 0.0)
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.normal(size=(6, 4)))
    for spectrum in ([1, 0, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1], [8, 4, 2, 1]):
        share = np.array(spectrum)[np.array(spectrum) > 0] / sum(spectrum)
        X = left @ np.diag(spectrum) @ right.T + 1000.0  # where the cloud lies does not count
        assert hw.metrics.effective_rank(X) == pytest.approx(np.prod(share**-share), rel=1e-4)


def test_effective_rank_of_a_collapsed_embedding_is_zero():
    assert hw.metrics.effective_rank(np.full((30, 8), 0.1)) == 0
    assert hw.metrics.effective_rank(np.zeros((30, 8))) == 0


def test_uniformity_and_alignment_against_loops():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 3))
    labels, groups = rng.choice(["a", "b", "c"], 40), rng.choice(["s", "t"], 40)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    square = {(i, j): ((unit[i] - unit[j]) ** 2).sum() for i, j in combinations(range(40), 2)}
    assert hw.metrics.uniformity(X, t=3) == pytest.approx(np.log(np.mean([np.exp(-3 * d) for d in square.values()])))
    for own, argument in ((np.arange(40), None), (groups, groups)):
        pairs = {name: [d for (i, j), d in square.items() if labels[i] == labels[j] == name and own[i] != own[j]]
                 for name in "abc"}  # fmt: skip
        expected = np.mean([np.mean(d) for d in pairs.values()])
        assert hw.metrics.alignment(X, labels, groups=argument) == pytest.approx(expected)


def test_alignment_of_two_views_is_the_mean_over_pairs():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 25, 4))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b)]
    expected = ((unit[0] - unit[1]) ** 2).sum(axis=1).mean()
    assert hw.metrics.alignment(np.concatenate([a, b]), [*range(25)] * 2) == pytest.approx(expected)
    assert hw.metrics.alignment(np.concatenate([a, 3 * a]), [*range(25)] * 2) == pytest.approx(0, abs=1e-12)


def test_uniformity_of_an_even_cover_of_a_high_sphere():
    X = np.random.default_rng(3).normal(size=(500, 400))
    assert hw.metrics.uniformity(X) == pytest.approx(-4, abs=0.05)
    assert hw.metrics.uniformity(np.ones((10, 3))) == pytest.approx(0, abs=1e-9)


def test_separation_against_loops():
    rng = np.random.default_rng(4)
    labels = rng.choice(["a", "b", "c"], 60, p=[0.5, 0.3, 0.2])
    X = rng.normal(size=(60, 3)) + 2 * (labels == "a")[:, None]
    found = hw.metrics.separation(X, labels, k=4, metric="euclidean")
    mean = X.mean(axis=0)
    parts = [X[labels == name] for name in "abc"]
    between = sum(len(p) * ((p.mean(axis=0) - mean) ** 2).sum() for p in parts) / 2
    within = sum(((p - p.mean(axis=0)) ** 2).sum() for p in parts) / 57
    assert found["calinski_harabasz"] == pytest.approx(between / within)
    assert found["silhouette"] == pytest.approx(silhouette_score(X, labels))
    assert found["silhouette_scaled"] == pytest.approx((found["silhouette"] + 1) / 2)
    share = {name: [] for name in "abc"}
    for i in range(60):
        near = sorted(set(range(60)) - {i}, key=lambda j, i=i: ((X[i] - X[j]) ** 2).sum())[:4]
        share[labels[i]].append(np.mean([labels[j] == labels[i] for j in near]))
    assert found["knn_purity"] == pytest.approx(np.mean([np.mean(v) for v in share.values()]))


def test_purity_of_noise_is_its_chance():
    rng = np.random.default_rng(5)
    labels = np.repeat(["a", "b"], [900, 300])
    found = hw.metrics.separation(rng.normal(size=(1200, 6)), labels)
    assert found["knn_purity"] == pytest.approx(found["knn_purity_chance"], abs=0.02)


def test_rows_without_values_or_label_are_left_out():
    rng = np.random.default_rng(6)
    X, labels = rng.normal(size=(30, 3)), np.repeat(["a", "b", "c"], 10).astype(object)
    Y, gappy = X.copy(), labels.copy()
    Y[:3], gappy[10:14] = np.nan, np.nan
    kept = np.r_[3:10, 14:30]
    assert hw.metrics.separation(Y, gappy) == hw.metrics.separation(X[kept], labels[kept])
    assert hw.metrics.alignment(Y, gappy) == pytest.approx(hw.metrics.alignment(X[kept], labels[kept]))
    assert hw.metrics.effective_rank(Y) == pytest.approx(hw.metrics.effective_rank(X[3:]))
    assert hw.metrics.uniformity(Y) == pytest.approx(hw.metrics.uniformity(X[3:]))


def test_bad_input():
    X = np.eye(4)
    with pytest.raises(ValueError, match="1 row with values"):
        hw.metrics.effective_rank(X[:1])
    with pytest.raises(ValueError, match="No two rows have one label and different `groups`"):
        hw.metrics.alignment(X, list("aabb"), groups=list("sstt"))
    with pytest.raises(ValueError, match="`labels` has 1 classes"):
        hw.metrics.separation(X, list("aaaa"))
    with pytest.raises(ValueError, match="`X` must be an array of numbers"):
        hw.metrics.uniformity([["a", "b"], ["c", "d"]])
    with pytest.raises(ValueError, match="`X` has 4, `labels` has 3"):
        hw.metrics.separation(X, list("aab"))
