"""Inner folds and predictions out of fold, against a naive refit."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave.models.fusion._heads import N_LIGHT, ForestHead, LinearHead
from histoweave.models.fusion._inner import LINEAR_C, apart, candidates, fit_head, inner_folds


def rows(n_groups: int = 9, per_group: int = 20, k: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), per_group)
    y = rng.integers(0, k, len(groups))
    return rng.normal(size=(len(y), 4)) + y[:, None], y, groups


@pytest.mark.parametrize("n_folds", [2, 5, 50])
def test_groups_are_never_split(n_folds):
    _, y, groups = rows()
    fold = inner_folds(y, groups, n_folds, 0)
    assert len(np.unique(fold)) == min(n_folds, 9)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in np.unique(groups))
    assert np.array_equal(fold, inner_folds(y, groups, n_folds, 0))


def test_one_group_gives_no_folds():
    _, y, groups = rows()
    assert np.all(inner_folds(y, np.zeros_like(groups), 5, 0) == -1)


def test_fewer_rows_a_class_than_folds():
    fold = inner_folds(np.array([0, 0, 1, 1, 1]), np.arange(5), 5, 0)  # scikit-learn refuses five folds here
    assert len(np.unique(fold)) == 3


def test_classes_are_balanced_where_they_can_be():
    _, y, groups = rows(n_groups=200, per_group=1)
    fold = inner_folds(y, groups, 5, 0)
    counts = np.array([np.bincount(y[fold == i], minlength=3) for i in range(5)])
    assert np.ptp(counts, axis=0).max() <= 2


@pytest.mark.parametrize("head", [LinearHead(0.03), ForestHead(20)])
def test_no_row_is_predicted_by_a_model_that_saw_its_group(head):
    X, y, groups = rows()
    fold = inner_folds(y, groups, 4, 0)
    _, p = fit_head([head], X, y, 3, fold, seed=1)
    for i in np.unique(fold):
        naive = type(head)(*([20] if head.kind == "forest" else [0.03]))
        naive.fit(X[~np.isin(groups, groups[fold == i])], y[~np.isin(groups, groups[fold == i])], 3, 1)
        np.testing.assert_array_equal(p[fold == i], naive.predict_proba(X[fold == i]))


def test_head_is_refitted_on_all_rows():
    X, y, groups = rows()
    forest, p = fit_head([ForestHead(120)], X, y, 3, inner_folds(y, groups, 3, 0), seed=0)
    assert forest.n_trees == 120 == len(forest.state()[1]["roots"])
    np.testing.assert_array_equal(p, fit_head([ForestHead(N_LIGHT)], X, y, 3, inner_folds(y, groups, 3, 0), seed=0)[1])
    head, _ = fit_head([LinearHead(0.3)], X, y, 3, inner_folds(y, groups, 3, 0), seed=0)
    np.testing.assert_array_equal(head.coef, LinearHead(0.3).fit(X, y, 3, 0).coef)


def test_setting_is_chosen_by_what_holds_out_of_fold():
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 60)
    noise = rng.normal(size=(120, 100))
    fold = np.arange(120) % 4
    weak, _ = fit_head([LinearHead(c) for c in LINEAR_C], noise, y, 2, fold, 0)
    clear = np.concatenate([noise[:, :3], 4.0 * y[:, None]], axis=1)
    strong, _ = fit_head([LinearHead(c) for c in LINEAR_C], clear, y, 2, fold, 0)
    assert weak.C == min(LINEAR_C)
    assert strong.C == max(LINEAR_C)


def test_class_in_one_group_only_is_not_scored_but_learned():
    X, y, groups = rows()
    y[groups != 0] = np.where(y[groups != 0] == 2, 1, y[groups != 0])
    X[y == 2] += 5
    fold = inner_folds(y, groups, 3, 0)
    head, p = fit_head([LinearHead()], X, y, 3, fold, 0)
    assert np.isnan(p[y == 2]).all()
    assert np.isfinite(p[(y != 2)]).all()
    assert (head.predict_proba(X[y == 2]).argmax(1) == 2).all()


def test_without_folds_nothing_is_out_of_fold():
    X, y, _ = rows()
    head, p = fit_head([LinearHead()], X, y, 3, np.full(len(y), -1), 0)
    assert np.isnan(p).all()
    assert (head.predict_proba(X).argmax(1) == y).mean() > 0.7


def test_candidates_follow_the_kinds():
    found = dict(candidates(("forest", "linear"), [3]))
    assert [h.C for h in found["linear"]] == list(LINEAR_C)
    assert len(found["forest"]) == 1


def test_neighbours_of_test_rows_are_left_out_of_inner_training():
    # labels in random patches that have nothing to do with the smooth features: only shared tissue tells them
    rng = np.random.default_rng(0)
    n, reach = 48, 7
    xy = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2)
    y = rng.integers(0, 2, (n // 8, n // 8))[xy[:, 0] // 8, xy[:, 1] // 8]
    smooth = rng.normal(size=(n, n, 20))
    for axis in (0, 1):  # what rings of neighbours and wide crops do
        smooth = np.apply_along_axis(lambda v: np.convolve(v, np.ones(reach) / reach, mode="same"), axis, smooth)
    fold = xy[:, 1] // 3 % 5
    accuracy = {}
    for name, positions in (("shared", None), ("apart", xy / reach)):
        _, p = fit_head([ForestHead(n_trees=50)], smooth.reshape(-1, 20), y, 2, fold, 0, positions)
        accuracy[name] = (p.argmax(axis=1) == y).mean()
    majority = max(y.mean(), 1 - y.mean())
    assert accuracy["shared"] > majority + 0.12
    assert accuracy["apart"] < majority + 0.03


def test_apart_leaves_out_the_reach_but_never_more_than_the_nearer_half():
    positions = np.arange(10.0)[:, None] / 4
    test = np.arange(10) == 0
    near = {i for i in range(1, 10) if positions[i, 0] < 1}
    assert set(apart(test, positions)) == set(range(1, 10)) - near
    assert set(apart(test, positions * 0.1)) == set(range(5, 10))  # all within reach: the farther half stays
    assert set(apart(test, None)) == set(range(1, 10))
