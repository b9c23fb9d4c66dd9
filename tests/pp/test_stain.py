"""Stain normalisation on sections whose stain is known, and against squidpy's own normalisation."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.pp import _stain_methods as stain

STAINS = {
    "s1": np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]),
    "s2": np.array([[0.55, 0.75, 0.36], [0.20, 0.90, 0.38]]),
}
STRENGTH = {"s1": 1.0, "s2": 1.6}
WHITE = np.full(3, 255.0)


def paint(amount: np.ndarray, name: str) -> np.ndarray:
    """Crops from stain amounts ``(n, h, w, 2)`` by Beer and Lambert."""
    vectors = STAINS[name] / np.linalg.norm(STAINS[name], axis=1, keepdims=True)
    return np.rint(256 * np.exp(-STRENGTH[name] * amount @ vectors) - 1).clip(0, 255).astype(np.uint8)


def amounts(n: int = 40, side: int = 24, seed: int = 0) -> np.ndarray:
    """Nuclei with much haematoxylin in a ground of eosin; the last crop is empty glass."""
    rng = np.random.default_rng(seed)
    nucleus = rng.random((n, side, side)) < 0.3
    hema = np.where(nucleus, rng.uniform(0.6, 1.2, nucleus.shape), rng.uniform(0.0, 0.05, nucleus.shape))
    eosin = np.where(nucleus, rng.uniform(0.0, 0.1, nucleus.shape), rng.uniform(0.3, 0.8, nucleus.shape))
    out = np.stack([hema, eosin], axis=-1)
    out[-1] = 0
    return out


def two_sections(*, shuffle: bool = False) -> AnnData:
    crops = np.concatenate([paint(amounts(seed=i), name) for i, name in enumerate(STAINS)])
    obs = pd.DataFrame({"library_id": np.repeat(list(STAINS), 40)}, index=[f"r{i}" for i in range(80)])
    table = AnnData(obs=obs, obsm={"crops": crops})
    return table[np.random.default_rng(0).permutation(80)].copy() if shuffle else table


def colour_distance(table: AnnData, key: str = "crops") -> float:
    """Distance between the sections' mean and spread of optical density over tissue."""
    stats = []
    for name in STAINS:
        pixels = table.obsm[key][(table.obs["library_id"] == name).to_numpy()].reshape(-1, 3)
        density = stain.optical_density(pixels, WHITE)
        density = density[stain.is_tissue(density)]
        stats.append(np.concatenate([density.mean(axis=0), density.std(axis=0)]))
    return float(np.linalg.norm(stats[0] - stats[1]))


@pytest.mark.parametrize("method", stain.METHODS)
@pytest.mark.parametrize("reference", [None, "s1"])
def test_sections_come_to_agree(method: str, reference: str | None) -> None:
    table = two_sections(shuffle=True)
    before, original = colour_distance(table), table.obsm["crops"].copy()
    hw.pp.stain_normalize(table, method=method, reference=reference)
    assert colour_distance(table) < before / 5
    crops = table.obsm["crops"]
    assert crops.dtype == np.uint8
    empty = (original == 255).all(axis=(1, 2, 3))
    assert empty.sum() == 2
    assert (crops[empty] == 255).all()
    if reference == "s1":  # a section is its own reference
        own = (table.obs["library_id"] == "s1").to_numpy()
        assert np.abs(crops[own].astype(int) - original[own]).max() <= 1


def test_macenko_recovers_the_stains_and_the_true_colours() -> None:
    table = two_sections()
    hw.pp.stain_normalize(table, method="macenko", reference="s1", key_added="crops_stained")
    truth = paint(amounts(seed=1), "s1")
    error = np.abs(table.obsm["crops_stained"][40:].astype(float) - truth)
    raw = np.abs(table.obsm["crops"][40:].astype(float) - truth)
    assert error.mean() < 0.2 * raw.mean()
    fitted = table.uns["histoweave"]["crops_stained"]["stain"]["sections"]
    for name, vectors in STAINS.items():
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = (fitted[name]["stain_matrix"][:, :2].T * unit).sum(axis=1)
        assert cosine.min() > np.cos(np.deg2rad(5))


@pytest.mark.parametrize("method", stain.METHODS)
def test_tinted_glass_is_not_taken_for_stain(method: str) -> None:
    table = two_sections()
    tint = np.array([227, 206, 227])
    tinted = np.rint((table.obsm["crops"][40:] + 1.0) * (tint + 1) / 256 - 1)
    table.obsm["crops"][40:] = tinted
    hw.pp.stain_normalize(table, method=method, reference="s1")
    plain = two_sections()
    hw.pp.stain_normalize(plain, method=method, reference="s1")
    assert (table.obsm["crops"][-1] >= 254).all()  # an empty crop is white again
    error = np.abs(table.obsm["crops"][40:].astype(int) - plain.obsm["crops"][40:])
    assert error.mean() < 3
    fitted = table.uns["histoweave"]["crops"]["stain"]["sections"]["s2"]["white_point"]
    np.testing.assert_allclose(fitted, tint)


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_equals_squidpy_on_the_mosaic(method: str) -> None:
    """Our per-pixel map against squidpy's own normalisation of the crops laid out as one image."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel
    from squidpy.experimental.im import StainReference, normalize_stains

    crops = paint(amounts(seed=1)[:39], "s2")
    mosaic = crops.reshape(-1, crops.shape[2], 3)
    tissue = stain.is_tissue(stain.optical_density(mosaic, WHITE))
    source = stain.fit_stain(mosaic[tissue], method, white_point=WHITE)
    target = stain.fit_stain(paint(amounts()[:39], "s1").reshape(-1, 3), method, white_point=WHITE)
    if method == "macenko":  # squidpy leaves the strength of the stains alone
        target["max_concentrations"] = source["max_concentrations"]
        arrays = {"stain_matrix": target["stain_matrix"], "white_point": WHITE}
    else:
        arrays = {"mu": target["mu"], "sigma": target["sigma"]}
    sdata = SpatialData(
        images={"m": Image2DModel.parse(mosaic.transpose(2, 0, 1), dims=("c", "y", "x"))},
        labels={"m_tissue": Labels2DModel.parse(tissue.astype(np.int16), dims=("y", "x"))},
    )
    peer = normalize_stains(
        sdata,
        "m",
        StainReference(method=method, **arrays),
        inplace=False,
        preserve_background=method == "reinhard",
    )
    peer = peer.transpose("y", "x", "c").to_numpy().reshape(crops.shape)
    ours = stain.apply_stain(crops, source, target)
    assert np.abs(ours.astype(int) - peer).max() <= 2  # the layout drops up to 99 pixels from the fit
    one_by_one = np.stack([stain.apply_stain(crop, source, target) for crop in crops])
    np.testing.assert_array_equal(one_by_one, ours)


@pytest.mark.parametrize("method", stain.METHODS)
def test_lazy_crops_stay_lazy_and_agree(method: str) -> None:
    import dask.array as da

    table = two_sections(shuffle=True)
    lazy = table.copy()
    lazy.obsm["crops"] = da.from_array(table.obsm["crops"], chunks=(7, -1, -1, -1))
    hw.pp.stain_normalize(table, method=method)
    hw.pp.stain_normalize(lazy, method=method)
    assert isinstance(lazy.obsm["crops"], da.Array)
    np.testing.assert_array_equal(lazy.obsm["crops"].compute(), table.obsm["crops"])


@pytest.mark.parametrize("method", stain.METHODS)
def test_stored_reference_serves_a_new_section(method: str, tmp_path: Path) -> None:
    table = two_sections()
    table.uns["histoweave"] = {"crops": {"function": "pp.crops", "params": {"size_um": 110.0}}}
    hw.pp.stain_normalize(table, method=method, reference="s1")
    table.write_h5ad(tmp_path / "t.h5ad")
    entry = ad.read_h5ad(tmp_path / "t.h5ad").uns["histoweave"]["crops"]
    assert entry["params"]["size_um"] == 110  # the record of the crops is kept
    new = two_sections()[40:].copy()
    hw.pp.stain_normalize(new, method=method, reference=entry["stain"]["reference"])
    difference = np.abs(new.obsm["crops"].astype(int) - table.obsm["crops"][40:])
    assert difference.max() <= 3  # another seed draws other crops
    with pytest.raises(ValueError, match="is of method"):
        hw.pp.stain_normalize(
            new,
            method="reinhard" if method == "macenko" else "macenko",
            reference=entry["stain"]["reference"],
        )


def test_masked_background_is_not_taken_for_stain() -> None:
    table = two_sections()
    table.obsm["crops"][:4] = 0
    hw.pp.stain_normalize(table, reference="s2")
    plain = two_sections()
    hw.pp.stain_normalize(plain, reference="s2")
    error = np.abs(table.obsm["crops"][4:40].astype(int) - plain.obsm["crops"][4:40])
    assert error.mean() < 2


def test_sections_without_an_image_are_left_alone() -> None:
    table = two_sections(shuffle=True)
    missing = (table.obs["library_id"] == "s2").to_numpy()
    table.obsm["crops"][missing] = 255
    table.obs["crops_available"] = ~missing
    with pytest.warns(HistoweaveWarning, match="one section"):
        hw.pp.stain_normalize(table, key_added="crops_stained")
    assert (table.obsm["crops_stained"][missing] == 255).all()
    assert (table.obs["crops_stained_available"] == ~missing).all()
    table.obs["crops_available"] = False
    with pytest.raises(ValueError, match="no section has an image"):
        hw.pp.stain_normalize(table)


def test_seed_decides_the_sample() -> None:
    results = []
    for seed in (0, 0, 1):
        table = two_sections()
        hw.pp.stain_normalize(table, method="section", n_crops=5, random_state=seed)
        results.append(table.obsm["crops"])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_bad_input_leaves_the_table_alone() -> None:
    table = two_sections()
    table.obsm["crops"][40:] = 250
    before = table.obsm["crops"].copy()
    for method in stain.METHODS:
        with pytest.raises(ValueError, match=r"Section 's2' shows too little tissue"):
            hw.pp.stain_normalize(table, method=method)
    table.obsm["crops"][40:] = np.random.default_rng(0).integers(0, 3, (40, 24, 24, 1)) * 40 + 60  # grey
    with pytest.raises(ValueError, match=r"Section 's2': no macenko stain .*method='section'"):
        hw.pp.stain_normalize(table)
    np.testing.assert_array_equal(table.obsm["crops"][:40], before[:40])
    assert not table.uns
    with pytest.raises(ValueError, match="'pooled' nor a section"):
        hw.pp.stain_normalize(table, reference="s9")
    with pytest.raises(KeyError, match="crops_key"):
        hw.pp.stain_normalize(table, crops_key="crop")
    with pytest.raises(ValueError, match="`method` must be one of"):
        hw.pp.stain_normalize(table, method="vahadane")
    table.obsm["floats"] = before / 255.0
    with pytest.raises(ValueError, match="uint8"):
        hw.pp.stain_normalize(table, crops_key="floats")


def test_single_section_without_reference_is_stated() -> None:
    table = two_sections()[:40].copy()
    out = None
    with pytest.warns(HistoweaveWarning, match="nothing changes"):
        out = hw.pp.stain_normalize(table, copy=True)
    assert np.abs(out.obsm["crops"].astype(int) - table.obsm["crops"]).max() <= 1
    assert not table.uns


@pytest.mark.real_data
def test_stain_vectors_of_real_sections_agree(shared_data: Path) -> None:
    """Two patients, one image with tinted glass and a black mask: the same two dyes are found in both."""
    from histoweave._image import open_image, to_rgb8

    found = []
    for name in ("A1.png", "C2.jpg"):
        image = np.asarray(to_rgb8(open_image(shared_data / "her2st" / "images" / name)))
        pixels = image[:: len(image) // 500, :: len(image) // 500]
        found.append(stain.fit_stain(pixels.reshape(-1, 3), "macenko", name=name)["stain_matrix"])
    cosine = (found[0] * found[1]).sum(axis=0)[:2]
    assert cosine.min() > np.cos(np.deg2rad(12))
