import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave.pl._grad_cam import stitch

GREY = 100


@pytest.fixture
def explained(table):
    """Grey crops; the map of row i is i in its upper left cell, and 0 in the others."""
    n = table.n_obs
    table.obsm["crops"] = np.full((n, 16, 16, 3), GREY, dtype=np.uint8)
    maps = np.zeros((n, 2, 2), dtype=np.float32)
    maps[:, 0, 0] = np.arange(n)
    maps[-1] = np.nan
    table.obsm["grad_cam"] = maps
    table.obs["grad_cam_class"] = pd.Categorical(["tumour", "stroma"] * (n // 2))
    table.uns["histoweave"] = {"crops": {"size_px": {"s1": 100.0}, "size_um": {"s1": 118.0}},
                               "grad_cam": {"params": {"crops_key": "crops"}}}  # fmt: skip
    return table


def tiles(ax, n_lines, n_tiles, group=2):
    mosaic = ax.images[0].get_array()
    lefts = [16 * i + i // group for i in range(n_tiles)]
    return [[mosaic[17 * line :, left:][:16, :16] for left in lefts] for line in range(n_lines)]


def test_crops_stand_beside_their_overlay(explained):
    ax = hw.pl.grad_cam(explained, n=3, alpha=0.5, cmap="viridis")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["stroma", "tumour"]
    top = 255 * np.array(mpl.colormaps["viridis"](1.0)[:3])
    for line in tiles(ax, 2, 6):
        for crop, overlay in zip(line[::2], line[1::2], strict=True):
            assert (crop == GREY).all()
            np.testing.assert_array_equal(overlay[12:, 12:], GREY)  # nothing where the map is 0
            if (overlay != GREY).any():  # the map of row 0 is 0 everywhere
                np.testing.assert_allclose(overlay[0, 0], (GREY + top) / 2, atol=1)


def test_several_maps_and_named_rows(explained):
    explained.obsm["other"] = np.nan_to_num(explained.obsm["grad_cam"])[:, ::-1, ::-1]
    names = [explained.obs_names[i] for i in (6, 2)]
    ax = hw.pl.grad_cam(explained, key=["grad_cam", "other"], rows=names)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["crop", "grad_cam", "other"]
    ((crop, first, second, *_),) = tiles(ax, 1, 6, group=3)
    assert (crop == GREY).all()
    np.testing.assert_array_equal(first, second[::-1, ::-1])


def test_choice_follows_the_seed_and_leaves_rows_without_maps_out(explained):
    explained.obsm["grad_cam"][4:] = np.nan
    explained.obsm["grad_cam"][:4] = 1
    explained.obsm["crops"][4:] = 0
    pictures = [hw.pl.grad_cam(explained, n=9, random_state=1).images[0].get_array() for _ in range(2)]
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].min() > 0


def test_stitched_maps_are_means_over_the_crops_that_cover_a_place():
    rng = np.random.default_rng(0)
    maps, xy = rng.random((5, 4, 4)).astype(np.float32), rng.uniform(0, 60, (5, 2))
    values, box = stitch(maps, xy, side=40.0)
    step = (box[2] - box[0]) / values.shape[1]
    x, y = (low + (np.arange(n) + 0.5) * step for low, n in zip(box[:2], values.shape[::-1], strict=True))
    for i in range(0, values.shape[0], 7):
        for j in range(0, values.shape[1], 7):
            offset = np.array([x[j], y[i]]) - xy
            if (np.abs(np.abs(offset) - 20) < step).any():  # on the edge of a crop
                continue
            inside = (np.abs(offset) < 20).all(axis=1)
            place = np.clip((offset[inside] + 20) / 10 - 0.5, 0, 3)
            expected = [_bilinear(m, *p[::-1]) for m, p in zip(maps[inside], place, strict=True)]
            if not len(expected):
                assert np.isnan(values[i, j])
            else:
                assert values[i, j] == pytest.approx(np.mean(expected), abs=0.08)


def _bilinear(image, y, x):
    i, j = min(int(y), 2), min(int(x), 2)
    rows = image[i] * (1 - (y - i)) + image[i + 1] * (y - i)
    return rows[j] * (1 - (x - j)) + rows[j + 1] * (x - j)


def test_section_shows_maps_where_their_crops_were(explained):
    explained.obsm["grad_cam"][:-1] = 0
    hot = 14
    explained.obsm["grad_cam"][hot] = 1
    ax = hw.pl.grad_cam_section(explained, alpha=0.8)
    image, overlay = ax.images
    left, right, bottom, top = overlay.get_extent()
    opacity = np.asarray(overlay.get_array())[..., 3]
    rows, columns = np.nonzero(opacity > 0.7)
    centre = [left + (columns.mean() + 0.5) * (right - left) / opacity.shape[1],
              top + (rows.mean() + 0.5) * (bottom - top) / opacity.shape[0]]  # fmt: skip
    np.testing.assert_allclose(centre, explained.obsm["spatial"][hot], atol=3)
    assert opacity.max() == pytest.approx(0.8)
    assert image.get_extent()[1] >= right - 5
    assert ax.get_title() == "evidence for the explained class"


def test_section_names_the_class(explained):
    explained.obs["grad_cam_class"] = "tumour"
    assert hw.pl.grad_cam_section(explained, image=False).get_title() == "evidence for tumour"


def test_bad_input_is_named(explained, two):
    with pytest.raises(KeyError, match=r"Run `hw\.tl\.grad_cam"):
        hw.pl.grad_cam(explained, key="cam")
    with pytest.raises(KeyError, match="`rows` names rows without maps"):
        hw.pl.grad_cam(explained, rows=[explained.obs_names[-1]])
    two.obsm["grad_cam"] = np.ones((two.n_obs, 2, 2))
    with pytest.raises(ValueError, match="several sections"):
        hw.pl.grad_cam_section(two)
    del explained.uns["histoweave"]["crops"]["size_px"]
    with pytest.raises(KeyError, match=r"Run `hw\.pp\.crops"):
        hw.pl.grad_cam_section(explained)
    explained.obsm["grad_cam"][:] = np.nan
    for draw in (hw.pl.grad_cam, hw.pl.grad_cam_section):
        with pytest.raises(ValueError, match=r"has (maps|a map)"):
            draw(explained)
    explained.obsm["grad_cam"] = np.zeros((explained.n_obs, 4))
    with pytest.raises(ValueError, match="must hold maps"):
        hw.pl.grad_cam(explained)
