"""Matching spots and tissue: known shapes, known orientations."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave.pp._placement import ORIENTATIONS, TissueMap, best_orientation, mirrors, oriented, sample

SIZE = (800.0, 600.0)


@pytest.fixture
def shape():
    """An L on a thumbnail at a quarter of the size, and a square array of spots on it."""
    mask = np.zeros((150, 200), bool)
    mask[20:120, 30:60] = True
    mask[90:120, 30:150] = True
    grid = np.stack(np.meshgrid(np.arange(5, 800, 20), np.arange(5, 600, 20)), axis=-1).reshape(-1, 2).astype(float)
    tissue = TissueMap(mask, SIZE)
    return tissue, grid[tissue.at(grid)]


def test_fit(shape):
    tissue, spots = shape
    good = tissue.fit(spots)
    assert good.on_tissue == 1
    assert good.covered > 0.95
    assert tissue.fit(spots * 0.2).score < 0.3
    half = tissue.fit(spots[spots[:, 1] < 300])
    assert half.on_tissue == 1
    assert half.covered < 0.7
    assert tissue.fit(spots + 5000).score == 0
    assert tissue.fit(np.repeat(spots[:1], 5, axis=0)).covered == 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_is_found(shape, orientation):
    tissue, spots = shape
    laid = next(  # the way that `orientation` brings back
        xy
        for o in ORIENTATIONS
        if np.allclose(oriented(xy := oriented(spots, o, SIZE[:: -1 if o[0] else 1]), orientation, SIZE), spots)
    )
    best, fit = best_orientation(tissue, laid, SIZE, ORIENTATIONS, None)
    assert best == orientation
    assert fit.score > 0.9


def test_hands():
    for orientation in ORIENTATIONS:
        turned = oriented(np.eye(2), orientation, (0.0, 0.0))
        assert mirrors(orientation) == (np.linalg.det(turned) < 0)


def test_without_tissue_the_array_decides():
    steps = oriented(np.array([[10.0, 0.5], [-0.5, 10.0]]), (True, False, False), (0, 0))
    allowed = [o for o in ORIENTATIONS if mirrors(o)]
    assert best_orientation(None, np.zeros((3, 2)), SIZE, allowed, steps)[0] == (True, False, False)


def test_samples_are_bounded_and_repeat():
    points = np.random.default_rng(0).random((10_000, 2))
    np.testing.assert_array_equal(sample(points), sample(points))
    assert len(sample(points)) == 4000
    np.testing.assert_array_equal(sample(points[:100]), points[:100])
