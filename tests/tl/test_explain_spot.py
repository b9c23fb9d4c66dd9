"""One spot explained: planted evidence is found, the parts agree with the model, bad requests are told."""

from __future__ import annotations

import numpy as np
import pytest

import histoweave as hw
from histoweave._record import recorded
from histoweave.models import RegionClassifier


@pytest.fixture(scope="module")
def fitted(_cut, few_trees):
    return RegionClassifier(crop_um={"crops": 110}, n_rings=0).fit(_cut[_cut.obs["library_id"] != "section_4"].copy())


@pytest.fixture
def new(cut):
    return cut[cut.obs["library_id"].isin(["section_3", "section_4"])].copy()


def test_parts_are_those_of_the_model(fitted, new):
    spot = new.obs_names[130]
    before = new.copy()
    found = hw.tl.explain_spot(new, fitted, spot=spot, n_genes=5)
    p = fitted.predict_proba(new).loc[spot]
    assert found["region"] == fitted.predict(new).loc[spot, "predicted"]
    np.testing.assert_allclose(found["probability"].set_index("region")["probability"][p.index], p, atol=1e-6)
    share = dict(zip(fitted.classes, fitted._fusion.class_shares, strict=True))[found["region"]]
    assert found["modalities"]["contribution"].sum() == pytest.approx(p[found["region"]] - share, abs=1e-6)
    assert found["modalities"]["log_contribution"].sum() == pytest.approx(np.log(p[found["region"]] / share), abs=1e-5)
    assert list(found["maps"]) == ["crops"]
    assert found["maps"]["crops"].shape == (8, 8)
    np.testing.assert_array_equal(found["crops"]["crops"], new[spot].obsm["crops"][0])
    assert found["section"] == "section_4"
    assert new.uns["explain_spot"] is found
    entry = recorded(new, "explain_spot")
    assert entry["params"]["image_method"] == "occlusion"
    assert new.obs.equals(before.obs)


def test_genes_of_the_region_are_found(fitted, new):
    """Over spots of a region, markers of its programme stand first more often than chance."""
    hits = []
    for name in new.obs_names[new.obs["region"] == "region_1"][:12]:
        found = hw.tl.explain_spot(new, fitted, spot=name, target="region_1", n_genes=5, n_cells=2)
        hits += (new.var.loc[found["genes"]["gene"].head(5), "marker_of"] == "programme_1").tolist()
    assert np.mean(hits) > 3 * (new.var["marker_of"] == "programme_1").mean()


def test_what_a_spot_lacks_is_empty(fitted, new):
    spot = new.obs_names[130]
    new.layers["counts"][130] = 0
    found = hw.tl.explain_spot(new, fitted, spot=spot)
    assert found["genes"].empty
    assert found["modalities"]["modality"].tolist() == ["image"]
    genes = RegionClassifier(image=None).fit(new)
    with pytest.raises(ValueError, match="neither image nor counts"):
        hw.tl.explain_spot(new, genes, spot=spot)
    assert hw.tl.explain_spot(new, genes, spot=new.obs_names[131])["maps"] == {}


def test_refusals(fitted, new):
    spot = new.obs_names[0]
    with pytest.raises(KeyError, match="not a row"):
        hw.tl.explain_spot(new, fitted, spot="nowhere")
    with pytest.raises(ValueError, match="'predicted', 'region_1'"):
        hw.tl.explain_spot(new, fitted, spot=spot, target="tumour")
    with pytest.raises(ValueError, match="needs an image encoder with a network"):
        hw.tl.explain_spot(new, fitted, spot=spot, image_method="grad_cam")
    with pytest.raises(TypeError, match="RegionClassifier"):
        hw.tl.explain_spot(new, "model", spot=spot)
    assert "explain_spot" not in new.uns


def test_several_sections_of_a_spatialdata_are_those_of_the_table(fitted, new):
    spot = new.obs_names[130]
    sdata = hw.io.from_anndata(new)
    with_sdata, with_table = (hw.tl.explain_spot(data, fitted, spot=spot, n_cells=2) for data in (sdata, new))
    assert with_sdata["region"] == with_table["region"]
    np.testing.assert_allclose(with_sdata["genes"]["contribution"], with_table["genes"]["contribution"], atol=1e-6)
    assert with_sdata["crop_um"] == {"crops": 110.0}
    assert set(sdata["table"].uns["spatialdata_attrs"]["region"]) == {"section_3", "section_4"}
