"""Micrometres per pixel: sections laid out with a known size, then each source removed or spoiled."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from histoweave._calibration import array_grid, array_steps, nearest_distance, pitch_in_pixels, um_per_pixel

UM_PER_PX = 0.73


def hexagonal(rows=14, columns=12, *, angle=0.1, keep=1.0, whole=False, platform="visium", **scalefactors):
    """A Visium array at a known scale, turned by ``angle``, with some spots missing."""
    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(rows), columns)
    col = np.tile(np.arange(columns), rows) * 2 + row % 2
    um = np.stack([col * 50.0, row * 50.0 * np.sqrt(3)], axis=1)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    xy = um @ turn / UM_PER_PX + 300
    return table(row, col, xy, rng, keep, whole, {"platform": platform} if platform else {}, scalefactors)


def square(pitch_um, platform, *, keep=1.0, **scalefactors):
    rng = np.random.default_rng(0)
    row, col = (g.ravel() for g in np.mgrid[1:15, 3:20])
    xy = np.stack([col, row], axis=1) * pitch_um / UM_PER_PX
    return table(row, col, xy, rng, keep, False, {"platform": platform}, scalefactors)


def table(row, col, xy, rng, keep, whole, metadata, scalefactors):
    kept = rng.random(len(row)) < keep
    out = ad.AnnData(np.zeros((int(kept.sum()), 1), np.float32))
    out.obs["array_row"], out.obs["array_col"] = row[kept], col[kept]
    out.obsm["spatial"] = np.rint(xy[kept]) if whole else xy[kept]
    out.uns["spatial"] = {"s": {"scalefactors": scalefactors, "metadata": metadata}}
    return out


def calibrate(adata, **options):
    return um_per_pixel(adata, "s", np.arange(adata.n_obs), **options)


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("platform", ["visium", None])
def test_pitch_of_a_hexagonal_array(keep, platform):
    found = calibrate(hexagonal(keep=keep, platform=platform))
    assert found.source == "array_pitch"
    assert found.um_per_px == pytest.approx(UM_PER_PX, rel=1e-9)


def test_whole_pixel_coordinates_average_out():
    assert calibrate(hexagonal(whole=True, keep=0.7)).um_per_px == pytest.approx(UM_PER_PX, rel=2e-3)


def test_misplaced_spots_do_not_matter():
    adata = hexagonal()
    adata.obsm["spatial"][::10] += np.random.default_rng(1).normal(0, 500, adata.obsm["spatial"][::10].shape)
    assert calibrate(adata).um_per_px == pytest.approx(UM_PER_PX, rel=1e-2)


def test_legacy_array():
    found = calibrate(square(200.0, "st", keep=0.6))
    assert found.um_per_px == pytest.approx(UM_PER_PX)
    assert array_grid(square(200.0, "st", keep=0.6), "s", np.arange(5)) == "square"


def test_stored_pitch_counts_before_the_platform():
    adata = square(16.0, "visium_hd")
    with pytest.raises(ValueError, match="um_per_px="):
        calibrate(adata)
    adata.uns["spatial"]["s"]["metadata"]["array_pitch_um"] = 16.0
    assert calibrate(adata).um_per_px == pytest.approx(UM_PER_PX)


def test_order_of_the_sources():
    diameter = 65 / UM_PER_PX
    adata = hexagonal(spot_diameter_fullres=diameter, microns_per_pixel=UM_PER_PX * 1.01)
    found = calibrate(adata)
    assert found.source == "microns_per_pixel"
    assert list(found.checks) == ["microns_per_pixel", "array_pitch", "spot_diameter_fullres"]
    assert found.disagreements() == {}
    assert calibrate(adata, um_per_px=2.0).um_per_px == 2.0
    assert calibrate(adata, um_per_px={"s": 2.0}).source == "argument"
    assert calibrate(adata, um_per_px={"other": 2.0}).source == "microns_per_pixel"
    del adata.obs["array_row"]
    del adata.uns["spatial"]["s"]["scalefactors"]["microns_per_pixel"]
    found = calibrate(adata)
    assert found.source == "spot_diameter"
    assert found.um_per_px == pytest.approx(UM_PER_PX)


def test_the_printed_diameter_in_place_of_the_theoretical_one_disagrees():
    found = calibrate(hexagonal(spot_diameter_fullres=55 / UM_PER_PX))
    assert found.um_per_px == pytest.approx(UM_PER_PX)
    assert found.disagreements() == {"spot_diameter_fullres": pytest.approx(65 / 55)}


def test_diameter_says_nothing_on_other_platforms():
    assert "spot_diameter_fullres" not in calibrate(square(200.0, "st", spot_diameter_fullres=100)).checks


def test_steps_have_direction():
    adata = hexagonal(angle=0.0)
    steps = array_steps(adata, "s", np.arange(adata.n_obs))
    pitch = 100 / UM_PER_PX
    np.testing.assert_allclose(steps[0, 2], [pitch, 0], atol=1e-9)
    np.testing.assert_allclose(steps[1, 1], [pitch / 2, pitch * np.sqrt(3) / 2])
    assert pitch_in_pixels(steps) == pytest.approx(pitch)


def test_rows_of_one_section_only():
    one, two = hexagonal(), hexagonal()
    two.obsm["spatial"] *= 2
    both = ad.concat([one, two], index_unique="-")
    both.uns["spatial"] = {"s": one.uns["spatial"]["s"]}
    assert um_per_pixel(both, "s", np.arange(one.n_obs)).um_per_px == pytest.approx(UM_PER_PX)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_stored_values_that_cannot_be(value):
    adata = square(16.0, "visium_hd", microns_per_pixel=value)
    with pytest.raises(ValueError, match=r"microns_per_pixel.*must be positive"):
        calibrate(adata)
    assert calibrate(adata, um_per_px=0.5).um_per_px == 0.5
    with pytest.raises((ValueError, TypeError), match="um_per_px"):
        calibrate(adata, um_per_px=value)


def test_nothing_known():
    adata = hexagonal()
    del adata.obs["array_row"]
    with pytest.raises(ValueError, match=r"'s' is not known.*Pass `um_per_px=`"):
        calibrate(adata)


def test_missing_array_positions_are_no_positions():
    adata = hexagonal(spot_diameter_fullres=65 / UM_PER_PX)
    adata.obs["array_row"] = adata.obs["array_row"].astype(float)
    adata.obs.iloc[3, adata.obs.columns.get_loc("array_row")] = np.nan
    assert calibrate(adata).source == "spot_diameter"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["A1", "C2"])
def test_her2st(shared_data, name):
    """The microscope's scale is not in the files; 200 um arrays of this study span about 6.2 mm."""
    import pandas as pd

    spots = pd.read_csv(shared_data / "her2st" / "spots" / f"{name}_selection.tsv", sep="\t")
    adata = ad.AnnData(np.zeros((len(spots), 1), np.float32))
    adata.obs["array_row"], adata.obs["array_col"] = spots["y"].to_numpy(), spots["x"].to_numpy()
    adata.obsm["spatial"] = spots[["pixel_x", "pixel_y"]].to_numpy()
    adata.uns["spatial"] = {"s": {"metadata": {"platform": "st"}}}
    steps = array_steps(adata, "s", np.arange(adata.n_obs))
    across, down = (np.linalg.norm(v) for v in steps.values())
    assert across == pytest.approx(down, rel=0.02)
    slope = np.polyfit(spots["new_x"], spots["pixel_x"], 1)[0]
    assert calibrate(adata).um_per_px == pytest.approx(200 / slope, rel=0.02)


def test_nearest_distance_against_all_pairs():
    xy = np.random.default_rng(0).uniform(0, 100, (50, 2))
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert nearest_distance(xy) == pytest.approx(np.median(distance.min(axis=1)))
    assert np.isnan(nearest_distance(xy[:1]))
