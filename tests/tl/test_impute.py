"""Imputation writes what the model predicts, and beats both nulls where genes depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import histoweave as hw
from histoweave._validate import HistoweaveWarning


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two():
    """Two sections, programmes of spots in small patches, so that neighbours are often of another region."""
    return hw.datasets.simulate_sections(
        2, n_rows=15, n_cols=15, n_genes=120, n_regions=4, n_markers=25, image=False, gene_signal=2, batch_effect=0.05
    )


@pytest.fixture(scope="module")
def model(two):
    known = two[two.obs["library_id"] == "section_1"].copy()
    return hw.models.GeneAutoencoder(16, widths=(64,), max_epochs=60, patience=None).fit(known)


def test_hidden_markers_of_a_new_section_are_recovered_above_both_nulls(two, model):
    new = two[two.obs["library_id"] == "section_2"].copy()
    scores = hw.tl.impute(new, model=model)
    marker = new.var_names[new.var["marker_of"] != ""]
    mean = scores[scores["gene"].isin(marker)].groupby("method")[["pearson", "spearman", "rmse"]].mean()
    assert mean.loc["model", "pearson"] > mean.loc["neighbour mean", "pearson"] + 0.05
    assert mean.loc["model", "spearman"] > mean.loc["neighbour mean", "spearman"] + 0.05
    assert np.isnan(mean.loc["gene mean", "pearson"])
    for null in ("gene mean", "neighbour mean"):
        assert mean.loc["model", "rmse"] < 0.95 * mean.loc[null, "rmse"], null


def test_scores_are_of_the_values_that_are_written(two, model):
    new = two[two.obs["library_id"] == "section_2"].copy()
    genes = new.var_names[:90]  # most at once, so that little is left to predict them from
    scores = hw.tl.impute(new, model=model, genes=genes)
    assert set(scores["gene"]) == set(genes)
    counts = new.layers["counts"].toarray()
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * model._target)
    own = scores[scores["method"] == "model"].set_index("gene")
    for gene in genes[:5]:
        place = new.var_names.get_loc(gene)
        written = new.layers["imputed"][:, place]
        assert own.loc[gene, "pearson"] == pytest.approx(np.corrcoef(log[:, place], written)[0, 1], abs=1e-4)
    one = hw.tl.impute(new, model=model, genes=genes[0])
    assert set(one["gene"]) == {genes[0]}
    with pytest.raises(TypeError, match="must be a `hw.models.GeneAutoencoder`, got GenePCA"):
        hw.tl.impute(new, model=hw.models.GenePCA(5).fit(new))


def test_layer_holds_the_models_values_at_their_genes(two, model):
    part = two[::3, ::-1].copy()
    assert hw.tl.impute(part, model=model, score=False) is None
    direct = model.impute(part)
    np.testing.assert_array_equal(part.layers["imputed"], direct[part.var_names].to_numpy())
    assert list(part.uns["histoweave"]["imputed"]["sections_seen"]) == ["section_1"]


def test_genes_under_other_names_are_the_tables(two, model):
    expected = two.copy()
    hw.tl.impute(expected, model=model, score=False)
    other = two.copy()
    other.var["gene_name"], other.var_names = other.var_names, [f"ENSG{i:011d}" for i in range(other.n_vars)]
    with pytest.warns(HistoweaveWarning, match="under other names"):
        hw.tl.impute(other, model=model, score=False)
    np.testing.assert_array_equal(other.layers["imputed"], expected.layers["imputed"])
    assert "imputed" not in other.obsm


def test_genes_that_were_not_measured_land_beside_the_table(two, model):
    lost = list(two.var_names[:2])
    table = two[:, 2:].copy()
    with pytest.warns(HistoweaveWarning, match="2 of the model's 120 genes"):
        scores = hw.tl.impute(table, model=model, genes=[*lost, two.var_names[5]])
    assert table.obsm["imputed"].columns.tolist() == lost
    assert np.isfinite(table.obsm["imputed"].to_numpy()).all()
    written = np.isfinite(table.layers["imputed"]).all(axis=0)
    assert table.var_names[written].tolist() == [two.var_names[5]]
    assert set(scores["gene"]) == {two.var_names[5]}


def test_bad_input_changes_nothing(two, model):
    table = two.copy()
    with pytest.raises(KeyError, match="'NONE' are not among"):
        hw.tl.impute(table, model=model, genes=["NONE"])
    with pytest.raises(RuntimeError, match="not fitted"):
        hw.tl.impute(table, model=hw.models.GeneAutoencoder())
    assert "imputed" not in table.layers
    assert "imputed" not in table.uns["histoweave"]
