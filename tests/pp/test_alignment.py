"""Each defect is put into a sound section, found, and mended by the code of its own fix."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from spatialdata.transformations import Scale, get_transformation, set_transformation

import histoweave as hw
from histoweave._validate import HistoweaveWarning


@pytest.fixture(scope="module")
def clean() -> ad.AnnData:
    """A section of irregular outline at 2 um a pixel, with hires and lowres images."""
    return hw.datasets.simulate_section(
        n_rows=18, n_cols=15, tissue_fraction=0.55, n_genes=60, um_per_px=2.0, random_state=3
    )


@pytest.fixture
def section(clean) -> ad.AnnData:
    table = clean.copy()
    table.uns["spatial"] = {k: {a: dict(b) for a, b in v.items()} for k, v in clean.uns["spatial"].items()}
    return table


def check(data, **options) -> pd.DataFrame:
    return hw.pp.check_alignment(data, **options).set_index("check")


def entry(table):
    return next(iter(table.uns["spatial"].values()))


def mended(data, fix):
    """The object after running the fix as a user would."""
    names = {"data": data, "hw": hw, "np": np}
    exec(fix, names)
    return names["data"]


def size(table):
    height, width = entry(table)["images"]["hires"].shape[:2]
    return np.array([width, height]) / entry(table)["scalefactors"]["tissue_hires_scalef"]


def test_a_sound_section_passes(section):
    before = section.copy()
    found = check(section)
    assert (found["status"] == "ok").all(), found
    assert (found["fix"] == "").all()
    assert set(found.index) == {
        "coordinates", "image", "on_image", "on_tissue", "orientation", "scale", "pixel_size"
    }  # fmt: skip
    np.testing.assert_array_equal(section.obsm["spatial"], before.obsm["spatial"])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_no_false_alarm(seed, fraction):
    table = hw.datasets.simulate_section(
        n_rows=12, n_cols=12, tissue_fraction=fraction, n_genes=60, um_per_px=2.5, random_state=seed,
        stain_shift=1.0, array_grid="square" if seed % 2 else "hex",
    )  # fmt: skip
    assert not (check(table)["status"] == "fail").any()


@pytest.mark.parametrize("part", ["left", "some", "region"])
def test_no_false_alarm_for_part_of_the_spots(section, part):
    x = section.obsm["spatial"][:, 0]
    keep = {
        "left": x < np.median(x),
        "some": np.random.default_rng(0).random(len(x)) < 0.3,
        "region": (section.obs["region_truth"] == "region_1").to_numpy(),
    }[part]
    assert not (check(section[keep].copy())["status"] == "fail").any()


@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize("defect", ["swap", "flip x", "flip y", "turn"])
def test_axes(section, defect, arrays):
    truth, (width, height) = section.obsm["spatial"].copy(), size(section)
    x, y = truth.T
    section.obsm["spatial"] = np.stack(
        {
            "swap": (y, x),
            "flip x": (width - x, y),
            "flip y": (x, height - y),
            "turn": (width - x, height - y),
        }[defect],
        axis=1,
    )
    if not arrays:
        del section.obs["array_row"]
    found = check(section)
    assert found.loc["orientation", "status"] == "fail"
    np.testing.assert_allclose(mended(section, found.loc["orientation", "fix"]).obsm["spatial"], truth, atol=1e-6)
    assert (check(section)["status"] != "fail").all()


def test_a_mirrored_array_is_found_without_help_of_the_image(section):
    entry(section)["images"] = {"hires": np.full((400, 400, 3), 240, np.uint8)}
    section.obsm["spatial"] = section.obsm["spatial"][:, ::-1].copy()
    found = check(section)
    assert found.loc["orientation", "status"] == "fail"
    assert "mirrored" in found.loc["orientation", "message"]
    assert found.loc["on_tissue", "status"] == "warn"
    assert "one colour" in found.loc["on_tissue", "message"]


def test_a_turned_slide_is_no_defect(section):
    """Image and coordinates turned together by a quarter, as slides are mounted."""
    width, _ = size(section)
    images = entry(section)["images"]
    entry(section)["images"] = {k: np.rot90(v).copy() for k, v in images.items()}
    x, y = section.obsm["spatial"].T
    section.obsm["spatial"] = np.stack([y, width - x], axis=1)
    assert (check(section)["status"] == "ok").all()


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_coordinates_at_another_scale(section, factor):
    truth = section.obsm["spatial"].copy()
    section.obsm["spatial"] = truth * factor
    found = check(section)
    assert found.loc["pixel_size", "status"] == "fail"
    assert found.loc["scale", "status"] == "fail"
    np.testing.assert_allclose(mended(section, found.loc["scale", "fix"]).obsm["spatial"], truth, rtol=0.08)


def test_coordinates_of_the_small_image(section):
    truth = section.obsm["spatial"].copy()
    section.obsm["spatial"] = truth * entry(section)["scalefactors"]["tissue_lowres_scalef"] * 0.5
    entry(section)["scalefactors"]["tissue_lowres_scalef"] *= 0.5
    low = entry(section)["images"]["lowres"]
    entry(section)["images"]["lowres"] = np.asarray(Image.fromarray(low).reduce(2))
    found = check(section)
    assert "pixels of the lowres image" in found.loc["scale", "message"]
    np.testing.assert_allclose(mended(section, found.loc["scale", "fix"]).obsm["spatial"], truth, rtol=1e-4)


def test_scale_factor_of_another_image(section):
    factors, images = entry(section)["scalefactors"], entry(section)["images"]
    hires = images["hires"]
    images["hires"] = np.asarray(Image.fromarray(hires).resize((hires.shape[1] // 2, hires.shape[0] // 2)))
    factors["tissue_hires_scalef"] = 0.25  # one half is right
    found = check(section)
    assert found.loc["image", "status"] == "fail"
    assert "'hires'" in found.loc["image", "message"]
    mended(section, found.loc["image", "fix"])
    assert factors["tissue_hires_scalef"] == pytest.approx(0.5, rel=0.01)
    assert (check(section)["status"] == "ok").all()


def test_scale_of_an_element_of_another_image(section):
    sdata = hw.io.from_anndata(section)
    (name,) = (n for n in sdata.images if "hires" in n)
    frame = next(f for f in get_transformation(sdata.images[name], get_all=True))
    right = get_transformation(sdata.images[name], frame).to_affine_matrix(("x", "y"), ("x", "y"))[0, 0]
    set_transformation(sdata.images[name], Scale([1.5 * right] * 2, axes=("x", "y")), frame)
    found = check(sdata)
    assert (found["status"] == "fail").any()
    mended(sdata, found[found["status"] == "fail"]["fix"].iloc[0])
    placed = get_transformation(sdata.images[name], frame).to_affine_matrix(("x", "y"), ("x", "y"))
    assert placed[0, 0] == pytest.approx(right, rel=0.08)


def test_scale_factor_of_the_only_image(section):
    del entry(section)["images"]["lowres"]
    factors = entry(section)["scalefactors"]
    del factors["tissue_lowres_scalef"]
    factors["tissue_hires_scalef"] = 0.4  # one is right; the array and the microscope agree on the coordinates
    found = check(section)
    assert found.loc["scale", "status"] == "fail"
    mended(section, found.loc["scale", "fix"])
    assert factors["tissue_hires_scalef"] == pytest.approx(1.0, rel=0.08)


@pytest.mark.parametrize("value", [None, 0.0, np.nan])
def test_scale_factor_missing(section, value):
    factors = entry(section)["scalefactors"]
    factors.pop("tissue_hires_scalef")
    if value is not None:
        factors["tissue_hires_scalef"] = value
    found = check(section)
    assert found.loc["image", "status"] == "fail"
    assert "tissue_hires_scalef" in found.loc["image", "message"]
    assert "tissue_hires_scalef" in found.loc["image", "fix"]


def test_spots_off_the_image(section):
    section.obsm["spatial"][:5] += 1e5
    found = check(section)
    assert found.loc["on_image", "status"] == "warn"
    section.obsm["spatial"][:40] += 1e5
    found = check(section)
    assert found.loc["on_image", "status"] == "fail"
    assert "40 of" in found.loc["on_image", "message"]
    section.obs["in_tissue"] = np.arange(section.n_obs) >= 40
    assert check(section).loc["on_image", "status"] == "warn"


def test_spots_off_the_tissue(section):
    rng = np.random.default_rng(0)
    section.obsm["spatial"] = (rng.random((section.n_obs, 2)) * [0.15, 0.3] + [0, 0.7]) * size(section)
    del section.obs["array_row"]
    assert check(section).loc["on_tissue", "status"] == "fail"


def test_pixel_size(section):
    factors = entry(section)["scalefactors"]
    factors["microns_per_pixel"] = 2.4
    found = check(section)
    assert found.loc["pixel_size", "status"] == "fail"
    assert "array_pitch: 2 um/px" in found.loc["pixel_size", "message"]
    del factors["microns_per_pixel"], section.obs["array_row"]
    found = check(section)
    assert found.loc["pixel_size", "status"] == "warn"
    assert "um_per_px=" in found.loc["pixel_size", "fix"]
    assert check(section, um_per_px=2.0).loc["pixel_size", "status"] == "ok"


def test_printed_spot_diameter(section):
    entry(section)["metadata"]["platform"] = "visium"
    factors = entry(section)["scalefactors"]
    factors["spot_diameter_fullres"] = 65 / 2.0
    assert (check(section)["status"] == "ok").all()
    factors["spot_diameter_fullres"] = 55 / 2.0
    found = check(section)
    assert found.loc["pixel_size", "status"] == "warn"
    assert "printed 55 um" in found.loc["pixel_size", "message"]


def test_crop_sizes(section):
    entry(section)["metadata"]["platform"] = "visium"
    hw.pp.crops(section, size_um={"crops": 110, "crops_context": 330}, out_px=16)
    found = hw.pp.check_alignment(section)
    assert (found.loc[found["check"] == "crop_size", "status"] == "ok").tolist() == [True, True]
    hw.pp.crops(section, size_um={"crops": 40, "crops_context": 900}, out_px=16)
    found = hw.pp.check_alignment(section)
    found = found[found["check"] == "crop_size"]
    assert (found["status"] == "warn").all()
    for fix in found["fix"]:
        mended(section, fix)
    found = hw.pp.check_alignment(section)
    assert (found.loc[found["check"] == "crop_size", "status"] == "ok").all()
    planned = hw.pp.check_alignment(section, crop_um=20)
    planned = planned[planned["check"] == "crop_size"]
    assert planned["status"].tolist() == ["ok", "ok", "warn"]


def test_coordinates(section):
    section.obsm["spatial"][:30] = section.obsm["spatial"][30:60]
    found = check(section)
    assert found.loc["coordinates", "status"] == "fail"
    assert check(mended(section, found.loc["coordinates", "fix"])).loc["coordinates", "status"] == "ok"
    section.obsm["spatial"][3, 0] = np.nan
    found = check(section)
    assert found["status"].tolist() == ["fail"]
    assert mended(section, found.loc["coordinates", "fix"]).n_obs == section.n_obs - 1


def test_no_image(section):
    entry(section)["images"] = {}
    found = check(section)
    assert found.loc["image", "status"] == "warn"
    assert set(found.index) == {"coordinates", "image", "pixel_size"}


def test_several_sections_and_the_record(clean, section):
    section.obs["library_id"] = "other"
    section.obs_names = "o" + section.obs_names
    section.uns["spatial"] = {"other": entry(section)}
    truth = section.obsm["spatial"].copy()
    section.obsm["spatial"] = section.obsm["spatial"][:, ::-1].copy()
    both = ad.concat([clean, section])
    both.uns["spatial"] = clean.uns["spatial"] | section.uns["spatial"]
    found = hw.pp.check_alignment(both)
    wrong = found[found["status"] == "fail"]
    assert set(wrong["library_id"]) == {"other"}
    mended(both, found[(found["check"] == "orientation") & (found["library_id"] == "other")]["fix"].item())
    np.testing.assert_allclose(both.obsm["spatial"], np.concatenate([clean.obsm["spatial"], truth]))
    both.obs["library_id"] = both.obs["library_id"].map({"section_1": 1, "other": 2})  # numbers name sections as well
    both.uns["spatial"] = {"1": both.uns["spatial"]["section_1"], "2": both.uns["spatial"]["other"]}
    both.obsm["spatial"][both.obs["library_id"] == 2] = truth[:, ::-1]
    found = hw.pp.check_alignment(both)
    mended(both, found[(found["check"] == "orientation") & (found["library_id"] == "2")]["fix"].item())
    np.testing.assert_allclose(both.obsm["spatial"], np.concatenate([clean.obsm["spatial"], truth]))
    kept = pd.DataFrame(both.uns["histoweave"]["alignment"]["findings"])
    pd.testing.assert_frame_equal(kept, found, check_dtype=False)


def test_spatialdata(section, tmp_path):
    pytest.importorskip("spatialdata")
    section.obsm["spatial"] = section.obsm["spatial"][:, ::-1].copy()
    sdata = hw.io.from_anndata(section)
    found = check(sdata)
    assert found.loc["orientation", "status"] == "fail"
    mended(sdata, found.loc["orientation", "fix"])
    assert (check(sdata)["status"] == "ok").all()


def test_bad_arguments(section):
    with pytest.raises(KeyError, match="spatial_key"):
        check(section, spatial_key="xy")
    with pytest.raises(ValueError, match="crop_um"):
        check(section, crop_um=0)
    section.obsm["spatial"] = np.zeros((section.n_obs, 3))
    with pytest.raises(ValueError, match="must have shape"):
        check(section)


def test_no_warning_is_hidden(section, recwarn):
    check(section)
    assert not [w for w in recwarn if issubclass(w.category, HistoweaveWarning)]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["A1", "C2"])
def test_her2st(shared_data, name):
    folder = shared_data / "her2st"
    spots = pd.read_csv(folder / "spots" / f"{name}_selection.tsv", sep="\t")
    image = next((folder / "images").glob(f"{name}.*"))
    scale = 2000 / 6954 if name == "A1" else 1.0
    sdata = hw.io.read_st(folder / "counts" / f"{name}.tsv.gz", spots=spots, image=image, scale=scale)
    assert not (check(sdata)["status"] == "fail").any()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["01", "05"])
def test_mob(shared_data, name):
    folder = shared_data / "mob_st"
    image = folder / "images" / f"{name}.jpg"
    step = 194 / (6200 / Image.open(image).width)
    labels = folder / "annotations" / f"{name}.tsv"
    sdata = hw.io.read_st(spots=lambda position: step * (position - 1), image=image, labels=labels)
    assert not (check(sdata)["status"] == "fail").any()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["visium", "visium_hd/binned_outputs/square_016um"])
def test_space_ranger_folders(shared_data, name):
    sdata = hw.io.read_visium(shared_data / "visium_fixtures" / name)
    assert not (check(sdata)["status"] == "fail").any()


def test_crops_of_a_section_with_a_slash_in_its_name(section):
    section.obs["library_id"] = "p/1"
    section.uns["spatial"] = {"p/1": entry(section)}
    hw.pp.crops(section, size_um=900, out_px=16)
    assert check(section).loc["crop_size", "status"] == "warn"
