"""From AnnData or SpatialData to the table, its sections and their images."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
import tifffile
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from histoweave._resolve import (
    get_table,
    has_image,
    section_column,
    section_image,
    sections,
    working_copy,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def table(names=("a", "a", "b")):
    out = ad.AnnData(np.ones((len(names), 2), np.float32))
    out.obs["library_id"] = list(names)
    out.obsm["spatial"] = np.zeros((len(names), 2))
    return out


def with_images(images, scalefactors, metadata=None):
    out = table("aaa")
    out.uns["spatial"] = {"a": {"images": images, "scalefactors": scalefactors, "metadata": metadata or {}}}
    return out


def wrapped(adata, **images):
    return sd.SpatialData(images=images, tables={"table": adata})


def element(pixels=IMAGE, *, frame="a", transformation=None, **options):
    planes, placed = np.moveaxis(pixels, -1, 0), {frame: transformation or Identity()}
    return Image2DModel.parse(planes, dims=("c", "y", "x"), transformations=placed, **options)


# --- the table ---


def test_get_table():
    adata = table()
    assert get_table(adata) is adata
    sdata = wrapped(adata)
    assert get_table(sdata) is sdata.tables["table"]
    with pytest.raises(TypeError, match="got list"):
        get_table([1])
    with pytest.raises(KeyError, match=r"table_key='genes'.*'table'"):
        get_table(wrapped(adata), "genes")
    with pytest.raises(ValueError, match="no rows"):
        get_table(adata[:0])
    adata.obs_names = ["x", "x", "y"]
    with pytest.raises(ValueError, match=r"1 row names occur more than once.*'x'"):
        get_table(adata)


def test_working_copy():
    adata = table()
    out, same = working_copy(adata)
    assert out is same is adata
    out, other = working_copy(adata, copy=True)
    assert out is other is not adata
    sdata = wrapped(adata, a_full_image=element())
    out, other = working_copy(sdata, copy=True)
    other.obs["new"] = 1
    assert "new" in out.tables["table"].obs
    assert "new" not in sdata.tables["table"].obs
    assert out.images["a_full_image"] is sdata.images["a_full_image"]
    view = adata[:2]
    _, written = working_copy(view)
    written.obsm["x"] = np.zeros((2, 1))
    assert "x" in view.obsm
    assert "x" not in adata.obsm


def test_sections():
    adata = table()
    assert {k: v.tolist() for k, v in sections(adata).items()} == {"a": [0, 1], "b": [2]}
    adata.obs.loc["2", "library_id"] = None
    with pytest.raises(ValueError, match="missing for 1 rows"):
        section_column(adata)
    del adata.obs["library_id"]
    assert list(sections(adata)) == ["section"]
    adata.uns["spatial"] = {"only": {}}
    assert list(sections(adata)) == ["only"]
    adata.uns["spatial"]["second"] = {}
    with pytest.raises(KeyError, match="several sections"):
        sections(adata)
    adata.obs["part"] = ["p", "q", "p"]
    adata.uns["spatialdata_attrs"] = {"region_key": "part"}
    assert list(sections(adata)) == ["p", "q"]


# --- images of an AnnData ---


def test_the_finest_image_and_by_name():
    adata = with_images(
        {"lowres": IMAGE[::4, ::4], "hires": IMAGE},
        {"tissue_hires_scalef": 0.2, "tissue_lowres_scalef": 0.05},
    )
    found = section_image(adata, "a")
    assert found.name == "hires"
    assert found.array is IMAGE
    np.testing.assert_allclose(found.to_pixels([[100, 50]]), [[20, 10]])
    np.testing.assert_allclose(section_image(adata, "a", image="lowres").to_pixels([[100, 50]]), [[5, 2.5]])
    with pytest.raises(KeyError, match=r"image='full'.*'hires', 'lowres'"):
        section_image(adata, "a", image="full")


def test_the_file_counts_before_stored_images(tmp_path):
    path = tmp_path / "full.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", tile=(32, 32), compression="deflate")
    adata = with_images({"hires": IMAGE[::2, ::2]}, {"tissue_hires_scalef": 0.5}, {"source_image_path": str(path)})
    found = section_image(adata, "a")
    assert isinstance(found.array, da.Array)
    assert found.scale == (1.0, 1.0)
    np.testing.assert_array_equal(found.array, IMAGE)
    assert section_image(adata, "a", image="hires").name == "hires"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"full\.tif"):
        section_image(adata, "a")
    assert section_image(adata, "a", image="hires").name == "hires"


@pytest.mark.parametrize(("factor", "text"), [(None, "is missing"), (0.0, "is 0"), (np.nan, "is nan"), (-1, "is -1")])
def test_scale_factors_that_cannot_be(factor, text):
    factors = {} if factor is None else {"tissue_hires_scalef": factor}
    adata = with_images({"hires": IMAGE}, factors)
    with pytest.raises(ValueError, match=f"tissue_hires_scalef.*{text}"):
        section_image(adata, "a")


def test_no_image():
    adata = table()
    assert not has_image(adata, "a")
    with pytest.raises(KeyError, match="Section 'a' has no image"):
        section_image(adata, "a")
    assert has_image(with_images({"hires": IMAGE}, {}), "a")


@pytest.mark.parametrize("pixels", [IMAGE[..., 0], IMAGE.astype("u2") * 257, IMAGE / 255.0])
def test_images_are_brought_to_rgb8(pixels):
    found = section_image(with_images({"hires": pixels}, {"tissue_hires_scalef": 1.0}), "a").array
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], IMAGE[..., 0])
    assert found.shape == IMAGE.shape


def test_a_named_column_of_sections_has_to_be_there():
    adata = table("ab")
    with pytest.raises(KeyError, match="`library_key='sample'` is not in `adata.obs`"):
        section_column(adata, "sample")
    adata.uns["spatialdata_attrs"] = {"region_key": "place", "region": ["p"], "instance_key": "i"}
    adata.obs["place"] = ["p", None]
    del adata.obs["library_id"]
    with pytest.raises(ValueError, match=r"obs\['place'\]` is missing for 1 rows"):
        section_column(adata)
    del adata.uns["spatialdata_attrs"]
    assert section_column(adata).tolist() == ["section", "section"]


# --- images of a SpatialData ---


def test_elements_lie_in_the_frame_of_their_section():
    place = Sequence([Scale([4, 5], axes=("x", "y")), Translation([10, 20], axes=("x", "y"))])
    sdata = wrapped(table(), a_hires_image=element(transformation=place), b_full_image=element(IMAGE[::-1], frame="b"))
    found = section_image(sdata, "a")
    assert found.name == "a_hires_image"
    np.testing.assert_array_equal(found.array, IMAGE)
    inner = np.array([[0.0, 0.0], [8.0, 6.0]])  # pixels of the image, then through the transformation by hand
    np.testing.assert_allclose(found.to_pixels(inner * [4, 5] + [10, 20]), inner)
    np.testing.assert_array_equal(section_image(sdata, "b").array, IMAGE[::-1])
    assert section_image(sdata, "a", image="hires").name == "a_hires_image"
    assert not has_image(sdata, "c")


def test_the_finest_element_and_the_finest_level():
    fine = element(scale_factors=[2])
    coarse = element(IMAGE[::2, ::2], transformation=Scale([2, 2], axes=("x", "y")))
    found = section_image(wrapped(table(), a_hires_image=coarse, a_full_image=fine), "a")
    assert found.name == "a_full_image"
    assert found.scale == (1.0, 1.0)
    np.testing.assert_array_equal(found.array, IMAGE)


def test_one_image_in_the_global_frame():
    sdata = wrapped(table("aaa"), picture=element(frame="global"))
    assert section_image(sdata, "a").name == "picture"


def test_sections_whose_names_begin_alike_in_the_global_frame():
    named = {"A1": 1, "A10": 10, "A1_b": 30}
    images = {f"{name}_full_image": element(np.full_like(IMAGE, v), frame="global") for name, v in named.items()}
    sdata = wrapped(table(list(named)), **images)
    for name, value in named.items():
        assert section_image(sdata, name).array.max() == value


def test_the_image_of_another_section_is_nobody_elses():
    sdata = wrapped(table("ab"), a_full_image=element(frame="global"))
    assert section_image(sdata, "a").name == "a_full_image"
    assert not has_image(sdata, "b")


def test_another_table_need_not_name_its_sections():
    other = table("ab")
    other.obs["library_id"] = ["a", None]
    sdata = sd.SpatialData(images={"a_image": element()}, tables={"table": table("aa"), "cells": other})
    assert has_image(sdata, "a")


def test_channels_first_is_said_not_passed_over():
    images = {"hires": np.moveaxis(IMAGE, 2, 0), "lowres": IMAGE[::2, ::2]}
    adata = with_images(images, {"tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 0.5})
    with pytest.raises(ValueError, match="Move the channels last"):
        section_image(adata, "a")


def test_images_kept_in_the_table():
    adata = with_images({"hires": IMAGE}, {"tissue_hires_scalef": 0.5})
    found = section_image(wrapped(adata), "a")
    assert found.name == "hires"
    assert found.scale == (0.5, 0.5)


@pytest.mark.parametrize(
    "matrix",
    [
        [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
        [[-1, 0, 80], [0, 1, 0], [0, 0, 1]],
        [[1, 0.2, 0], [0, 1, 0], [0, 0, 1]],
    ],
)
def test_turned_flipped_and_sheared_elements_are_refused(matrix):
    turned = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    with pytest.raises(ValueError, match="rotated, flipped or sheared"):
        section_image(wrapped(table(), a_full_image=element(transformation=turned)), "a")
