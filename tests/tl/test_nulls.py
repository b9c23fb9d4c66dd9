"""What needs no tissue, against naive versions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from histoweave.models._inner_groups import tissue_blocks
from histoweave.tl._nulls import N_NEIGHBOURS, permute_blocks, predict_nulls


@pytest.fixture
def task(sections):
    sections.X = sections.layers["counts"]
    y = pd.Categorical(sections.obs["region_truth"]).codes.astype(int)
    y[::17] = -1
    test = (sections.obs["library_id"] == "section_4").to_numpy() & (y >= 0)
    section_3 = np.flatnonzero(sections.obs["library_id"] == "section_3")
    test[section_3[::3]] = y[section_3[::3]] >= 0  # blocks of a section that is trained on as well
    train = ~test & (y >= 0)
    return sections, y, train, test


def test_majority_is_the_share_of_training_labels(task):
    table, y, train, test = task
    p = predict_nulls(table, y, train, test, 3, 0)["majority"]
    assert p.shape == (test.sum(), 3)
    np.testing.assert_allclose(p, np.tile([(y[train] == k).mean() for k in range(3)], (test.sum(), 1)))


def test_depth_is_a_regression_on_totals(task):
    table, y, train, test = task
    counts = table.X.toarray()
    X = np.log1p(np.stack([counts.sum(1), (counts > 0).sum(1)], axis=1))
    for name in table.obs["library_id"].unique():
        rows = (table.obs["library_id"] == name).to_numpy()
        X[rows] = (X[rows] - X[rows].mean(0)) / X[rows].std(0)
    X = np.clip(X, -6, 6)
    mean, sd = X[train].mean(0), X[train].std(0)
    peer = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000).fit((X[train] - mean) / sd, y[train])
    found = predict_nulls(table, y, train, test, 3, 0)["depth"]
    np.testing.assert_allclose(found, peer.predict_proba((X[test] - mean) / sd), atol=1e-3)


def test_neighbour_vote_is_a_loop_over_nearest_labels(task):
    table, y, train, test = task
    found = predict_nulls(table, y, train, test, 3, 0)["neighbour vote"]
    section, xy = table.obs["library_id"].astype(str).to_numpy(), table.obsm["spatial"]
    share = np.bincount(y[train], minlength=3) / train.sum()
    for row, p in zip(np.flatnonzero(test), found, strict=True):
        known = np.flatnonzero(train & (section == section[row]))
        if not len(known):  # a new section: nobody to ask
            np.testing.assert_allclose(p, share)
            continue
        distance = np.linalg.norm(xy[known] - xy[row], axis=1)
        limit = np.sort(distance)[N_NEIGHBOURS - 1]
        sure, tied = known[distance < limit - 1e-9], known[np.abs(distance - limit) <= 1e-9]
        low = np.bincount(y[sure], minlength=3) / N_NEIGHBOURS
        high = low + np.bincount(y[tied], minlength=3) / N_NEIGHBOURS  # neighbours as far as each other may swap
        assert np.all((p >= low - 1e-9) & (p <= high + 1e-9))
        assert p.sum() == pytest.approx(1)


def test_coordinates_know_regions_that_lie_alike_and_only_those(task):
    table, y, train, test = task
    alike = (table.obsm["spatial"][:, 0] > np.median(table.obsm["spatial"][:, 0])).astype(int)
    p = predict_nulls(table, alike, np.arange(400) < 300, np.arange(400) >= 300, 2, 0)["coordinates"]
    assert (p.argmax(1) == alike[300:]).mean() > 0.9
    moved = table.copy()  # where the section lies on its slide must not matter
    moved.obsm["spatial"] = moved.obsm["spatial"] * 3 + 500
    before, after = (predict_nulls(t, y, train, test, 3, 0)["coordinates"] for t in (table, moved))
    np.testing.assert_allclose(before, after, atol=0.05)


def test_nulls_that_the_table_does_not_allow_are_left_out(task):
    table, y, train, test = task
    image_only = table[:, :0].copy()
    assert set(predict_nulls(image_only, y, train, test, 3, 0)) == {"majority", "coordinates", "neighbour vote"}
    del image_only.obsm["spatial"]
    assert set(predict_nulls(image_only, y, train, test, 3, 0)) == {"majority"}


def test_class_without_training_rows_gets_nothing(task):
    table, y, train, test = task
    for p in predict_nulls(table, y, train & (y != 1), test, 3, 0).values():
        assert np.all(p[:, 1] == 0)
        np.testing.assert_allclose(p.sum(1), 1)


def test_permuted_blocks_keep_the_counts_of_every_section_and_unlabelled_spots(task):
    table, y, *_ = task
    section, xy = table.obs["library_id"].astype(str).to_numpy(), table.obsm["spatial"]
    found = permute_blocks(y, section, xy, np.random.default_rng(0))
    for name in np.unique(section):
        here = section == name
        np.testing.assert_array_equal(np.bincount(found[here] + 1), np.bincount(y[here] + 1))
    np.testing.assert_array_equal(found == -1, y == -1)
    assert (found != y).mean() > 0.2
    again = permute_blocks(y, section, xy, np.random.default_rng(0))
    np.testing.assert_array_equal(found, again)


def test_blocks_of_one_size_move_as_a_whole():
    xy = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), axis=-1).reshape(-1, 2)
    blocks = tissue_blocks(np.zeros(256, dtype=int), xy)
    assert np.unique(blocks, return_counts=True)[1].tolist() == [16] * 16
    y = np.arange(256)  # every label is its own, so that it can be traced
    found = permute_blocks(y, np.zeros(256, dtype=int), xy, np.random.default_rng(1))
    assert sorted(found) == sorted(y)
    shifts = xy[found] - xy  # where each label came from
    for block in np.unique(blocks):
        assert len(np.unique(blocks[found[blocks == block]])) == 1
        assert len(np.unique(shifts[blocks == block], axis=0)) == 1
    assert (blocks[found] != blocks).mean() > 0.5


def test_permuted_blocks_keep_patches_and_permuted_spots_do_not(task):
    table, y, *_ = task
    rows = (table.obs["library_id"] == "section_1").to_numpy()
    y, xy = pd.Categorical(table.obs["region_truth"]).codes[rows].astype(int), table.obsm["spatial"][rows]
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    near = (distance > 0) & (distance < 1.2 * distance[distance > 0].min())
    by_chance = (np.bincount(y) / len(y) @ np.bincount(y)) / len(y)

    def joined(labels):
        return (labels[:, None] == labels[None])[near].mean() - by_chance

    section = np.zeros(len(y), dtype=int)
    blocks = [joined(permute_blocks(y, section, xy, np.random.default_rng(s))) for s in range(20)]
    spots = [joined(permute_blocks(y, section, None, np.random.default_rng(s))) for s in range(20)]
    assert np.mean(blocks) > 0.3 * joined(y)
    assert abs(np.mean(spots)) < 0.05 * joined(y) + 0.02
