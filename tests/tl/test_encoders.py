"""Encoders as verbs: what they write and record, and that errors leave the table alone."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData

import histoweave as hw
from histoweave._record import recorded
from histoweave.models import GenePCA, ImageEncoder
from histoweave.models.image_encoder._statistics import feature_names


def test_image_encoder_writes_what_the_model_embeds(cut):
    encoder = hw.tl.image_encoder(cut, n_components=5, random_state=3)
    assert isinstance(encoder, ImageEncoder)
    X = cut.obsm["X_image"]
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, ImageEncoder(n_components=5, random_state=3).fit(cut).embed(cut))
    entry = recorded(cut, "X_image")
    assert entry["function"] == "tl.image_encoder"
    assert entry["random_state"] == 3
    assert entry["params"]["method"] == "statistics"
    assert list(entry["sections_seen"]) == [f"section_{i}" for i in range(1, 5)]
    assert {"torch", "timm", "histoweave"} <= set(entry["versions"])


def test_labels_that_were_learned_from_are_recorded(cut):
    tiny = {"backbone": "tiny", "max_epochs": 1, "n_components": 3, "batch_size": 100, "precision": "float32"}
    all_four = [f"section_{i}" for i in range(1, 5)]
    for options, learned in (
        ({"method": "supcon", "labels_key": "region"}, all_four),
        ({"method": {"simclr": 1.0, "triplet": 1.0}, "labels_key": "region"}, all_four),
        ({"method": "simclr", "probe": "knn", "labels_key": "region"}, all_four),
        ({"method": "simclr"}, []),
    ):
        encoder = hw.tl.image_encoder(cut, **options, **tiny)
        assert encoder.labels_seen == list(recorded(cut, "X_image")["labels_seen"]) == learned
    assert ImageEncoder("supcon", backbone="tiny").labels_seen == []


def test_gene_encoder_writes_what_the_model_embeds(cut):
    encoder = hw.tl.gene_encoder(cut, n_components=5, key_added="pcs")
    assert isinstance(encoder, GenePCA)
    np.testing.assert_array_equal(cut.obsm["pcs"], GenePCA(5).fit(cut).embed(cut))
    assert "X_gene" not in cut.obsm
    assert recorded(cut, "pcs")["n_genes"] == 120


def test_several_scales_side_by_side(cut):
    cut.obsm["crops_context"] = cut.obsm["crops"][::-1].copy()
    hw.tl.image_encoder(cut, crops_key=["crops", "crops_context"])
    width = cut.obsm["X_image"].shape[1]
    hw.tl.image_encoder(cut)
    assert width == 2 * cut.obsm["X_image"].shape[1]
    assert cut.obsm["X_image"].shape[1] == len(feature_names())


def test_spatialdata_gets_the_same(cut):
    sdata = hw.io.from_anndata(cut.copy())
    for verb, key in ((hw.tl.image_encoder, "X_image"), (hw.tl.gene_encoder, "X_gene")):
        verb(cut, n_components=4)
        verb(sdata, n_components=4)
        np.testing.assert_array_equal(sdata.tables["table"].obsm[key], cut.obsm[key])
    with pytest.raises(KeyError, match="table_key='cells'"):
        hw.tl.gene_encoder(sdata, table_key="cells")


@pytest.mark.parametrize(
    ("verb", "arguments", "error", "said"),
    [
        ("image_encoder", {"crops_key": "none"}, KeyError, "hw.pp.crops"),
        ("image_encoder", {"method": "magic"}, ValueError, "`method`"),
        ("image_encoder", {"method": "pretrained", "backbone": "resnetzz"}, ValueError, "not a timm model"),
        ("gene_encoder", {"method": "magic"}, ValueError, "`method`"),
        ("gene_encoder", {"layer": "none"}, KeyError, "layer='none'"),
        ("gene_encoder", {"n_components": 0}, ValueError, "`n_components`"),
    ],
)
def test_errors_leave_the_table_alone(cut, verb, arguments, error, said):
    keys, records = set(cut.obsm), set(cut.uns["histoweave"])
    with pytest.raises(error, match=said):
        getattr(hw.tl, verb)(cut, **arguments)
    assert set(cut.obsm) == keys
    assert set(cut.uns["histoweave"]) == records


def test_table_of_nothing():
    with pytest.raises(TypeError, match="AnnData or a SpatialData"):
        hw.tl.gene_encoder(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no rows"):
        hw.tl.gene_encoder(AnnData(np.zeros((0, 3), dtype=np.float32)))
