"""The fusion verb: results, records, groups of the inner folds, what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import histoweave as hw
from histoweave._record import record, recorded
from histoweave._resolve import sections
from histoweave._validate import HistoweaveWarning
from histoweave.models import FusionClassifier
from histoweave.models._similar import similar_rows
from histoweave.pp._graph import ring_graphs


@pytest.fixture(scope="module")
def _embedded(_cut, few_trees):
    table = _cut.copy()
    hw.tl.image_encoder(table, n_components=8)
    hw.tl.gene_encoder(table, n_components=8)
    return table


@pytest.fixture
def table(_embedded):
    adata = _embedded.copy()
    labels = adata.obs["region"].astype(object)
    adata.obs["region"] = labels.where(np.arange(adata.n_obs) % 3 == 0)
    return adata


def test_every_row_is_mapped_and_the_rest_is_written(table):
    model = hw.tl.fusion_classifier(table)
    truth = table.obs["region_truth"].astype(str)
    assert table.obs["region_predicted"].notna().all()
    assert (table.obs["region_predicted"].astype(str) == truth).mean() > 0.85
    p = table.obsm["region_probability"]
    assert list(p.columns) == model.classes
    np.testing.assert_allclose(p.max(axis=1), table.obs["region_confidence"], rtol=1e-5)
    assert table.obs["region_abstain"].dtype == bool
    entry = recorded(table, "region_predicted")
    assert entry["params"]["keys"] == {"image": "X_image", "gene": "X_gene"}
    assert entry["inner_groups"] == "donor"
    assert entry["random_state"] == 0
    assert list(entry["sections_seen"]) == [f"section_{i}" for i in range(1, 5)]


def test_it_is_the_model_on_the_stored_embeddings(table):
    hw.tl.fusion_classifier(table, key_added="mine", method="concat")
    features = {"image": table.obsm["X_image"], "gene": table.obsm["X_gene"]}
    model = FusionClassifier("concat").fit(features, table.obs["region"], groups=table.obs["donor"].astype(str))
    np.testing.assert_allclose(table.obsm["mine_probability"], model.predict_proba(features), atol=1e-6)


def test_weights_of_the_gate_are_written(table):
    table.obsm["X_image"][:4] = np.nan
    model = hw.tl.fusion_classifier(table, method="gated")
    weights = table.obsm["region_modality_weights"]
    assert list(weights.columns) == model.modalities == ["gene", "image"]
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights["gene"][:4] == 1).all()
    np.testing.assert_array_equal(weights[4:], model.spot_weights({"image": table.obsm["X_image"],
                                                                   "gene": table.obsm["X_gene"]})[4:])  # fmt: skip


def test_context_is_used_where_it_was_made_and_keys_where_they_are_named(table):
    hw.pp.spatial_context(table, n_rings=1)
    hw.tl.fusion_classifier(table)
    assert recorded(table, "region_predicted")["params"]["keys"]["gene"] == "X_gene_context"
    model = hw.tl.fusion_classifier(table, keys={"rna": "X_gene"})
    assert model.modalities == ["rna"]


def test_inner_groups_are_blocks_where_donors_are_few(table):
    one = table[table.obs["library_id"] == "section_1"].copy()
    hw.tl.fusion_classifier(one)
    assert recorded(one, "region_predicted")["inner_groups"] == "block"
    del one.obsm["spatial"]
    hw.tl.fusion_classifier(one)
    assert recorded(one, "region_predicted")["inner_groups"] == "row"


def test_donors_of_another_column_are_kept_together(table):
    table.obs["patient"] = np.arange(table.n_obs) % 4
    assert hw.tl.fusion_classifier(table, donor_key="patient").classes
    assert recorded(table, "region_predicted")["inner_groups"] == "donor"
    with pytest.raises(KeyError, match="`donor_key='nobody'` is not in `adata.obs`"):
        hw.tl.fusion_classifier(table, donor_key="nobody")


def test_rows_without_embedding_are_not_guessed(table):
    for key in ("X_image", "X_gene"):
        table.obsm[key][:4] = np.nan
    hw.tl.fusion_classifier(table)
    assert table.obs["region_predicted"][:4].isna().all()
    assert table.obs["region_abstain"][:4].all()
    assert table.obs["region_predicted"][4:].notna().all()


def test_unmatched_things_leave_the_table_alone(table):
    columns = list(table.obs.columns)
    with pytest.raises(KeyError, match="Did you mean 'X_gene'"):
        hw.tl.fusion_classifier(table, keys={"gene": "X_gen"})
    with pytest.raises(ValueError, match="`method`"):
        hw.tl.fusion_classifier(table, method="magic")
    with pytest.raises(KeyError, match="labels_key='none'"):
        hw.tl.fusion_classifier(table, labels_key="none")
    table.obsm["X_gene"][0, 0] = np.nan
    with pytest.raises(ValueError, match=r"features\['gene'\].*NaN"):
        hw.tl.fusion_classifier(table)
    bare = table.copy()
    del bare.obsm["X_gene"], bare.obsm["X_image"]
    with pytest.raises(KeyError, match="No embedding.*hw.tl.image_encoder"):
        hw.tl.fusion_classifier(bare)
    assert list(table.obs.columns) == columns


def test_labels_of_one_kind_or_few(table):
    table.obs["one"] = "all"
    with pytest.raises(ValueError, match="at least 2 regions"):
        hw.tl.fusion_classifier(table, labels_key="one")
    rare = table.obs["region"].astype(object)
    rare.iloc[0] = "rare"
    table.obs["few"] = rare
    with pytest.warns(HistoweaveWarning, match="'rare' \\(1\\)"):
        hw.tl.fusion_classifier(table, labels_key="few")
    assert "rare" in table.obsm["few_probability"].columns


@pytest.mark.parametrize("smoothing", ["vote", "similar"])
def test_smoothing_uses_the_neighbours_of_the_table_and_is_reported(table, smoothing):
    options = {"keys": {"gene": "X_gene"}, "smoothing": smoothing, "key_added": "smooth"}
    model = hw.tl.fusion_classifier(table, **options)
    graph = ring_graphs(table, n_rings=1)[0]
    if smoothing == "similar":
        graph = similar_rows(table.obsm["X_gene"], sections(table))
    expected = model.predict_proba({"gene": table.obsm["X_gene"]}, graph=graph)
    np.testing.assert_allclose(table.obsm["smooth_probability"], expected, atol=1e-6)
    entry, row = recorded(table, "smooth_predicted"), model.history.iloc[0]
    assert entry["params"]["smoothing"] == smoothing
    assert list(entry["smoothing"]["macro_f1_before"]) == [row["macro_f1_before"]]
    assert list(entry["smoothing"]["macro_f1"]) == [row["macro_f1"]]


def test_inner_folds_of_an_encoder_that_learned_from_the_labels_are_said_to_flatter(table):
    record(table, "X_image", "tl.image_encoder", {}, labels_seen=["section_1"])
    with pytest.warns(HistoweaveWarning, match="trained with labels of 'section_1', which inner folds test on"):
        hw.tl.fusion_classifier(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HistoweaveWarning)
        hw.tl.fusion_classifier(table, keys={"gene": "X_gene"})
