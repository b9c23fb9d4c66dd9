"""Maps and bars of contributions: every colour and length is a stored number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps

import histoweave as hw


@pytest.fixture
def contributed(section):
    rng = np.random.default_rng(0)
    table = section
    for key in ("modality_contribution", "modality_contribution_log"):
        values = rng.normal(0, 0.2, (table.n_obs, 2))
        table.obsm[key] = pd.DataFrame(values, index=table.obs_names, columns=["gene", "image"])
    table.uns["modality_contribution"] = pd.DataFrame(
        [(r, m, modality, value, 0.9, 0.2, 5) for m in ("probability", "log_probability", "recall", "macro_f1")
         for r, modality, value in (("a", "gene", 0.1), ("a", "image", 0.6), ("b", "gene", -0.2), ("b", "image", 0.9))],
        columns=["region", "metric", "modality", "contribution", "full", "empty", "n"],
    )  # fmt: skip
    return table


def test_bars_are_the_contributions(contributed):
    axes = hw.pl.modality_contribution(contributed)
    assert axes.shape == (1, 3)
    gene, image = axes[0, -1].containers
    np.testing.assert_allclose([bar.get_width() for bar in gene], [0.1, -0.2])
    np.testing.assert_allclose([bar.get_width() for bar in image], [0.6, 0.9])
    assert [label.get_text() for label in axes[0, -1].get_yticklabels()] == ["a", "b"]
    assert "probability" in axes[0, -1].get_xlabel()


@pytest.mark.parametrize(("metric", "stored"), [("recall", ""), ("log_probability", "_log")])
def test_maps_share_one_scale_around_zero(contributed, metric, stored):
    axes = hw.pl.modality_contribution(contributed, metric=metric)
    values = contributed.obsm["modality_contribution" + stored]
    largest = np.percentile(np.abs(values), 99)
    for panel, name in zip(axes[0], ("gene", "image"), strict=False):
        drawn = panel.collections[0].get_facecolor()
        share = np.clip((values[name].to_numpy() + largest) / (2 * largest), 0, 1)
        np.testing.assert_allclose(drawn[:, :3], colormaps["RdBu_r"](share)[:, :3], atol=1 / 128)


def test_spots_without_modality_are_grey(contributed):
    contributed.obsm["modality_contribution"].iloc[0] = np.nan
    axes = hw.pl.modality_contribution(contributed)
    first = axes[0, 0].collections[0].get_facecolor()[0, :3]
    assert np.ptp(first) < 0.1


def test_refusals(contributed, sections):
    with pytest.raises(ValueError, match="metric"):
        hw.pl.modality_contribution(contributed, metric="f1")
    with pytest.raises(KeyError, match=r"hw\.tl\.modality_contribution"):
        hw.pl.modality_contribution(contributed, key="other")
    sections.uns = {**sections.uns, "modality_contribution": contributed.uns["modality_contribution"]}
    sections.obsm["modality_contribution"] = pd.DataFrame({"gene": np.zeros(sections.n_obs)}, index=sections.obs_names)
    with pytest.raises(ValueError, match="library_id"):
        hw.pl.modality_contribution(sections)
    with pytest.raises(KeyError, match="section_9"):
        hw.pl.modality_contribution(sections, library_id="section_9")
