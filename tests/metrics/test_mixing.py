"""Batch mixing and leakage: loops, closed forms, and embeddings whose mixing is known."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

import histoweave as hw


@pytest.fixture
def mixed():
    """300 rows of two regions in three sections; the regions differ, the sections do not but in composition."""
    rng = np.random.default_rng(0)
    section = np.repeat(["s1", "s2", "s3"], 100)
    region = np.where(rng.random(300) < np.repeat([0.8, 0.5, 0.2], 100), "tumour", "stroma")
    return rng.normal(size=(300, 5)) + 5 * (region == "tumour")[:, None], section, region


def test_neighbour_scores_against_loops(mixed):
    X, section, _ = mixed
    found = hw.metrics.batch_mixing(X, section, k=6, metric="euclidean")
    entropy, purity = [], []
    for i in range(300):
        near = sorted(set(range(300)) - {i}, key=lambda j, i=i: ((X[i] - X[j]) ** 2).sum())[:6]
        share = [np.mean(section[near] == s) for s in ("s1", "s2", "s3")]
        entropy.append(-sum(p * np.log(p) for p in share if p) / np.log(3))
        purity.append(np.mean(section[near] == section[i]))
    assert found["knn_entropy"] == pytest.approx(np.mean(entropy))
    assert found["batch_purity"] == pytest.approx(np.mean(purity))
    # same rows, batches shuffled: (n_b - 1) / (n - 1) of the neighbours are expected to be of the own batch
    assert found["batch_purity_mixed"] == pytest.approx(99 / 299, abs=0.02)


def test_silhouette_by_batch_is_that_of_luecken(mixed):
    X, section, region = mixed
    expected = []
    for name in ("tumour", "stroma"):
        rows = region == name
        expected.append(np.mean(1 - np.abs(silhouette_samples(X[rows], section[rows], metric="cosine"))))
    found = hw.metrics.batch_mixing(X, section, labels=region)
    assert found["silhouette_batch"] == pytest.approx(np.mean(expected))
    assert np.isnan(hw.metrics.batch_mixing(X, section, labels=section)["silhouette_batch"])


def test_composition_is_not_held_against_an_embedding(mixed):
    X, section, region = mixed
    naive, fair = (hw.metrics.batch_mixing(X, section, labels=r) for r in (None, region))
    assert naive["knn_entropy"] < naive["knn_entropy_mixed"] - 0.05  # regions alone separate the sections
    assert fair["knn_entropy"] == pytest.approx(fair["knn_entropy_mixed"], abs=0.03)
    assert fair["batch_purity"] == pytest.approx(fair["batch_purity_mixed"], abs=0.03)
    naive, fair = (hw.metrics.batch_leakage(X, section, labels=r) for r in (None, region))
    assert naive["linear"] > 0.15
    assert naive["knn"] > 0.15
    assert abs(fair["linear"]) < 0.1
    assert abs(fair["knn"]) < 0.1
    assert (fair["chance"], fair["n_regions"], fair["n"]) == (pytest.approx(1 / 3), 2, 300)


def test_sections_far_apart_are_seen_by_every_score(mixed):
    X, section, region = mixed
    X = X + 40 * np.eye(3)[np.unique(section, return_inverse=True)[1]] @ np.eye(3, 5)
    mixing = hw.metrics.batch_mixing(X, section, labels=region, metric="euclidean")
    assert mixing["knn_entropy"] == 0
    assert mixing["batch_purity"] == 1
    assert mixing["silhouette_batch"] < 0.2
    leakage = hw.metrics.batch_leakage(X, section, labels=region)
    assert (leakage["linear"], leakage["knn"]) == (1, 1)


def test_rows_that_repeat_within_a_group_give_nothing_away(mixed):
    _, section, _ = mixed
    rng = np.random.default_rng(1)
    patch = np.repeat(np.arange(30), 10)  # ten nearly equal rows a patch of tissue, ten patches a section
    X = rng.normal(size=(30, 5))[patch] + 0.01 * rng.normal(size=(300, 5))
    assert hw.metrics.batch_leakage(X, section, k=5)["knn"] > 0.9  # copies of every held-out row are in training
    assert hw.metrics.batch_leakage(X, section, groups=patch, k=5)["knn"] < 0.3


def test_small_batches_and_gaps_are_left_out(mixed):
    X, section, region = mixed
    rare = np.where(np.arange(300) < 3, "s4", section)  # 3 rows cannot be in 5 folds
    found = hw.metrics.batch_leakage(X, rare)
    assert found["n"] == 297
    X[:10], region = np.nan, region.astype(object)
    region[10:20] = None
    assert hw.metrics.batch_leakage(X, section, labels=region)["n"] == 280
    assert hw.metrics.batch_mixing(X, section, labels=region)["n"] == 280
    none = hw.metrics.batch_leakage(X, section, labels=section)
    assert (none["n_regions"], none["n"]) == (0, 0)
    assert np.isnan(none["linear"])


def test_same_seed_same_scores_and_collapse(mixed):
    X, section, region = mixed
    for score in (hw.metrics.batch_mixing, hw.metrics.batch_leakage):
        assert score(X, section, labels=region) == score(X, section, labels=region)
        assert score(X, section, random_state=1) == score(X, section, random_state=1)
    assert abs(hw.metrics.batch_leakage(np.ones((300, 4)), section)["linear"]) < 0.1


def test_bad_input(mixed):
    X, section, _ = mixed
    for score in (hw.metrics.batch_mixing, hw.metrics.batch_leakage):
        with pytest.raises(ValueError, match="one batch only"):
            score(X, np.full(300, "s1"))
        with pytest.raises(ValueError, match="same number of rows"):
            score(X, section[:5])
        with pytest.raises(ValueError, match="`k` must be >= 1"):
            score(X, section, k=0)
