"""Shapley values: the definition by orders of arrival, the axioms, and a fitted classifier's answers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave.models.explanation._contribution import answers, shapley, spot_contributions, subsets


def by_orders(value: dict, players: tuple) -> np.ndarray:
    """The definition: the mean over all orders of arrival of what a player adds to those before it."""
    out = {name: [] for name in players}
    for order in permutations(players):
        for place, name in enumerate(order):
            before = tuple(sorted(order[:place]))
            out[name].append(value[tuple(sorted((*before, name)))] - value[before])
    return np.array([np.mean(added, axis=0) for added in out.values()])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_value_is_the_mean_over_orders(n):
    players, rng = tuple("abcd"[:n]), np.random.default_rng(n)
    game = {s: rng.normal(size=(5, 2)) for s in subsets(players)}
    found = shapley(game, players)
    np.testing.assert_allclose(found, by_orders(game, players), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=0), game[players] - game[()], atol=1e-12)


def test_axioms_on_a_planted_game():
    """b and c are alike, d adds nothing: 8 from a alone, 3 more with b or c."""
    players = tuple("abcd")
    game = {s: np.array(8.0 * ("a" in s) + 3.0 * ("b" in s or "c" in s)) for s in subsets(players)}
    np.testing.assert_allclose(shapley(game, players), [8, 1.5, 1.5, 0])


@pytest.fixture(scope="module")
def planted():
    """Two equal blocks that tell the class, one of noise, and a classifier of all three."""
    rng = np.random.default_rng(0)
    y = np.repeat(["x", "y", "z"], [60, 30, 30])
    tells = np.eye(3)[pd.factorize(y)[0]] * 2 + rng.normal(size=(120, 3))
    features = {"a": tells, "b": tells.copy(), "noise": rng.normal(size=(120, 3))}
    order = rng.permutation(120)
    features, y = {k: v[order] for k, v in features.items()}, y[order]
    return hw.models.FusionClassifier(heads="linear").fit(features, y), features, y


def test_contributions_of_a_classifier(planted):
    clf, features, _ = planted
    probability, decided = answers(clf, features)
    assert clf.class_shares == pytest.approx([0.5, 0.25, 0.25])
    assert (decided[()] == "x").all()
    target = pd.Categorical(decided["a", "b", "noise"], categories=clf.classes).codes
    rows = np.arange(120)
    full = clf.predict_proba(features)[rows, target]
    empty = np.array([0.5, 0.25, 0.25])[target]
    players = ("a", "b", "noise")
    found = spot_contributions(probability, target, players)
    np.testing.assert_allclose(found.sum(axis=1), full - empty, atol=1e-12)
    logs = spot_contributions(probability, target, players, log=True)
    np.testing.assert_allclose(logs.sum(axis=1), np.log(full) - np.log(empty), atol=1e-12)
    mean = np.abs(found.mean(axis=0))
    assert mean[0] == pytest.approx(mean[1], abs=0.02)
    assert mean[2] < 0.15 * mean[0]


def test_equal_modalities_share_equally():
    rng = np.random.default_rng(1)
    y = np.repeat(["x", "y"], 40)
    X = rng.normal(size=(80, 4)) + 2 * (y == "y")[:, None]
    clf = hw.models.FusionClassifier(heads="linear").fit({"a": X, "b": X.copy()}, y)
    probability, _ = answers(clf, {"a": X, "b": X})
    found = spot_contributions(probability, (y == "y").astype(int), ("a", "b"))
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-10)


def test_modality_that_a_row_lacks_adds_nothing(planted):
    clf, features, _ = planted
    lacking = {name: block.copy() for name, block in features.items()}
    lacking["a"][:10] = np.nan
    for block in lacking.values():
        block[10] = np.nan
    probability, decided = answers(clf, lacking)
    target = np.zeros(120, dtype=int)
    found = spot_contributions(probability, target, ("a", "b", "noise"))
    np.testing.assert_array_equal(found[:10, 0], 0)
    alone = clf.predict_proba({name: lacking[name] for name in ("b", "noise")})
    np.testing.assert_allclose(found[:10].sum(axis=1), alone[:10, 0] - 0.5, atol=1e-12)
    assert np.isnan(found[10]).all()
    assert decided["a", "b", "noise"][10] is None


def test_class_shares_count_groups_and_survive_saving(planted, tmp_path):
    _, features, y = planted
    groups = np.where(y == "x", "one", [f"g{i}" for i in range(len(y))])  # 60 rows of one donor, all of class x
    clf = hw.models.FusionClassifier(heads="linear", n_inner=2).fit(features, y, groups=groups)
    counted = 60 / (1 + 59 * 0.1)  # Kish's effective size
    expected = np.array([counted, 30, 30]) / (counted + 60)
    np.testing.assert_allclose(clf.class_shares, expected)
    assert hw.models.FusionClassifier.load(clf.save(tmp_path / "clf")).class_shares == clf.class_shares
