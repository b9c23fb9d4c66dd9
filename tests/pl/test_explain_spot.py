"""The picture of one spot: every bar is a stored number, colour lies where the map is high."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import histoweave as hw


@pytest.fixture
def explained(section):
    rng = np.random.default_rng(0)
    maps = np.zeros((4, 4), dtype=np.float32)
    maps[0, 3], maps[3, 0] = 2.0, -5.0
    section.uns["explain_spot"] = {
        "spot": "s7", "section": "section_1", "region": "fat",
        "probability": pd.DataFrame({"region": ["fat", "tumour"], "probability": [0.3, 0.7]}),
        "modalities": pd.DataFrame({"modality": ["gene", "image"], "contribution": [0.1, 0.2],
                                    "log_contribution": [0.5, -0.25]}),
        "genes": pd.DataFrame({"gene": ["A", "B", "C"], "contribution": [0.9, 0.1, -0.4], "value": [1.0, 1.0, 1.0]}),
        "maps": {"crops": maps},
        "crops": {"crops": rng.integers(0, 50, (32, 32, 3), dtype=np.uint8)},
    }  # fmt: skip
    return section


def widths(ax):
    return [bar.get_width() for bar in ax.patches]


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_bars_are_stored_numbers(explained):
    axes = hw.pl.explain_spot(explained, n_genes=2)
    assert axes.shape == (1, 4)
    crop, genes, modalities, regions = axes[0]
    assert names(genes) == ["A", "C"]
    np.testing.assert_allclose(widths(genes), [0.9, -0.4])
    assert names(modalities) == ["gene", "image"]
    np.testing.assert_allclose(widths(modalities), [0.5, -0.25])
    assert names(regions) == ["tumour", "fat"]
    assert [label.get_fontweight() for label in regions.get_yticklabels()] == ["normal", "bold"]
    assert crop.get_title() == "crops"
    explained.uns["explain_spot"]["crop_um"] = {"crops": 110.0}
    figure, own = plt.subplots(1, 4)
    figure.suptitle("mine")
    assert hw.pl.explain_spot(explained, ax=own)[0, 0].get_title() == "crops, 110 µm"
    assert figure.get_suptitle() == "mine"


def test_map_colours_only_what_speaks_for_the_region(explained):
    axes = hw.pl.explain_spot(explained)
    shown = axes[0, 0].images[0].get_array()
    crop = explained.uns["explain_spot"]["crops"]["crops"]
    changed = np.abs(shown.astype(int) - crop).sum(axis=2)
    assert changed[:4, -4:].min() > 30
    assert changed[-8:, :8].max() == 0


def test_spot_without_image(explained):
    explained.uns["explain_spot"] |= {"maps": {}, "crops": {}}
    assert hw.pl.explain_spot(explained).shape == (1, 3)


def test_missing_result(section):
    with pytest.raises(KeyError, match=r"hw\.tl\.explain_spot"):
        hw.pl.explain_spot(section)
