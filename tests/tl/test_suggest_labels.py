"""Suggestions in planted tissue: unseen tissue first, unsure tissue next, never a labelled spot, spaced, repeatable."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist

import histoweave as hw
from histoweave._record import recorded
from histoweave._validate import HistoweaveWarning
from histoweave.pp._graph import ring_graphs

SIDE = 15


@pytest.fixture
def table() -> AnnData:
    """Three bands of tissue on a square array, each with its own expression; a third of the first two is labelled."""
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(SIDE**2), SIDE)
    band = column // 5
    obs = pd.DataFrame({"library_id": "s1", "band": band}, index=[f"spot-{i}" for i in range(SIDE**2)])
    obs["region"] = np.where((rng.random(len(obs)) < 0.33) & (band < 2), np.array(["a", "b", "c"])[band], None)
    centres = np.array([[3.0, 0, 0], [0, 3, 0], [0, 0, 3]])
    out = AnnData(obs=obs)
    out.obsm["spatial"] = np.stack([column, row], axis=1) * 100.0
    out.obsm["X_gene"] = (centres[band] + rng.normal(0, 0.3, size=(len(obs), 3))).astype(np.float32)
    sure = pd.DataFrame({"a": 0.02, "b": 0.98}, index=obs.index)
    sure[band == 0] = [0.98, 0.02]
    out.obsm["region_probability"] = sure
    return out


def rows_of(table, frame) -> np.ndarray:
    return table.obs_names.get_indexer(frame.index)


def test_tissue_without_any_label_comes_first_however_sure_the_map_is(table):
    frame = hw.tl.suggest_labels(table, n=4)
    band = table.obs["band"].to_numpy()[rows_of(table, frame)]
    assert band[0] == 2
    assert (band == 2).sum() >= 2
    assert frame["reason"].iloc[0] == "unlike the labelled spots"
    assert frame["novelty"].iloc[0] > 0.6
    assert frame["predicted"].iloc[0] == "b"


def test_unsure_tissue_comes_before_sure_tissue_that_is_labelled_as_well(table):
    table = table[table.obs["band"] < 2].copy()
    half = table.obsm["spatial"][:, 1] < 700  # the upper half of both bands
    table.obsm["region_probability"][half] = [0.55, 0.45]
    frame = hw.tl.suggest_labels(table, n=6)
    assert half[rows_of(table, frame)].sum() >= 5
    assert frame["uncertainty"].iloc[0] == pytest.approx(0.9, abs=0.05)
    assert "between 'a' and 'b'" in set(frame["reason"])


@pytest.mark.parametrize("kind", ["spots", "patches"])
def test_suggestions_are_unlabelled_and_apart(table, kind):
    frame = hw.tl.suggest_labels(table, n=8, kind=kind, min_distance=2)
    assert table.obs["region"].isna()[frame.index].all()
    assert frame.index.is_unique
    first = frame.drop_duplicates("rank")
    assert first["rank"].tolist() == list(range(1, 9))
    assert pdist(first[["x", "y"]]).min() >= 200 - 1e-6
    np.testing.assert_array_equal(frame[["x", "y"]], table.obsm["spatial"][rows_of(table, frame)])
    assert (frame["section"] == "s1").all()


def test_patches_hang_together_in_one_predicted_region(table):
    table.obs["region"] = table.obs["region"].where(table.obsm["spatial"][:, 1] < 300)  # room for whole patches
    frame = hw.tl.suggest_labels(table, n=5, kind="patches", patch_size=7)
    neighbours = ring_graphs(table, n_rings=1)[0]
    sizes = []
    for _, patch in frame.groupby("rank"):
        rows = rows_of(table, patch)
        assert connected_components(neighbours[rows][:, rows], directed=False)[0] == 1
        assert patch["predicted"].nunique() == 1
        assert patch["reason"].nunique() >= 1
        sizes.append(len(patch))
    assert max(sizes) == 7
    assert np.mean(sizes) > 4


def test_ranks_are_written_and_recorded(table):
    before = table.copy()
    frame = hw.tl.suggest_labels(table, n=5, key_added="next")
    written = table.obs["next"].dropna()
    assert written.to_dict() == frame["rank"].astype(float).to_dict()
    entry = recorded(table, "next")
    assert entry["function"] == "tl.suggest_labels"
    assert entry["criterion"] == "uncertainty and diversity"
    assert entry["params"]["n"] == 5
    pd.testing.assert_frame_equal(table.obs.drop(columns="next"), before.obs)


@pytest.mark.parametrize("missing", ["column", "labels"])
def test_without_labels_kinds_of_tissue_are_covered(table, missing):
    if missing == "column":
        del table.obs["region"]
    else:
        table.obs["region"] = None
    with pytest.warns(HistoweaveWarning, match="diversity alone: no spot has a label yet"):
        frame = hw.tl.suggest_labels(table, n=3)
    assert sorted(table.obs["band"].to_numpy()[rows_of(table, frame)]) == [0, 1, 2]
    assert frame[["uncertainty", "novelty"]].isna().all(axis=None)
    assert frame["predicted"].isna().all()
    assert recorded(table, "suggested")["criterion"] == "diversity"


def test_without_predictions_diversity_decides_and_is_said_to(table):
    del table.obsm["region_probability"]
    with pytest.warns(HistoweaveWarning, match="diversity alone: there is no .*region_probability"):
        frame = hw.tl.suggest_labels(table, n=1)
    assert table.obs["band"][frame.index].tolist() == [2]


@pytest.mark.parametrize("smoothing", [None, "potts"])
def test_a_model_says_what_stored_results_of_it_say(section, smoothing):
    section.obs["region"] = section.obs["region"].astype(object).where(np.arange(section.n_obs) % 4 == 0)
    clf = hw.models.RegionClassifier(image=None, fusion_options={"smoothing": smoothing}).fit(section)
    frame = hw.tl.suggest_labels(section, n=6, model=clf)
    hw.tl.predict_regions(section, clf)
    section.obsm["X_gene"] = clf._encoders["gene"].embed(section)
    pd.testing.assert_frame_equal(hw.tl.suggest_labels(section, n=6), frame, rtol=1e-4)
    assert section.obs["region"].isna()[frame.index].all()


def test_repeats_exactly_and_takes_spatialdata(table):
    first = hw.tl.suggest_labels(table, n=6)
    pd.testing.assert_frame_equal(hw.tl.suggest_labels(table, n=6), first)
    sdata = hw.io.from_anndata(table)
    pd.testing.assert_frame_equal(hw.tl.suggest_labels(sdata, n=6), first)
    assert sdata.tables["table"].obs["suggested"].notna().sum() == 6


def test_rows_without_embedding_are_never_suggested_and_coordinates_can_be_missing(table):
    table.obsm["X_gene"][table.obs["band"] == 2] = np.nan
    frame = hw.tl.suggest_labels(table, n=5)
    assert (table.obs["band"][frame.index] < 2).all()
    del table.obsm["spatial"]
    assert hw.tl.suggest_labels(table, n=5)["x"].isna().all()
    with pytest.raises(KeyError, match="spatial_key"):
        hw.tl.suggest_labels(table, kind="patches")


def test_only_where_it_is_asked_for(table):
    table.obs["here"] = table.obs["band"] == 0
    frame = hw.tl.suggest_labels(table, n=5, mask_key="here")
    assert (table.obs["band"][frame.index] == 0).all()
    with pytest.raises(ValueError, match="must be boolean"):
        hw.tl.suggest_labels(table, mask_key="band")
    table.obs["here"] &= table.obs["region"].notna()
    with pytest.raises(ValueError, match="every spot of `mask_key='here'`"):
        hw.tl.suggest_labels(table, mask_key="here")


def test_fewer_than_asked_for_where_they_would_be_too_near(table):
    with pytest.warns(HistoweaveWarning, match="Only . of 5 spots are suggested.*min_distance=9"):
        frame = hw.tl.suggest_labels(table, n=5, min_distance=9)
    assert 0 < len(frame) < 5


def test_bad_input(table):
    with pytest.raises(ValueError, match="`kind` must be one of"):
        hw.tl.suggest_labels(table, kind="blobs")
    with pytest.raises(ValueError, match="`n` must be >= 1"):
        hw.tl.suggest_labels(table, n=0)
    with pytest.raises(TypeError, match="RegionClassifier"):
        hw.tl.suggest_labels(table, model="model/")
    with pytest.raises(KeyError, match="hw.tl.fusion_classifier"):
        hw.tl.suggest_labels(table, probability_key="p")
    table.obsm["p"] = table.obsm["region_probability"].to_numpy()
    with pytest.raises(TypeError, match="DataFrame"):
        hw.tl.suggest_labels(table, probability_key="p")
    table.obs["region"] = "a"
    with pytest.raises(ValueError, match="no spot to suggest"):
        hw.tl.suggest_labels(table)
    del table.obsm["X_gene"]
    with pytest.raises(KeyError, match="hw.tl.gene_encoder"):
        hw.tl.suggest_labels(table)
