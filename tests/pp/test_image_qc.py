"""Tissue fraction and sharpness against images whose tissue and blur are known."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import ndimage

from histoweave import datasets, pp
from histoweave._validate import HistoweaveWarning

RNG = np.random.default_rng(0)


def half_tissue(slide=235):
    """Tissue to the left of x = 200, empty slide to the right."""
    image = np.full((300, 400, 3), slide, np.float64)
    image[:, :200] = (170, 90, 150)
    image += RNG.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def section(image, xs):
    table = ad.AnnData(np.ones((len(xs), 1), np.float32))
    table.obs["library_id"] = "s1"
    table.obsm["spatial"] = np.stack([np.asarray(xs, float), np.full(len(xs), 150.0)], axis=1)
    table.uns["spatial"] = {"s1": {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": 1.0}}}
    return table


@pytest.mark.parametrize("slide", [245, 180])
@pytest.mark.parametrize("lazy", [False, True])
def test_tissue_fraction(slide, lazy):
    table = section(half_tissue(slide), [60, 190, 200, 220, 340])
    pp.crops(table, size_px=80, out_px=None, lazy=lazy, chunk=2)
    assert pp.image_qc(table) is None
    np.testing.assert_allclose(table.obs["crops_tissue"], [1, 50 / 80, 0.5, 20 / 80, 0], atol=0.01)


def test_masked_background_is_no_tissue():
    image = half_tissue()
    image[:, 200:] = 0
    table = section(image, [60, 200, 340])
    pp.crops(table, size_px=80, out_px=None)
    pp.image_qc(table)
    np.testing.assert_allclose(table.obs["crops_tissue"], [1, 0.5, 0], atol=0.01)


def test_sharpness_falls_with_blur_and_not_with_contrast():
    sharp = RNG.integers(40, 200, (40, 40, 3)).repeat(3, axis=0).repeat(3, axis=1).astype(np.uint8)
    blurred = [ndimage.gaussian_filter(sharp, (s, s, 0)) for s in (1, 2, 4)]
    pale = (sharp // 2 + 100).astype(np.uint8)
    flat = np.full_like(sharp, 200)
    table = section(half_tissue(), [50] * 6)
    table.obsm["crops"] = np.stack([sharp, *blurred, pale, flat])
    pp.image_qc(table, threshold=0.1)
    values = table.obs["crops_sharpness"].to_numpy()
    assert (np.diff(values[:4]) < 0).all()
    assert values[4] == pytest.approx(values[0], rel=0.05)
    assert values[5] == 0
    grey = sharp @ [0.299, 0.587, 0.114] / 255
    expected = ndimage.laplace(grey)[1:-1, 1:-1].var() / grey.var()
    assert values[0] == pytest.approx(expected, rel=0.01)


def test_rows_without_image_are_missing_values():
    one, two = section(half_tissue(), [60, 340]), section(half_tissue(), [60, 340])
    two.obs["library_id"] = "s2"
    table = ad.concat([one, two], index_unique="-")
    table.uns["spatial"] = one.uns["spatial"]
    with pytest.warns(HistoweaveWarning, match="without an image"):
        pp.crops(table, size_px=40)
    with pytest.warns(HistoweaveWarning, match="'s2'"):
        pp.image_qc(table)
    assert table.obs["crops_tissue"].isna().tolist() == [False, False, True, True]
    assert table.obs["crops_sharpness"].isna().tolist() == [False, False, True, True]
    assert set(table.uns["histoweave"]["crops_qc"]["tissue_threshold"]) == {"s1", "s2"}


def test_image_of_one_colour():
    table = section(np.full((300, 400, 3), 240, np.uint8), [60, 340])
    pp.crops(table, size_px=40)
    with pytest.warns(HistoweaveWarning, match="cannot be told"):
        pp.image_qc(table)
    assert (table.obs["crops_tissue"] == 0).all()


def test_simulated_tissue():
    table = datasets.simulate_section(n_rows=8, n_cols=8, n_genes=80, um_per_px=2.0, tissue_fraction=0.6)
    out = pp.crops(table, out_px=32, copy=True)
    checked = pp.image_qc(out, copy=True)
    assert "crops_tissue" not in out.obs
    assert checked.obs["crops_tissue"].mean() > 0.6


def test_bad_input():
    table = section(half_tissue(), [60, 340])
    with pytest.raises(KeyError, match=r"hw\.pp\.crops"):
        pp.image_qc(table)
    table.obsm["crops"] = np.zeros((2, 8, 8))
    with pytest.raises(ValueError, match="uint8"):
        pp.image_qc(table)
    table.obsm["crops"] = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="threshold"):
        pp.image_qc(table, threshold=0)
