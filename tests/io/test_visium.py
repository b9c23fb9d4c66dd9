"""Reading Space Ranger folders, against what was written and against spatialdata-io and scanpy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from spatialdata.transformations import get_transformation

import histoweave as hw
from histoweave._validate import HistoweaveWarning


def check_against(truth, sdata, lib: str, rows: np.ndarray) -> None:
    table = sdata.tables["table"]
    expected = truth.positions[rows]
    assert list(table.obs_names) == expected["barcode"].tolist()
    np.testing.assert_array_equal(table.X.toarray(), truth.counts[rows])
    np.testing.assert_array_equal(table.layers["counts"].toarray(), truth.counts[rows])
    np.testing.assert_array_equal(
        table.obsm["spatial"], expected[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(float)
    )
    assert table.obsm["spatial"].dtype == np.float64
    assert table.obs["in_tissue"].dtype == bool
    assert table.obs["in_tissue"].tolist() == (expected["in_tissue"] == 1).tolist()
    assert table.obs["array_row"].tolist() == expected["array_row"].tolist()
    assert table.obs["array_col"].tolist() == expected["array_col"].tolist()
    assert set(table.obs["library_id"]) == {lib}
    assert list(table.var_names) == ["GENE1", "GENE2", "TWIN", "TWIN-1", "MT-CO1"]
    assert table.var["gene_ids"].tolist() == [f"ENSG{i:05d}" for i in range(5)]
    assert table.uns["spatialdata_attrs"] == {
        "region": lib,
        "region_key": "library_id",
        "instance_key": "spot_id",
    }
    assert sdata.coordinate_systems == [lib]


VERSIONS = {
    "v1_h5": {"positions": "tissue_positions_list.csv", "header": False},
    "v1_mtx": {"positions": "tissue_positions_list.csv", "header": False, "matrix": "mtx.gz"},
    "v2_h5": {"positions": "tissue_positions.csv"},
    "v2_mtx_plain": {"positions": "tissue_positions.csv", "matrix": "mtx"},
    "list_with_header": {"positions": "tissue_positions_list.csv", "header": True},
    "v3_parquet": {"positions": "tissue_positions.parquet"},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("counts", ["filtered", "raw"])
def test_every_version(section, version, counts):
    truth = section("P1/outs", **VERSIONS[version])
    sdata = hw.io.read_visium(truth.path, counts=counts, donor="D7")
    rows = truth.inside if counts == "filtered" else np.ones(len(truth.positions), dtype=bool)
    check_against(truth, sdata, "P1", rows)
    assert set(sdata.tables["table"].obs["donor"]) == {"D7"}


def test_images_circles_and_scale_factors(section):
    truth = section("P1/outs")
    sdata = hw.io.read_visium(truth.path)
    assert set(sdata.images) == {"P1_hires_image", "P1_lowres_image"}
    hires = sdata.images["P1_hires_image"]
    assert hires.dims == ("c", "y", "x")
    assert hires.dtype == np.uint8
    np.testing.assert_array_equal(hires.transpose("y", "x", "c").to_numpy(), truth.image)
    matrix = get_transformation(hires, "P1").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([2.0, 2.0, 1.0]))
    circles = sdata.shapes["P1"]
    assert set(circles["radius"]) == {6.5}
    np.testing.assert_array_equal(circles.get_coordinates(), sdata.tables["table"].obsm["spatial"])
    entry = sdata.tables["table"].uns["spatial"]["P1"]
    assert entry["scalefactors"]["tissue_hires_scalef"] == 0.5
    assert entry["metadata"] == {
        "platform": "visium",
        "array_pitch_um": 100.0,
        "array_grid": "hex",
        "chemistry_description": "Visium V1",
        "software_version": "spaceranger-2.1.0",
    }
    assert "images" not in entry


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_full_resolution_image(section, tmp_path, suffix):
    truth = section("P1/outs")
    pixels = np.random.default_rng(1).integers(0, 256, (160, 240, 3), dtype=np.uint8)
    file = tmp_path / f"Gewebe Nº1.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(file, pixels, tile=(64, 64), photometric="rgb")
    else:
        from PIL import Image

        Image.fromarray(pixels).save(file)
    sdata = hw.io.read_visium(truth.path, image=file)
    full = sdata.images["P1_full_image"]
    assert hasattr(full.data, "dask")
    np.testing.assert_array_equal(full.transpose("y", "x", "c").to_numpy(), pixels)
    np.testing.assert_allclose(get_transformation(full, "P1").to_affine_matrix(("x", "y"), ("x", "y")), np.eye(3))
    metadata = sdata.tables["table"].uns["spatial"]["P1"]["metadata"]
    assert metadata["source_image_path"] == str(file.resolve())


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_grey_rgba_and_16_bit_images_become_rgb(section, mode):
    truth = section("P1/outs", hires_mode="RGB" if mode == "I;16" else mode)
    file = truth.path / "spatial" / "tissue_hires_image.png"
    if mode == "I;16":
        from PIL import Image

        Image.fromarray(np.full((80, 120), 65535, dtype=np.uint16)).save(file)
    hires = hw.io.read_visium(truth.path).images["P1_hires_image"]
    assert hires.shape == (3, 80, 120)
    assert hires.dtype == np.uint8
    if mode == "RGBA":
        np.testing.assert_array_equal(hires.transpose("y", "x", "c").to_numpy(), truth.image)
    if mode == "I;16":
        assert (hires.to_numpy() == 255).all()


@pytest.mark.parametrize(
    ("name", "options", "lib"),
    [
        ("P1/outs", {}, "P1"),
        ("P1/outs", {"library": "L9"}, "L9"),
        ("P1/outs", {"library": "L9", "prefix": "V1_Breast_"}, "V1_Breast"),
        ("Gewebe ä 1/outs", {}, "Gewebe_ä_1"),
        ("plain", {}, "plain"),
    ],
)
def test_name_of_the_section(section, name, options, lib):
    truth = section(name, **options)
    assert list(hw.io.read_visium(truth.path).shapes) == [lib]
    assert list(hw.io.read_visium(truth.path, library_id="mine").shapes) == ["mine"]


def test_folder_above_outs_and_text_paths(section):
    truth = section("P1/outs")
    check_against(truth, hw.io.read_visium(str(truth.path.parent)), "P1", truth.inside)


def test_name_that_spatialdata_refuses(section):
    with pytest.raises(ValueError, match=r"library_id='my section'.*'my_section'"):
        hw.io.read_visium(section().path, library_id="my section")


# -- Visium HD ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["HD1", "outs", "binned_outputs", "bin"])
def test_hd_from_any_level(hd, level):
    path = {
        "HD1": hd["root"],
        "outs": hd["root"] / "outs",
        "binned_outputs": hd["root"] / "outs/binned_outputs",
        "bin": hd[16].path,
    }[level]
    sdata = hw.io.read_visium(path, bin_um=16)
    check_against(hd[16], sdata, "HD1", hd[16].inside)
    entry = sdata.tables["table"].uns["spatial"]["HD1"]
    assert entry["scalefactors"]["microns_per_pixel"] == 0.5
    assert entry["metadata"]["platform"] == "visium_hd"
    assert entry["metadata"]["array_pitch_um"] == 16.0
    assert entry["metadata"]["array_grid"] == "square"
    assert set(sdata.shapes["HD1"]["radius"]) == {16.0}


# -- missing pieces ----------------------------------------------------------------------------------------


def test_without_counts_there_are_spots_and_images(section):
    truth = section("P1/outs", kinds=())
    with pytest.raises(FileNotFoundError, match=r"counts=None"):
        hw.io.read_visium(truth.path)
    sdata = hw.io.read_visium(truth.path, counts=None)
    table = sdata.tables["table"]
    assert table.shape == (int(truth.inside.sum()), 0)
    assert "counts" not in table.layers
    placed = truth.positions.set_index("barcode").loc[table.obs_names, ["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    np.testing.assert_array_equal(table.obsm["spatial"], placed.to_numpy(float))


def test_barcodes_without_position_are_dropped_and_counted(section):
    truth = section("P1/outs")
    file = truth.path / "spatial/tissue_positions.csv"
    pd.read_csv(file).query("array_row > 0").to_csv(file, index=False)
    with pytest.warns(HistoweaveWarning, match="7 of 42 barcodes have no position"):
        sdata = hw.io.read_visium(truth.path)
    table = sdata.tables["table"]
    assert table.n_obs == 35
    assert table.uns["histoweave"]["section_P1"]["barcodes_dropped"] == 7


@pytest.mark.parametrize("factor", [None, 0, float("nan"), -1, "big"])
def test_image_without_scale_factor_is_left_out(section, factor):
    factors = {"spot_diameter_fullres": 13.0, "tissue_lowres_scalef": 0.1}
    if factor is not None:
        factors["tissue_hires_scalef"] = factor
    truth = section("P1/outs", factors=factors)
    with pytest.warns(HistoweaveWarning, match="hires image was left out"):
        sdata = hw.io.read_visium(truth.path)
    assert set(sdata.images) == {"P1_lowres_image"}
    table = sdata.tables["table"]
    assert table.uns["histoweave"]["section_P1"]["images_left_out"].tolist() == ["hires"]
    assert "tissue_hires_scalef" not in table.uns["spatial"]["P1"]["scalefactors"]


def test_missing_spot_diameter_is_drawn_from_the_array(section):
    truth = section("P1/outs", factors={"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1})
    with pytest.warns(HistoweaveWarning, match="no usable `spot_diameter_fullres`"):
        sdata = hw.io.read_visium(truth.path)
    nearest = np.hypot(10, 17)  # the neighbour in the next row is nearer than the one 20 px along the row
    np.testing.assert_allclose(sdata.shapes["P1"]["radius"], 0.55 * nearest / 2)
    assert "spot_diameter_fullres" not in sdata.tables["table"].uns["spatial"]["P1"]["scalefactors"]


def test_missing_scale_factor_file(section):
    truth = section("P1/outs")
    (truth.path / "spatial/scalefactors_json.json").unlink()
    with pytest.warns(HistoweaveWarning, match="scalefactors_json.json' is missing"):
        sdata = hw.io.read_visium(truth.path)
    assert not sdata.images


def test_the_folder_is_only_read(section):
    truth = section("P1/outs")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in truth.path.rglob("*")}
    folders = [truth.path, truth.path / "spatial"]
    for folder in folders:
        folder.chmod(0o555)
    try:
        hw.io.read_visium(truth.path)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in truth.path.rglob("*")}


# -- bad input ---------------------------------------------------------------------------------------------


def test_truncated_image_names_the_file(section):
    truth = section("P1/outs")
    file = truth.path / "spatial/tissue_hires_image.png"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises((OSError, ValueError), match=r"tissue_hires_image\.png"):
        hw.io.read_visium(truth.path)


def test_positions_of_another_section(section):
    truth = section("P1/outs")
    file = truth.path / "spatial/tissue_positions.csv"
    file.write_text(file.read_text().replace("-1,", "-2,"))
    with pytest.raises(ValueError, match=r"No barcode of .* is in the spot positions .*-2'"):
        hw.io.read_visium(truth.path)


def test_wrong_option(section):
    with pytest.raises(ValueError, match="`counts` must be one of 'filtered', 'raw'"):
        hw.io.read_visium(section().path, counts="all")


# -- against the peers -------------------------------------------------------------------------------------


def same_as_peer(ours, theirs, name: str, table: str = "table") -> None:
    a, b = ours.tables["table"], theirs.tables[table]
    assert list(a.obs_names) == list(b.obs_names)
    assert list(a.var_names) == list(b.var_names)
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    np.testing.assert_array_equal(a.obsm["spatial"], b.obsm["spatial"])
    for key in ("in_tissue", "array_row", "array_col"):
        assert (a.obs[key].astype(int).to_numpy() == b.obs[key].astype(int).to_numpy()).all()
    circles = ours.shapes[next(iter(ours.shapes))]
    np.testing.assert_allclose(circles["radius"], theirs.shapes[name]["radius"])
    np.testing.assert_array_equal(circles.get_coordinates(), theirs.shapes[name].get_coordinates())


def test_equals_spatialdata_io_and_scanpy(section):
    import scanpy as sc
    from spatialdata_io import visium

    truth = section("P1/outs", library="P1", positions="tissue_positions.csv")
    ours = hw.io.read_visium(truth.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = visium(truth.path, dataset_id="P1")
        classic = sc.read_visium(truth.path)
    same_as_peer(ours, theirs, "P1")
    for name in ("P1_hires_image", "P1_lowres_image"):
        np.testing.assert_array_equal(ours.images[name].to_numpy(), theirs.images[name].to_numpy())
        np.testing.assert_allclose(
            get_transformation(ours.images[name], "P1").to_affine_matrix(("x", "y"), ("x", "y")),
            get_transformation(theirs.images[name], "P1").to_affine_matrix(("x", "y"), ("x", "y")),
        )
    np.testing.assert_array_equal(ours.tables["table"].obsm["spatial"], classic.obsm["spatial"])
    np.testing.assert_array_equal(ours.tables["table"].X.toarray(), classic.X.toarray())
    assert classic.uns["spatial"]["P1"]["scalefactors"] == ours.tables["table"].uns["spatial"]["P1"]["scalefactors"]


def test_hd_equals_spatialdata_io(hd):
    import h5py
    from spatialdata_io import visium_hd

    outs = hd["root"] / "outs"
    with h5py.File(outs / "feature_slice.h5", "w") as file:  # what the peer insists on
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps({"file_format": "1.0"})})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = visium_hd(outs, dataset_id="HD1", bin_size=16, bins_as_squares=False, load_segmentations_only=False)
    same_as_peer(hw.io.read_visium(outs, bin_um=16), theirs, "HD1_square_016um", "square_016um")


@pytest.mark.real_data
def test_real_folders(shared_data: Path, tmp_path: Path):
    from spatialdata_io import visium

    fixtures = shared_data / "visium_fixtures"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = visium(fixtures / "visium", dataset_id="custom")
        same_as_peer(hw.io.read_visium(fixtures / "visium"), theirs, "custom")
        theirs = visium(fixtures / "visium_without_library_id", dataset_id="x")
        same_as_peer(hw.io.read_visium(fixtures / "visium_without_library_id"), theirs, "x")
    assert hw.io.read_visium(fixtures / "visium_mtx", counts="raw").tables["table"].shape == (50, 50)
    hd = hw.io.read_visium(fixtures / "visium_hd")
    assert hd.tables["table"].shape == (2695, 100)
    factors = hd.tables["table"].uns["spatial"]["visium_hd"]["scalefactors"]
    assert factors["bin_size_um"] / factors["spot_diameter_fullres"] == pytest.approx(factors["microns_per_pixel"])


@pytest.mark.real_data
def test_real_section_without_counts(shared_data: Path):
    sdata = hw.io.read_visium(shared_data / "dlpfc" / "151507", counts=None)
    table = sdata.tables["table"]
    assert table.shape == (4226, 0)
    assert set(sdata.images) == {"151507_lowres_image"}
    image = sdata.images["151507_lowres_image"]
    scale = table.uns["spatial"]["151507"]["scalefactors"]["tissue_lowres_scalef"]
    inside = table.obsm["spatial"] * scale
    assert (inside >= 0).all()
    assert (inside < [image.sizes["x"], image.sizes["y"]]).all()
