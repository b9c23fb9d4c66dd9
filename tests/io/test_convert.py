"""Between SpatialData and AnnData, and through files, without loss."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
from spatialdata.transformations import Affine, get_transformation, set_transformation

import histoweave as hw
from histoweave._validate import HistoweaveWarning


@pytest.fixture
def sdata(section, tmp_path):
    """A section with what a workflow adds: labels with gaps, crops, probabilities, embedding, records."""
    from PIL import Image

    truth = section("P1/outs")
    full = tmp_path / "full.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (160, 240, 3), dtype=np.uint8)).save(full)
    sdata = hw.io.read_visium(truth.path, donor="D1", image=full)
    enrich(sdata.tables["table"])
    return sdata


def enrich(table: ad.AnnData, *, lazy: bool = False) -> None:
    generator = np.random.default_rng(0)
    n = table.n_obs
    table.obs["region"] = pd.Categorical([None if i % 5 == 0 else f"class {i % 3}" for i in range(n)])
    crops = generator.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    table.obsm["crops"] = da.from_array(crops, chunks=(10, 8, 8, 3)) if lazy else crops
    table.obsm["X_image"] = generator.normal(size=(n, 4)).astype(np.float32)
    table.obsm["X_image"][3] = np.nan
    table.obsm["region_probability"] = pd.DataFrame(
        generator.dirichlet([1, 1, 1], n), index=table.obs_names, columns=["class 0", "class 1", "class 2"]
    )
    hw.io.read_labels(table, pd.DataFrame({"Barcode": table.obs_names[:3], "r": ["a", "b", "a"]}), labels_key="second")


def same(a, b, where: str = "") -> None:
    """Equal in value, type and order, whatever the container."""
    if hasattr(a, "keys") and not isinstance(a, pd.DataFrame):
        assert set(a.keys()) == set(b.keys()), where
        for key in a.keys():
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif sp.issparse(a):
        assert (a.shape, a.dtype, a.format) == (b.shape, b.dtype, b.format), where
        assert (a != b).nnz == 0, where
    elif isinstance(a, np.ndarray):
        assert a.dtype.kind == b.dtype.kind or {a.dtype.kind, b.dtype.kind} <= set("OUT"), where
        assert a.dtype.kind not in "fiu" or a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    else:
        assert a == b, where


def same_table(a: ad.AnnData, b: ad.AnnData) -> None:
    for slot in ("X", "obs", "var", "layers", "obsm", "obsp", "varm", "uns"):
        same(getattr(a, slot), getattr(b, slot), slot)


def same_spatialdata(a: sd.SpatialData, b: sd.SpatialData) -> None:
    assert set(a.images) == set(b.images)
    assert set(a.shapes) == set(b.shapes)
    assert sorted(a.coordinate_systems) == sorted(b.coordinate_systems)
    for name in a.images:
        np.testing.assert_array_equal(a.images[name].to_numpy(), b.images[name].to_numpy())
        assert list(a.images[name].coords["c"].values) == list(b.images[name].coords["c"].values)
    for name in a.shapes:
        assert a.shapes[name].geom_equals(b.shapes[name]).all()
        np.testing.assert_array_equal(a.shapes[name]["radius"], b.shapes[name]["radius"])
    for name in [*a.images, *a.shapes]:
        one, two = (get_transformation(x[name], get_all=True) for x in (a, b))
        assert set(one) == set(two)
        for frame in one:
            np.testing.assert_allclose(
                one[frame].to_affine_matrix(("x", "y"), ("x", "y")),
                two[frame].to_affine_matrix(("x", "y"), ("x", "y")),
            )
    for name in a.tables:
        same_table(a.tables[name], b.tables[name])


def test_to_anndata_is_what_squidpy_expects(sdata):
    adata = hw.io.to_anndata(sdata)
    entry = adata.uns["spatial"]["P1"]
    assert set(entry["images"]) == {"hires", "lowres"}
    hires = entry["images"]["hires"]
    assert isinstance(hires, np.ndarray)
    assert hires.dtype == np.uint8
    np.testing.assert_array_equal(hires, sdata.images["P1_hires_image"].transpose("y", "x", "c").to_numpy())
    assert entry["scalefactors"] == sdata.tables["table"].uns["spatial"]["P1"]["scalefactors"]
    assert "images" not in sdata.tables["table"].uns["spatial"]["P1"]
    import matplotlib as mpl
    import squidpy as sq

    mpl.use("agg")
    sq.pl.spatial_scatter(adata, color="region", library_id="P1")


def test_there_and_back(sdata):
    back = hw.io.from_anndata(hw.io.to_anndata(sdata))
    same_spatialdata(sdata, back)


def test_back_and_there(sdata):
    adata = hw.io.to_anndata(sdata, images=["full", "hires", "lowres"])
    assert set(adata.uns["spatial"]["P1"]["images"]) == {"full", "hires", "lowres"}
    again = hw.io.to_anndata(hw.io.from_anndata(adata), images=["full", "hires", "lowres"])
    same_table(adata, again)


def test_several_sections(section):
    both = hw.io.concat([hw.io.read_visium(section(f"{n}/outs", seed=i).path) for i, n in enumerate(("P1", "P2"))])
    back = hw.io.from_anndata(hw.io.to_anndata(both))
    same_spatialdata(both, back)
    assert sorted(back.coordinate_systems) == ["P1", "P2"]


def test_legacy_st_keeps_its_full_image(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((60, 60, 3), 9, np.uint8)).save(tmp_path / "a.png")
    spots = pd.DataFrame({"x": [1, 1, 2], "y": [1, 2, 1], "pixel_x": [10, 10, 20], "pixel_y": [10, 20, 10]})
    sdata = hw.io.read_st(spots=spots, image=tmp_path / "a.png")
    adata = hw.io.to_anndata(sdata)
    assert adata.uns["spatial"]["a"]["images"]["full"].shape == (60, 60, 3)
    assert adata.uns["spatial"]["a"]["scalefactors"]["tissue_full_scalef"] == 1.0
    assert set(hw.io.from_anndata(adata).images) == {"a_full_image"}


def test_scanpy_section(section):
    import scanpy as sc

    truth = section("P1/outs", library="L1")
    with pytest.warns(UserWarning, match="."):
        adata = sc.read_visium(truth.path)
    adata.var_names_make_unique()
    sdata = hw.io.from_anndata(adata)
    ours = hw.io.read_visium(truth.path)
    for name in ("L1_hires_image", "L1_lowres_image"):  # scanpy holds floats in 0..1
        np.testing.assert_array_equal(sdata.images[name].to_numpy(), ours.images[name].to_numpy())
    np.testing.assert_array_equal(sdata.shapes["L1"].get_coordinates(), ours.shapes["L1"].get_coordinates())
    assert "library_id" not in adata.obs


# -- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_anndata_through_files(sdata, tmp_path, suffix, lazy):
    adata = hw.io.to_anndata(sdata)
    enrich(adata, lazy=lazy)
    file = tmp_path / f"Schnitt ä.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(file)
        back = ad.read_h5ad(file)
    else:
        adata.write_zarr(file)
        back = ad.read_zarr(file)
    if lazy:
        assert hasattr(adata.obsm["crops"], "dask")
        adata.obsm["crops"] = adata.obsm["crops"].compute()
    same_table(adata, back)
    same_spatialdata(hw.io.from_anndata(adata), hw.io.from_anndata(back))


@pytest.mark.parametrize("lazy", [False, True])
def test_spatialdata_through_zarr(sdata, tmp_path, lazy):
    enrich(sdata.tables["table"], lazy=lazy)
    sdata.write(tmp_path / "P1.zarr")
    back = sd.read_zarr(tmp_path / "P1.zarr")
    if lazy:
        sdata.tables["table"].obsm["crops"] = sdata.tables["table"].obsm["crops"].compute()
    same_spatialdata(sdata, back)
    same_table(hw.io.to_anndata(sdata), hw.io.to_anndata(back))


# -- bad input ---------------------------------------------------------------------------------------------


def test_wrong_objects(sdata):
    with pytest.raises(TypeError, match="must be a SpatialData object, got AnnData"):
        hw.io.to_anndata(sdata.tables["table"])
    with pytest.raises(TypeError, match="must be an AnnData object, got SpatialData"):
        hw.io.from_anndata(sdata)
    with pytest.raises(KeyError, match=r"table_key='counts'.*'table'"):
        hw.io.to_anndata(sdata, table_key="counts")
    with pytest.raises(KeyError, match=r"images='huge'.*available: 'full', 'hires', 'lowres'"):
        hw.io.to_anndata(sdata, images="huge")


def test_shifted_image_cannot_be_expressed(sdata):
    shift = Affine([[2, 0, 5], [0, 2, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata.images["P1_hires_image"], shift, "P1")
    with pytest.raises(ValueError, match="shifted or stretched"):
        hw.io.to_anndata(sdata)


def test_anndata_without_what_is_needed(sdata):
    adata = hw.io.to_anndata(sdata)
    bad = adata.copy()
    del bad.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        hw.io.from_anndata(bad)
    bad = adata.copy()
    bad.obsm["spatial"][0] = np.nan
    with pytest.raises(ValueError, match="without missing values"):
        hw.io.from_anndata(bad)
    bad = adata.copy()
    bad.obs["library_id"] = "my section"
    with pytest.raises(ValueError, match="'my_section'"):
        hw.io.from_anndata(bad)
    bad = adata.copy()
    bad.uns["spatial"]["P1"]["scalefactors"]["tissue_hires_scalef"] = 0
    bad.uns["spatial"]["P1"]["metadata"]["source_image_path"] = "/nowhere/full.tif"
    with pytest.warns(HistoweaveWarning) as caught:
        assert set(hw.io.from_anndata(bad).images) == {"P1_lowres_image"}
    assert len([w for w in caught if "left out" in str(w.message)]) == 2
    plain = ad.AnnData(np.ones((4, 1), np.float32), obsm={"spatial": np.array([[0, 0], [0, 9], [9, 0], [9, 9.0]])})
    with pytest.warns(HistoweaveWarning, match="no usable `spot_diameter_fullres`"):
        assert list(hw.io.from_anndata(plain).shapes) == ["section"]
    assert "library_id" not in plain.obs
