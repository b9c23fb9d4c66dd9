"""Standardisation per section, against naive loops."""

from __future__ import annotations

import numpy as np
import pytest

from histoweave._validate import HistoweaveWarning
from histoweave.models._sections import LIMIT, MIN_SPOTS, SectionScaler


@pytest.fixture
def two():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 4)) * [1, 2, 3, 4] + 10
    X[50:] = X[50:] * 3 - 40
    X[:, 3] = 7.0
    return X, {"a": np.arange(50), "b": np.arange(50, 90)}


def test_every_section_by_its_own_mean_and_spread(two):
    X, rows_of = two
    out = SectionScaler().fit(X).transform(X, rows_of)
    assert out.dtype == np.float32
    for rows in rows_of.values():
        expected = (X[rows] - X[rows].mean(0)) / np.where(X[rows].std(0) > 0, X[rows].std(0), 1)
        np.testing.assert_allclose(out[rows], np.clip(expected, -LIMIT, LIMIT), rtol=1e-5, atol=1e-5)
    assert np.all(out[:, 3] == 0)  # a constant carries nothing


def test_centring_only(two):
    X, rows_of = two
    out = SectionScaler(scale=False).fit(X).transform(X, rows_of)
    np.testing.assert_allclose(out[50:], X[50:] - X[50:].mean(0), rtol=1e-4, atol=1e-4)


def test_shift_and_stretch_of_a_section_is_undone(two):
    X, rows_of = two
    moved = X.copy()
    moved[50:] = moved[50:] * 2.5 + 3
    scaler = SectionScaler().fit(X)
    np.testing.assert_allclose(scaler.transform(moved, rows_of), scaler.transform(X, rows_of), atol=1e-4)


def test_missing_rows_stay_missing_and_do_not_matter(two):
    X, rows_of = two
    gappy = X.copy()
    gappy[:5] = np.nan
    out = SectionScaler().fit(gappy).transform(gappy, rows_of)
    assert np.isnan(out[:5]).all()
    alone = SectionScaler().fit(X[5:]).transform(X[5:], {"a": np.arange(45), "b": np.arange(45, 85)})
    np.testing.assert_array_equal(out[5:], alone)


def test_small_section_uses_the_training_sections_and_says_so(two):
    X, _rows_of = two
    scaler = SectionScaler().fit(X)
    few = X[: MIN_SPOTS - 1]
    with pytest.warns(HistoweaveWarning, match=r"fewer than 20 measured spots \(new\)"):
        out = scaler.transform(few, {"new": np.arange(len(few))})
    expected = (few - X.mean(0)) / np.where(X.std(0) > 0, X.std(0), 1)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_section_without_any_measured_spot_is_missing(two):
    X, rows_of = two
    gappy = X.copy()
    gappy[50:] = np.nan
    out = SectionScaler().fit(gappy).transform(gappy, rows_of)
    assert np.isnan(out[50:]).all()
    assert np.isfinite(out[:50]).all()


def test_artefacts_are_cut(two):
    X, rows_of = two
    X[0, 0] = 1e9
    assert np.abs(SectionScaler().fit(X).transform(X, rows_of)).max() <= LIMIT
