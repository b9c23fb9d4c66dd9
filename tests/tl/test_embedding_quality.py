"""Diagnostics in one table: the scores of `hw.metrics` with the groups that keep them honest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models._inner_groups import tissue_blocks


@pytest.fixture
def table(sections):
    rng = np.random.default_rng(0)
    region = pd.factorize(sections.obs["region"], sort=True)[0]
    sections.obsm["X_image"] = (rng.normal(size=(400, 6)) + 2 * np.eye(3, 6)[region]).astype("float32")
    stain = np.eye(4, 6)[sections.obs["library_id"].cat.codes]
    sections.obsm["X_gene"] = rng.normal(size=(400, 6)) + 6 * stain  # sections, and nothing else
    return sections


def wide(found, column="value"):
    return found.pivot(index="embedding", columns="metric", values=column)


def test_values_are_those_of_the_metrics(table):
    found = wide(hw.tl.embedding_quality(table, k=9)).loc["X_image"]
    X, labels = table.obsm["X_image"], table.obs["region"].astype(str).to_numpy()
    donor = table.obs["donor"].astype(str).to_numpy()
    assert found["effective_rank"] == pytest.approx(hw.metrics.effective_rank(X))
    assert found["uniformity"] == pytest.approx(hw.metrics.uniformity(X))
    assert found["alignment"] == pytest.approx(hw.metrics.alignment(X, labels, groups=donor))
    assert found["knn_purity"] == pytest.approx(hw.metrics.separation(X, labels, k=9)["knn_purity"])
    expected = hw.metrics.retrieval(X, labels, groups=donor)
    for name in ("recall_at_1", "precision_at_10", "macro_map_at_r"):
        assert found[name] == pytest.approx(expected[name])
    mixing = hw.metrics.batch_mixing(X, donor, labels=labels, k=9)
    assert found["knn_entropy"] == pytest.approx(mixing["knn_entropy"])
    assert found["silhouette_batch"] == pytest.approx(mixing["silhouette_batch"])


def test_one_gap_among_donors_changes_nothing(table):
    table.obs["donor"] = table.obs["library_id"].map({f"section_{i}": f"d{i % 2}" for i in range(1, 5)}).astype(object)
    expected = hw.tl.embedding_quality(table, keys="X_image")
    table.obs.loc[table.obs_names[0], "donor"] = np.nan
    pd.testing.assert_frame_equal(hw.tl.embedding_quality(table, keys="X_image"), expected)


def test_good_and_bad_embeddings_end_on_the_right_side(table):
    found = hw.tl.embedding_quality(table)
    share = (found["value"] - found["floor"]) / (found["ceiling"] - found["floor"])
    share = wide(found.assign(share=share), "share").drop(columns="calinski_harabasz")
    for name in ("silhouette", "knn_purity", "precision_at_10", "macro_map_at_r", "alignment", "recall_at_1"):
        assert share.loc["X_image", name] > share.loc["X_gene", name] + 0.1, name
        assert abs(share.loc["X_gene", name]) < 0.2, name
    for name in ("silhouette_batch", "knn_entropy", "batch_purity", "linear_leakage", "knn_leakage"):
        assert share.loc["X_image", name] > 0.8 > 0.35 > share.loc["X_gene", name], name


def test_one_section_asks_other_blocks_of_tissue(section):
    section.obsm["X_image"] = np.random.default_rng(0).normal(size=(144, 3))
    found = hw.tl.embedding_quality(section)
    assert set(found["aspect"]) == {"space", "regions", "retrieval"}
    section.obs["block"] = tissue_blocks(section.obs["library_id"].to_numpy(), section.obsm["spatial"])
    assert 12 <= section.obs["block"].nunique() <= 20
    with pytest.warns(HistoweaveWarning, match="retrieval are not scored. No query has a row of its class in another"):
        hw.tl.embedding_quality(section, labels_key="block")


def test_rows_without_values_or_labels(table):
    table.obsm["X_image"][:100] = np.nan  # all of the first section
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(400) % 2 > 0)
    found = hw.tl.embedding_quality(table, keys="X_image")
    assert set(found["n"]) == {300}
    part = table[100:].copy()
    assert wide(found).loc["X_image", "knn_purity"] == pytest.approx(
        hw.metrics.separation(part.obsm["X_image"], part.obs["region"])["knn_purity"]
    )
    del table.obs["region"]
    found = hw.tl.embedding_quality(table, keys="X_image")
    assert set(found["aspect"]) == {"space", "sections"}


def test_what_cannot_be_scored_is_said(table):
    table.obs["region"] = "tumour"
    with pytest.warns(HistoweaveWarning, match="regions are not scored.*1 classes"):
        found = hw.tl.embedding_quality(table, keys="X_image")
    assert "regions" not in set(found["aspect"])
    table.obsm["X_image"][2:] = np.nan
    with pytest.warns(HistoweaveWarning, match="2 rows with values"):
        assert hw.tl.embedding_quality(table, keys="X_image").empty


def test_large_tables_are_sampled_repeatably_and_not_changed(table):
    before = table.copy()
    found = hw.tl.embedding_quality(table, max_rows=120)
    assert set(found["n"]) == {120}
    pd.testing.assert_frame_equal(found, hw.tl.embedding_quality(table, max_rows=120))
    assert not found.equals(hw.tl.embedding_quality(table, max_rows=120, random_state=1))
    pd.testing.assert_frame_equal(table.obs, before.obs)
    assert set(table.uns) == set(before.uns)


def test_bad_input(table):
    with pytest.raises(KeyError, match="labels_key='niche'"):
        hw.tl.embedding_quality(table, labels_key="niche")
    with pytest.raises(KeyError, match="keys='X_fused'"):
        hw.tl.embedding_quality(table, keys=["X_image", "X_fused"])
    with pytest.raises(ValueError, match="`max_rows` must be >= 10"):
        hw.tl.embedding_quality(table, max_rows=3)
    table.obsm["X_gene"] = np.full((400, 2), np.nan)
    with pytest.raises(ValueError, match="NaN in every row"):
        hw.tl.embedding_quality(table)
