"""Crops against windows cut by hand, and lazy crops against dense ones."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from histoweave import pp
from histoweave._validate import HistoweaveWarning

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (400, 500, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(IMAGE[::8, ::8]).resize((500, 400), Image.Resampling.BICUBIC))


def section(centres, image=IMAGE, *, name="s1", factor=1.0, um_per_px=1.0, key="full"):
    centres = np.asarray(centres, dtype=float)
    table = ad.AnnData(np.ones((len(centres), 2), np.float32))
    table.obs_names = [f"{name}-{i}" for i in range(len(centres))]
    table.obs["library_id"] = name
    table.obsm["spatial"] = centres
    table.uns["spatial"] = {
        name: {
            "images": {} if image is None else {key: image},
            "scalefactors": {f"tissue_{key}_scalef": factor, "microns_per_pixel": um_per_px},
            "metadata": {"platform": "simulated"},
        }
    }
    return table


def by_hand(image, left, top, side):
    """A slice of the image on a white ground, one pixel at a time."""
    out = np.full((side, side, 3), 255, np.uint8)
    for y in range(side):
        for x in range(side):
            if 0 <= top + y < image.shape[0] and 0 <= left + x < image.shape[1]:
                out[y, x] = image[top + y, left + x]
    return out


INSIDE = np.stack([RNG.integers(60, 440, 40), RNG.integers(60, 340, 40)], axis=1)


@pytest.mark.parametrize("side", [32, 33])
def test_native_windows_are_slices(side):
    table = section(INSIDE)
    pp.crops(table, size_px=side, out_px=None)
    crops = table.obsm["crops"]
    assert crops.shape == (40, side, side, 3)
    assert crops.dtype == np.uint8
    for crop, (x, y) in zip(crops, INSIDE, strict=True):
        np.testing.assert_array_equal(crop, by_hand(IMAGE, x - side // 2, y - side // 2, side))
    assert (table.obs["crops_padded"] == 0).all()
    assert "crops_available" not in table.obs


def test_native_windows_move_by_at_most_half_a_pixel():
    table = section(INSIDE + np.array([0.4, 0.6]))
    pp.crops(table, size_px=32, out_px=32)
    for crop, (x, y) in zip(table.obsm["crops"], INSIDE, strict=True):
        np.testing.assert_array_equal(crop, by_hand(IMAGE, x - 16, y - 15, 32))


@pytest.mark.parametrize(("size", "out"), [(96, 32), (50, 64), (41.7, 24)])
def test_resampled_windows_are_exact_below_a_pixel(size, out):
    """Against the triangle filter written out: weights by distance from each output pixel's centre."""
    centres = INSIDE[:6] + RNG.random((6, 2))
    table = section(centres, SMOOTH)
    pp.crops(table, size_px=size, out_px=out)

    def weights(start, length):
        step = size / out
        reach = max(step, 1.0)
        middle = start + (np.arange(out) + 0.5) * step
        w = np.clip(1 - np.abs(np.arange(length) + 0.5 - middle[:, None]) / reach, 0, None)
        first, last = int(np.floor(start)), int(np.ceil(start + size))
        w[:, :first] = w[:, last:] = 0  # a crop depends on no pixel outside its window
        return w / w.sum(axis=1, keepdims=True)

    for crop, (x, y) in zip(table.obsm["crops"], centres, strict=True):
        rows, columns = weights(y - size / 2, 400), weights(x - size / 2, 500)
        expected = np.einsum("ay,yxc,bx->abc", rows, SMOOTH.astype(float), columns, optimize=True)
        assert np.abs(crop - expected).max() <= 1.01


def test_half_the_size_is_the_mean_of_four_where_the_image_is_linear():
    ramp = np.repeat(np.add.outer(np.arange(200), np.arange(240))[..., None] // 2, 3, axis=2).astype(np.uint8)
    table = section([[100, 90]], ramp)
    pp.crops(table, size_px=40, out_px=20)
    inner = ramp[70:110, 80:120].reshape(20, 2, 20, 2, 3).mean(axis=(1, 3))[2:-2, 2:-2]
    assert np.abs(table.obsm["crops"][0, 2:-2, 2:-2] - inner).max() <= 1


def test_outside_is_white_and_counted():
    corners = [[0, 0], [499, 399], [10, 200], [250, 200]]
    table = section(corners)
    pp.crops(table, size_px=40, out_px=None)
    for crop, (x, y) in zip(table.obsm["crops"], corners, strict=True):
        np.testing.assert_array_equal(crop, by_hand(IMAGE, x - 20, y - 20, 40))
    inside = [20 * 20, 21 * 21, 30 * 40, 40 * 40]
    np.testing.assert_allclose(table.obs["crops_padded"], 1 - np.array(inside) / 1600, atol=1e-6)
    assert table.uns["histoweave"]["crops"]["n_padded"]["s1"] == 3


def test_micrometres_and_scale_of_a_smaller_image():
    full = section(INSIDE * 4.0, factor=0.25, um_per_px=0.5, key="hires")
    pp.crops(full, size_um=64, out_px=32)  # 64 um = 128 full-resolution px = 32 px of the image
    plain = section(INSIDE)
    pp.crops(plain, size_px=32, out_px=None)
    np.testing.assert_array_equal(full.obsm["crops"], plain.obsm["crops"])
    entry = full.uns["histoweave"]["crops"]
    assert entry["size_px"]["s1"] == 128
    assert entry["um_per_px"]["s1"] == 0.5
    assert entry["um_per_px_source"]["s1"] == "microns_per_pixel"
    assert entry["image"]["s1"] == "hires"
    assert entry["enlargement"]["s1"] == 1
    assert entry["function"] == "pp.crops"


def test_the_argument_wins_and_a_disagreement_is_reported():
    table = section(INSIDE, um_per_px=0.5)
    with pytest.warns(HistoweaveWarning, match=r"disagree.*argument: 1 um/px.*microns_per_pixel: 0\.5 um/px"):
        pp.crops(table, size_um=32, um_per_px=1.0, out_px=None)
    assert table.obsm["crops"].shape[1] == 32
    assert table.uns["histoweave"]["crops"]["um_per_px_source"]["s1"] == "argument"


@pytest.mark.parametrize("lazy", [False, True])
def test_spatialdata_image_with_its_own_place(lazy):
    """The image starts at x 100, y 40 of the section, with two pixels a full-resolution pixel."""
    sd = pytest.importorskip("spatialdata")
    table = section((INSIDE / 2.0) + [100, 40], None)
    table.obs["instance"] = np.arange(table.n_obs)
    place = sd.transformations.Sequence(
        [
            sd.transformations.Scale([0.5, 0.5], axes=("x", "y")),
            sd.transformations.Translation([100, 40], axes=("x", "y")),
        ]
    )
    picture = sd.models.Image2DModel.parse(
        np.moveaxis(IMAGE, -1, 0), dims=("c", "y", "x"), transformations={"s1": place}
    )
    sdata = sd.SpatialData(images={"s1_full_image": picture}, tables={"table": table})
    plain = section(INSIDE)
    pp.crops(plain, size_px=32, out_px=None)
    assert pp.crops(sdata, size_px=16, out_px=None, lazy=lazy) is None
    np.testing.assert_array_equal(sdata.tables["table"].obsm["crops"], plain.obsm["crops"])
    pp.crops(sdata, size_um=16, out_px=32, lazy=lazy, key_added="um", image="full")
    np.testing.assert_array_equal(sdata.tables["table"].obsm["um"], plain.obsm["crops"])


def test_several_scales_in_one_call():
    table, single = section(INSIDE, SMOOTH), section(INSIDE, SMOOTH)
    pp.crops(table, size_um={"crops": 40, "crops_context": 120}, out_px=20)
    pp.crops(single, size_um=120, out_px=20, key_added="crops_context")
    np.testing.assert_array_equal(table.obsm["crops_context"], single.obsm["crops_context"])
    assert {"crops", "crops_context"} <= set(table.uns["histoweave"])
    assert table.uns["histoweave"]["crops_context"]["size_um"]["s1"] == 120


@pytest.mark.parametrize("kind", ["grey", "grey16", "rgba", "float"])
def test_other_kinds_of_image(kind):
    grey = IMAGE[..., 0]
    opaque = np.full((*grey.shape, 1), 255, np.uint8)
    image = {
        "grey": grey,
        "grey16": grey.astype(np.uint16) * 257,
        "rgba": np.concatenate([IMAGE, opaque], axis=2),
        "float": IMAGE.astype(np.float32) / 255,
    }[kind]
    table = section(INSIDE, image)
    pp.crops(table, size_px=32, out_px=None)
    expected = IMAGE if kind in ("rgba", "float") else np.repeat(grey[..., None], 3, axis=2)
    x, y = INSIDE[3]
    np.testing.assert_array_equal(table.obsm["crops"][3], by_hand(expected, x - 16, y - 16, 32))


def several():
    edge = [[3, 3], [498, 200]]
    one = section(np.concatenate([INSIDE, edge]), SMOOTH, name="s1")
    two = section(INSIDE + 0.3, IMAGE[::-1], name="s2", um_per_px=0.7)
    both = ad.concat([one, two], uns_merge="unique")
    both.uns["spatial"] = one.uns["spatial"] | two.uns["spatial"]
    return both[RNG.permutation(both.n_obs)].copy(), one, two


@pytest.mark.parametrize("out_px", [16, 35])
def test_lazy_crops_equal_dense_crops(out_px):
    table, one, two = several()
    dense, lazy = table.copy(), table.copy()
    pp.crops(dense, size_um=35, out_px=out_px)
    pp.crops(lazy, size_um=35, out_px=out_px, lazy=True, chunk=10)
    values = lazy.obsm["crops"]
    assert isinstance(values, da.Array)
    assert values.chunks[0][0] == 10
    np.testing.assert_array_equal(values.compute(), dense.obsm["crops"])
    pd.testing.assert_series_equal(lazy.obs["crops_padded"], dense.obs["crops_padded"])
    for single in (one, two):  # and each section is as if it were alone
        pp.crops(single, size_um=35, out_px=out_px)
        np.testing.assert_array_equal(dense[single.obs_names].obsm["crops"], single.obsm["crops"])


def test_lazy_crops_of_a_tiff(tmp_path):
    path = tmp_path / "full.tif"
    tifffile.imwrite(path, SMOOTH, photometric="rgb", tile=(64, 64), compression="deflate")
    centres = np.concatenate([INSIDE, [[2, 2], [497, 398]]])
    lazy, dense = section(centres, None), section(centres, SMOOTH)
    lazy.uns["spatial"]["s1"]["metadata"]["source_image_path"] = str(path)
    pp.crops(lazy, size_px=70.5, out_px=32, lazy=True, chunk=16)
    pp.crops(dense, size_px=70.5, out_px=32)
    np.testing.assert_array_equal(lazy.obsm["crops"].compute(), dense.obsm["crops"])
    np.testing.assert_array_equal(lazy[5:20].obsm["crops"].compute(), dense.obsm["crops"][5:20])
    pp.crops(lazy, size_px=70.5, out_px=32)  # dense crops of a lazy image
    np.testing.assert_array_equal(lazy.obsm["crops"], dense.obsm["crops"])


def test_lazy_crops_hold_the_pixels_once():
    import pickle

    big = np.zeros((1000, 1000, 3), np.uint8)
    table = section(RNG.integers(50, 950, (400, 2)), big)
    pp.crops(table, size_px=20, out_px=10, lazy=True, chunk=8)
    crops = table.obsm["crops"]
    assert crops.npartitions == 50
    graph = dict(crops.__dask_graph__())
    assert len(pickle.dumps(graph)) < 1.2 * big.nbytes


def test_lazy_crops_survive_slicing_concatenation_and_files(tmp_path):
    table, _, _ = several()
    pp.crops(table, size_um=35, out_px=16, lazy=True, chunk=16)
    expected = table.obsm["crops"].compute()
    part = table[table.obs["library_id"] == "s2"]
    np.testing.assert_array_equal(part.obsm["crops"], expected[table.obs["library_id"] == "s2"])
    joined = ad.concat([table[:30], table[30:]])
    assert isinstance(joined.obsm["crops"], da.Array)
    np.testing.assert_array_equal(joined.obsm["crops"].compute(), expected)
    table.write_h5ad(tmp_path / "t.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "t.h5ad").obsm["crops"], expected)
    with ad.settings.override(zarr_write_format=3):
        table.write_zarr(tmp_path / "t.zarr")
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "t.zarr").obsm["crops"], expected)


def test_a_section_without_image_is_marked():
    one, two = section(INSIDE, name="s1"), section(INSIDE, None, name="s2")
    table = ad.concat([one, two])
    table.uns["spatial"] = one.uns["spatial"] | two.uns["spatial"]
    for lazy in (False, True):
        with pytest.warns(HistoweaveWarning, match="40 of 80 rows.*'s2'"):
            pp.crops(table, size_px=20, out_px=None, lazy=lazy)
        np.testing.assert_array_equal(table.obs["crops_available"], table.obs["library_id"] == "s1")
        assert (np.asarray(table.obsm["crops"])[40:] == 0).all()
        assert np.asarray(table.obsm["crops"])[:40].any(axis=(1, 2, 3)).all()
    rest = table[:40].copy()
    pp.crops(rest, size_px=20, out_px=None)
    assert "crops_available" not in rest.obs
    with pytest.raises(KeyError, match=r"No section has an image.*'s2'"):
        pp.crops(table[40:].copy(), size_px=20)


def test_spots_outside():
    table = section(INSIDE[:, ::-1] + [0, 200])
    before = table.copy()
    with pytest.raises(ValueError, match=r"of 40 spots lie outside.*check_alignment"):
        pp.crops(table, size_px=20)
    assert set(table.obsm) == set(before.obsm)
    assert set(table.uns) == set(before.uns)
    table = section(np.concatenate([INSIDE, [[900, 100]]]))
    with pytest.warns(HistoweaveWarning, match=r"outside their image: \{'s1': 1\}"):
        pp.crops(table, size_px=20)
    assert (table.obsm["crops"][-1] == 255).all()
    assert table.obs["crops_padded"].iloc[-1] == 1


def test_coarse_images_are_reported():
    table = section(INSIDE * 20.0, factor=0.05, key="hires")
    with pytest.warns(HistoweaveWarning, match=r"coarse.*\{'s1': 5\.5\}"):
        pp.crops(table, size_um=110, out_px=64)
    assert table.uns["histoweave"]["crops"]["enlargement"]["s1"] == pytest.approx(64 / 5.5)


def test_bad_arguments():
    table = section(INSIDE)
    for options, text in (
        ({"size_um": 0}, "size_um"),
        ({"size_px": -3}, "size_px"),
        ({"size_um": {}}, "empty mapping"),
        ({"out_px": 0}, "out_px"),
        ({"chunk": 0, "lazy": True}, "chunk"),
        ({"um_per_px": 0}, "um_per_px"),
    ):
        with pytest.raises(ValueError, match=text):
            pp.crops(table, **options)
    with pytest.raises(TypeError, match="size_um"):
        pp.crops(table, size_um="110")
    with pytest.raises(KeyError, match=r"image='hires'.*'full'"):
        pp.crops(table, image="hires")
    with pytest.raises(KeyError, match="spatial_key"):
        pp.crops(table, spatial_key="xy")


def test_unknown_pixel_size():
    table = section(INSIDE)
    del table.uns["spatial"]["s1"]["scalefactors"]["microns_per_pixel"]
    with pytest.raises(ValueError, match=r"not known.*um_per_px="):
        pp.crops(table)
    pp.crops(table, size_px=30)  # a size in pixels needs no calibration
    pp.crops(table, um_per_px={"s1": 2.0})
    assert table.uns["histoweave"]["crops"]["size_px"]["s1"] == 55


def test_image_file_that_has_moved(tmp_path):
    table = section(INSIDE, key="hires")
    table.uns["spatial"]["s1"]["metadata"]["source_image_path"] = str(tmp_path / "gone.tif")
    with pytest.raises(FileNotFoundError, match=r"gone\.tif.*source_image_path.*image='hires'"):
        pp.crops(table)
    pp.crops(table, image="hires")


def test_missing_coordinates():
    centres = INSIDE.astype(float)
    centres[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"missing or infinite.*s1-7"):
        pp.crops(section(centres), size_px=20)


def test_native_size_differs_between_sections():
    table, _, _ = several()
    with pytest.raises(ValueError, match=r"different sizes(?=.*'s1': 35)(?=.*'s2': 50)"):
        pp.crops(table, size_um=35, out_px=None)


def test_copy_and_views():
    table = section(INSIDE)
    out = pp.crops(table, size_px=20, copy=True)
    assert "crops" in out.obsm
    assert "crops" not in table.obsm
    view = table[:5]
    pp.crops(view, size_px=20)
    assert view.obsm["crops"].shape[0] == 5
    assert "crops" not in table.obsm
