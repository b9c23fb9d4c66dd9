"""Mapping regions with a fitted classifier."""

from __future__ import annotations

import numpy as np
import pytest

import histoweave as hw
from histoweave._record import recorded
from histoweave.models import FusionClassifier, RegionClassifier


@pytest.fixture(scope="module")
def clf(_cut, few_trees):
    return RegionClassifier().fit(_cut[_cut.obs["library_id"] != "section_4"].copy())


@pytest.fixture
def new(cut):
    return cut[cut.obs["library_id"].isin(["section_3", "section_4"])].copy()


def test_what_is_written_is_what_the_model_says(clf, new):
    assert hw.tl.predict_regions(new, clf, key_added="map") is None
    expected = clf.predict(new)
    assert (new.obs["map_predicted"].astype(str) == expected["predicted"]).all()
    np.testing.assert_allclose(new.obs["map_confidence"], expected["confidence"])
    assert (new.obs["map_abstain"] == expected["abstain"]).all()
    assert (new.obs["map_modalities"] == "gene+image").all()
    np.testing.assert_allclose(new.obsm["map_probability"], clf.predict_proba(new), atol=1e-6)
    entry = recorded(new, "map_predicted")
    assert list(entry["seen_in_training"]) == ["section_3"]
    assert list(entry["sections_seen"]) == ["section_1", "section_2", "section_3"]


def test_labels_are_left_alone(clf, new):
    before = new.obs["region"].copy()
    hw.tl.predict_regions(new, clf)
    assert new.obs["region"].equals(before)


def test_copy_and_view_and_spatialdata(clf, new):
    columns = list(new.obs.columns)
    out = hw.tl.predict_regions(new, clf, copy=True)
    assert list(new.obs.columns) == columns
    sdata = hw.io.from_anndata(new.copy())
    hw.tl.predict_regions(sdata, clf)
    np.testing.assert_array_equal(sdata.tables["table"].obsm["region_probability"], out.obsm["region_probability"])
    view = new[new.obs["library_id"] == "section_4"]
    hw.tl.predict_regions(view, clf)
    assert view.obs["region_predicted"].notna().all()
    assert list(new.obs.columns) == columns


def test_modalities(clf, new):
    hw.tl.predict_regions(new, clf, modalities=["gene"])
    assert (new.obs["region_modalities"] == "gene").all()


def test_what_is_refused_leaves_the_table_alone(clf, new):
    columns = list(new.obs.columns)
    with pytest.raises(TypeError, match="RegionClassifier`, got FusionClassifier"):
        hw.tl.predict_regions(new, FusionClassifier())
    with pytest.raises(RuntimeError, match="not fitted"):
        hw.tl.predict_regions(new, RegionClassifier())
    with pytest.raises(ValueError, match="`modalities` must be one of"):
        hw.tl.predict_regions(new, clf, modalities=["protein"])
    new.layers["counts"].data[0] = -1
    with pytest.raises(ValueError, match="negative"):
        hw.tl.predict_regions(new, clf)
    assert list(new.obs.columns) == columns
