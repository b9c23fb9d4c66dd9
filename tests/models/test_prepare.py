"""From a section to the light table: crops reused or cut, counts found."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models._prepare import default_sizes, light_table, masked_labels, recorded_um

KEYS = {"layer": None, "library_key": "library_id", "spatial_key": "spatial", "table_key": "table"}


def light(data, crop_um=None, out_px=16, *, image=True, genes=True, **keys):
    return light_table(data, crop_um=crop_um, out_px=out_px, image=image, genes=genes, **(KEYS | keys))


def test_crops_are_those_of_pp_crops(section):
    table, sizes = light(section, {"crops": 110, "wide": 250})
    assert sizes == {"crops": 110, "wide": 250}
    hw.pp.crops(section, size_um={"crops": 110, "wide": 250}, out_px=16)
    for key in sizes:
        np.testing.assert_array_equal(table.obsm[key], section.obsm[key])


def test_crops_that_fit_are_used_as_they_are(section):
    hw.pp.crops(section, size_um=110, out_px=24)
    section.obsm["crops"][:] = 7  # not what the image holds
    assert (light(section)[0].obsm["crops"] == 7).all()
    assert (light(section, {"crops": 111}, {"crops": 24})[0].obsm["crops"] == 7).all()
    for crop_um, out_px in (({"crops": 130}, 24), ({"crops": 110}, {"crops": 16})):
        assert not (light(section, crop_um, out_px)[0].obsm["crops"] == 7).all()


def test_default_sizes_follow_the_array_or_the_crops_there(section):
    sizes = default_sizes(section, section)
    assert sizes["crops"] == pytest.approx(110)
    assert sizes["crops_context"] == pytest.approx(300)
    metadata = section.uns["spatial"]["section_1"]["metadata"]
    metadata["array_pitch_um"] = 200
    assert default_sizes(section, section)["crops"] == pytest.approx(220)
    hw.pp.crops(section, size_um=90, out_px=16)
    assert default_sizes(section, section) == {"crops": 90}
    assert recorded_um(section, "crops") == 90
    assert recorded_um(section, "other") is None


def test_default_sizes_without_an_array_follow_the_distance_between_spots(section):
    for name in ("array_row", "array_col"):
        del section.obs[name]
    section.uns["spatial"]["section_1"]["metadata"] = {"platform": "custom"}
    assert default_sizes(section, section)["crops"] == pytest.approx(110, rel=0.02)
    alone = section[:1].copy()  # one spot has no distance to another
    assert default_sizes(alone, alone)["crops"] == pytest.approx(110)


def test_counts_are_raw_and_absent_ones_are_absent(section):
    section.X = section.layers["counts"].log1p()
    table, _ = light(section, image=False)
    assert (table.X != section.layers["counts"]).nnz == 0
    assert light(section, genes=False, image=False)[0].n_vars == 0
    empty = section.copy()
    empty.layers["counts"] = empty.layers["counts"] * 0
    assert light(empty, image=False)[0].n_vars == 0
    bare = AnnData(obs=section.obs, obsm={"spatial": section.obsm["spatial"]})
    assert light(bare, image=False)[0].n_vars == 0


def test_no_image_and_no_crops_is_no_image(section):
    del section.uns["spatial"]["section_1"]["images"]
    table, sizes = light(section)
    assert sizes == {}
    assert list(table.obsm) == ["spatial"]


def test_part_of_the_crops_without_an_image_to_cut_the_rest(section):
    hw.pp.crops(section, size_um=110, out_px=16)
    del section.uns["spatial"]["section_1"]["images"]
    with pytest.raises(KeyError, match="lacks wide of 300 um, 16 px"):
        light(section, {"crops": 110, "wide": 300})


def test_other_names_of_columns(section):
    section.obs["slide"] = section.obs["library_id"]
    section.obsm["xy"] = section.obsm.pop("spatial")
    del section.obs["library_id"]
    table, _ = light(section, {"crops": 110}, library_key="slide", spatial_key="xy")
    assert (table.obs["library_id"] == "section_1").all()
    assert "spatial" in table.obsm
    assert "crops" in table.obsm
    assert "library_id" not in section.obs


def test_rare_classes_are_named(section):
    labels = section.obs["region"].astype(object)
    labels[:2] = "rare"
    section.obs["region"] = labels
    with pytest.warns(HistoweaveWarning, match=r"'rare' \(2\)"):
        found = masked_labels(section, "region")
    assert (found == "rare").sum() == 2
