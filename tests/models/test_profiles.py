"""Distances of section means: by brute force, without the noise of few spots, with stated rates."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from histoweave.models._cloud import Ruler
from histoweave.models._profiles import PRIOR_SD, Profiles


def drawn(centres, n, seed=0, sd=1.0):
    rng = np.random.default_rng(seed)
    return np.vstack([c + sd * rng.normal(size=(n, len(c))) for c in centres]), np.repeat(np.arange(len(centres)), n)


def ruler_of(X, unit=None):
    return Ruler(np.ones(X.shape[1]) if unit is None else unit, np.square(X).mean(axis=0))


def test_distance_is_that_of_the_nearest_section():
    rng = np.random.default_rng(1)
    centres, unit = rng.normal(size=(5, 8)) * 3, rng.uniform(0.5, 2, 8)
    X, section = drawn(centres, 4000)
    donor = np.array([0, 0, 1, 2, 2])[section]
    found = Profiles.fit(X, section, donor, ruler_of(X, unit))
    total = (np.square(X).mean(axis=0) / unit**2).sum()

    def log_distance(a, others):
        return 0.5 * np.log(min(np.square((a - b) / unit).sum() for b in others) / total)

    own = [[0, 1], [2], [3, 4]]
    expected = [np.mean([log_distance(centres[i], np.delete(centres, rows, axis=0)) for i in rows]) for rows in own]
    np.testing.assert_allclose(found.levels, expected, atol=0.02)
    new = rng.normal(size=8) * 3
    rows, _ = drawn([new], 4000, seed=2)
    assert found.distance(rows) == pytest.approx(log_distance(new, centres), abs=0.02)
    assert found.distance(sp.csr_matrix(rows)) == pytest.approx(found.distance(rows))


def test_few_spots_are_not_far_for_their_noise():
    centres = np.zeros((4, 300))
    centres[:, 0] = (0, 3, 6, 9)
    X, section = drawn(centres, 2000)
    found = Profiles.fit(X, section, section, ruler_of(X))
    many, few = (
        np.mean([found.distance(drawn([centres[1] + np.eye(300)[1] * 3], n, seed=s)[0]) for s in range(20)])
        for n in (2000, 40)
    )
    assert few == pytest.approx(many, abs=0.1)  # their noise alone would make it 0.3 more


def test_missing_features_leave_the_scale():
    """Roots of shares: with half of the features gone, what is left is larger by the root of two, and brought back."""
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.full(400, 5.0), size=4)
    X = np.sqrt(np.vstack([rng.multinomial(4000, p, 500) / 4000 for p in shares]))
    found = Profiles.fit(X, np.arange(4).repeat(500), np.arange(4).repeat(500), ruler_of(X))
    p = rng.dirichlet(np.full(400, 5.0))
    counts = rng.multinomial(4000, p, 500)
    present = rng.random(400) < 0.5
    left = np.where(present, counts, 0)
    whole, part = (np.sqrt(c / c.sum(axis=1, keepdims=True)) for c in (counts, left))
    assert found.distance(part, present) == pytest.approx(found.distance(whole), abs=0.1)


@pytest.mark.parametrize("k", [2, 4, 12])
def test_rate_of_usual_sections_is_the_stated_one(k):
    rng, flagged = np.random.default_rng(k), []
    for _ in range(2000):
        levels = rng.normal(-1.0, PRIOR_SD, k)
        limit = Profiles(np.empty(0), np.empty(0), levels, None).limit(0.05)
        flagged.append(rng.normal(-1.0, PRIOR_SD) > limit)
    assert 0.02 < np.mean(flagged) < 0.066  # with two donors it errs on the safe side


def test_one_donor_or_parts_of_a_section_say_nothing_of_the_next():
    X, section = drawn(np.zeros((2, 5)), 50)
    assert Profiles.fit(X, section, np.zeros(100), ruler_of(X)) is None
    assert Profiles.fit(X, np.zeros(100), section, ruler_of(X)) is None
    assert len(Profiles.fit(X, section, section, ruler_of(X)).levels) == 2
