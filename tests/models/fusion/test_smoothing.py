"""Smoothing against the formulas written out spot by spot, and on maps whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from histoweave.models import FusionClassifier
from histoweave.models.fusion._smoothing import STRENGTHS, Smoother, within


def grid(side: int) -> sp.csr_matrix:
    at = np.arange(side * side).reshape(side, side)
    pairs = np.concatenate(
        [np.stack([at[:, 1:], at[:, :-1]]).reshape(2, -1), np.stack([at[1:], at[:-1]]).reshape(2, -1)], 1
    )
    half = sp.coo_array((np.ones(pairs.shape[1], bool), pairs), shape=(side * side,) * 2)
    return (half + half.T).tocsr().astype(bool)


def noisy(y: np.ndarray, n_classes: int, signal: float, seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(len(y), n_classes)) + signal * np.eye(n_classes)[y]
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def halves(side: int) -> np.ndarray:
    return (np.arange(side * side) % side >= side // 2).astype(int)


def test_vote_is_the_mean_of_the_neighbours():
    graph, p = grid(4), noisy(halves(4), 3, 1.0)
    found = Smoother("vote", 0.25).apply(p, graph)
    dense = graph.toarray()
    for i in range(16):
        np.testing.assert_allclose(found[i], 0.75 * p[i] + 0.25 * p[dense[i]].mean(axis=0))


@pytest.mark.parametrize("strength", [0.5, 4.0])
def test_potts_is_a_fixed_point_of_the_mean_field(strength):
    graph, p = grid(6), noisy(halves(6), 3, 1.0)
    found = Smoother("potts", strength).apply(p, graph)
    dense = graph.toarray()
    for i in range(36):
        expected = p[i] * np.exp(strength * found[dense[i]].mean(axis=0))
        np.testing.assert_allclose(found[i], expected / expected.sum(), atol=1e-4)


@pytest.mark.parametrize("kind", list(STRENGTHS))
def test_spot_without_neighbours_and_strength_zero_change_nothing(kind):
    graph, p = grid(3).tolil(), noisy(halves(3), 2, 1.0)
    graph[4, :] = graph[:, 4] = False
    found = Smoother(kind, 1.0).apply(p, graph.tocsr())
    np.testing.assert_allclose(found[4], p[4])
    np.testing.assert_array_equal(Smoother(kind, 0.0).apply(p, grid(3)), p)
    np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("kind", list(STRENGTHS))
def test_chosen_strong_on_broad_regions_and_zero_on_single_spots(kind):
    graph = grid(16)
    broad = halves(16)
    checkered = np.indices((16, 16)).sum(axis=0).ravel() % 2
    strong = Smoother(kind).fit(noisy(broad, 2, 1.0), broad, graph)
    assert strong.strength > 0
    p = noisy(broad, 2, 1.0, seed=1)
    assert (strong.apply(p, graph).argmax(1) == broad).mean() > (p.argmax(1) == broad).mean() + 0.1
    assert Smoother(kind).fit(noisy(checkered, 2, 1.0), checkered, graph).strength == 0


def test_only_edges_within_a_fold():
    fold = np.array([0, 0, 1, 1])
    graph = sp.csr_array(~np.eye(4, dtype=bool))
    expected = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], bool)
    np.testing.assert_array_equal(within(graph, fold).toarray(), expected)


@pytest.fixture(scope="module")
def sections():
    """Four sections of two halves, each seen dimly."""
    y = np.tile(halves(10), 4)
    X = np.random.default_rng(0).normal(size=(400, 3)) + 0.8 * y[:, None]
    graph = sp.block_diag([grid(10)] * 4, format="csr").astype(bool)
    return X.astype(np.float32), y, np.repeat(np.arange(4), 100), graph


def test_classifier_reports_before_and_after_and_helps_on_a_new_section(sections, tmp_path):
    X, y, group, graph = sections
    train, test = np.flatnonzero(group < 3), np.flatnonzero(group == 3)
    clf = FusionClassifier(heads="linear", smoothing="potts")
    clf.fit({"gene": X[train]}, y[train].astype(str), groups=group[train], graph=graph[train][:, train])
    row = clf.history.iloc[0]
    assert row["smoothing_strength"] > 0
    assert row["macro_f1"] > row["macro_f1_before"] + 0.05
    plain = FusionClassifier(heads="linear").fit({"gene": X[train]}, y[train].astype(str), groups=group[train])
    assert row["macro_f1_before"] == pytest.approx(plain.history["macro_f1"][0])
    blocks, near, truth = {"gene": X[test]}, graph[test][:, test], y[test].astype(str)
    smooth = (clf.predict(blocks, graph=near)["predicted"] == truth).mean()
    assert smooth > (plain.predict(blocks)["predicted"] == truth).mean() + 0.05
    np.testing.assert_array_equal(clf.predict(blocks)["predicted"], plain.predict(blocks)["predicted"])
    clf.save(tmp_path / "model")
    assert "macro_f1_before" in (tmp_path / "model" / "README.md").read_text()
    again = FusionClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(blocks, graph=near), clf.predict_proba(blocks, graph=near))


def test_promises_still_hold_after_smoothing(sections):
    X, y, group, graph = sections
    clf = FusionClassifier(heads="linear", smoothing="vote", coverage=0.8)
    clf.fit({"gene": X}, y.astype(str), groups=group, graph=graph)
    new = np.random.default_rng(1).normal(size=X.shape) + 0.8 * y[:, None]
    found = clf.predict({"gene": new.astype(np.float32)}, graph=graph)
    kept = ~found["abstain"]
    right = found["predicted"] == y.astype(str)
    assert 0.7 < kept.mean() < 0.9
    assert right[kept].mean() > right.mean()
    assert found["confidence"].mean() < right.mean() + 0.05  # four groups are few, which makes it modest


def test_smoothing_without_neighbours_is_refused(sections):
    X, y, group, _ = sections
    with pytest.raises(ValueError, match="needs `graph`"):
        FusionClassifier(smoothing="potts").fit({"gene": X}, y.astype(str), groups=group)
    with pytest.raises(ValueError, match=r"`graph` must be .* \(400, 400\), got \(100, 100\)"):
        FusionClassifier(smoothing="potts").fit({"gene": X}, y.astype(str), groups=group, graph=grid(10))
    with pytest.raises(ValueError, match="smoothing"):
        FusionClassifier(smoothing="median")
