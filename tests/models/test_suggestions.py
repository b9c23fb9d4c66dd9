"""Greedy facility location against naive loops and the best of all choices."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from histoweave.models import _suggestions
from histoweave.models._suggestions import choose, distances, uncertainty


def alone(row, free):
    return np.array([row]), np.zeros(len(free), dtype=bool)


@pytest.fixture
def task():
    rng = np.random.default_rng(3)
    labelled = np.zeros(14, dtype=bool)
    labelled[[2, 7]] = True
    return rng.normal(size=(14, 3)), rng.random(14), labelled


def cost(X, weight, labels) -> float:
    return sum(w * min(np.linalg.norm(x - X[k]) for k in labels) for x, w in zip(X, weight, strict=True))


def test_margin():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0], [np.nan] * 3])
    np.testing.assert_allclose(uncertainty(p), [0.8, 0.3, 0.0, 1.0])


def test_distances(task):
    X = task[0]
    naive = [[np.linalg.norm(x - X[k]) for k in (1, 5, 9)] for x in X]
    np.testing.assert_allclose(distances(X, np.array([1, 5, 9])), naive, atol=1e-7)


def test_each_step_lowers_the_weighted_distance_most(task):
    X, weight, labelled = task
    labels = [2, 7]
    for group in choose(X, weight, labelled, ~labelled, 5, alone, np.random.default_rng(0)):
        costs = {k: cost(X, weight, [*labels, k]) for k in range(14) if k not in labels}
        assert group.tolist() == [min(costs, key=costs.get)]
        labels += group.tolist()
    assert len(labels) == 7


def test_greedy_reaches_most_of_what_the_best_choice_does(task):
    X, weight, labelled = task
    groups = choose(X, weight, labelled, ~labelled, 3, alone, np.random.default_rng(0))
    start = cost(X, weight, [2, 7])
    best = min(cost(X, weight, [2, 7, *more]) for more in combinations(np.flatnonzero(~labelled), 3))
    found = cost(X, weight, [2, 7, *np.concatenate(groups)])
    assert start - found >= (1 - 1 / np.e) * (start - best)


def test_what_is_near_is_left_out_and_choice_ends_when_nothing_is_free(task):
    X, weight, labelled = task
    blocked = np.zeros(14, dtype=bool)
    blocked[:10] = True
    groups = choose(
        X, weight, labelled, ~labelled, 20, lambda row, free: (np.array([row]), blocked), np.random.default_rng(0)
    )
    chosen = np.concatenate(groups)
    assert set(chosen[1:]) <= set(range(10, 14))
    assert len(set(chosen)) == len(chosen)
    assert set(range(10, 14)) <= set(chosen)


def test_a_sample_of_the_rows_chooses_alike(monkeypatch):
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(c, 0.1, size=(200, 2)) for c in ((0, 0), (5, 0), (0, 5))])
    monkeypatch.setattr(_suggestions, "MOST_ROWS", 100)
    none = np.zeros(600, dtype=bool)
    chosen = np.concatenate(choose(X, np.ones(600), none, ~none, 3, alone, np.random.default_rng(1)))
    assert sorted(chosen // 200) == [0, 1, 2]  # one of each cloud
