"""k nearest neighbours across folds: against scikit-learn fold by fold, and nothing of the own fold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import KNeighborsClassifier

import histoweave as hw
from histoweave._record import record, recorded
from histoweave._validate import HistoweaveWarning


@pytest.fixture
def table(sections):
    rng = np.random.default_rng(0)
    region = pd.factorize(sections.obs["region"], sort=True)[0]
    sections.obsm["X_image"] = (rng.normal(size=(400, 6)) + 2 * np.eye(3, 6)[region]).astype("float32")
    hw.pp.split(sections, by="donor", n_folds=2)
    return sections


@pytest.mark.parametrize(("metric", "weights"), [("cosine", "distance"), ("euclidean", "uniform")])
def test_predictions_are_scikit_learns_on_the_other_folds(table, metric, weights):
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(400) % 3 > 0)
    hw.tl.knn_classifier(table, k=7, metric=metric, weights=weights)
    X, labelled = table.obsm["X_image"].astype(float), table.obs["region"].notna().to_numpy()
    fold = table.obs["fold"].astype(str).to_numpy()
    for name in ("0", "1"):
        train, test = labelled & (fold != name), fold == name
        peer = KNeighborsClassifier(7, metric=metric, weights=weights).fit(X[train], table.obs["region"][train])
        found = table.obsm["region_probability"][test]
        np.testing.assert_allclose(found, peer.predict_proba(X[test]), atol=1e-5)
        assert list(found.columns) == list(peer.classes_)
    assert table.obs["region_confidence"].to_numpy() == pytest.approx(
        table.obsm["region_probability"].max(axis=1).to_numpy(), abs=1e-6
    )
    entry = recorded(table, "region_predicted")
    assert entry["function"] == "tl.knn_classifier"
    assert entry["params"]["k"] == 7


def test_own_fold_never_votes(table):
    # every section has its own labels and its own corner: its own rows would be right, others cannot be
    table.obs["region"] = table.obs["library_id"].astype(str)
    table.obsm["X_image"] = np.eye(4)[table.obs["library_id"].cat.codes] + 0.001
    with pytest.warns(HistoweaveWarning, match="no row outside it is labelled"):
        hw.tl.knn_classifier(table, fold_key="library_id")
    assert hw.tl.evaluate(table).set_index(["region", "metric"])["value"]["overall", "accuracy"] == 0
    assert (table.obs["region_predicted"].astype(str) != table.obs["library_id"].astype(str)).all()


@pytest.mark.filterwarnings("ignore::histoweave._validate.HistoweaveWarning")  # half a section lacks some regions
def test_blocks_keep_their_buffer(section):
    rng = np.random.default_rng(1)
    section.obsm["X_image"] = rng.normal(size=(144, 4))
    hw.pp.split(section, by="blocks", n_folds=2, n_rings=1)
    hw.tl.knn_classifier(section, k=1)
    for fold in hw.pp._split.iter_folds(section):
        rows = np.flatnonzero(fold.test)
        peer = KNeighborsClassifier(1, metric="cosine").fit(
            section.obsm["X_image"][fold.train], section.obs["region"][fold.train].astype(str)
        )
        assert (
            section.obs["region_predicted"].astype(str).iloc[rows] == peer.predict(section.obsm["X_image"][rows])
        ).all()
    assert fold.train.sum() + fold.test.sum() < 144


def test_refuses_what_is_not_held_out(table):
    table.obs["mixed"] = np.arange(400) % 2
    with pytest.raises(ValueError, match="The folds leak: .*allow_leakage=True"):
        hw.tl.knn_classifier(table, fold_key="mixed")
    hw.tl.knn_classifier(table, fold_key="mixed", allow_leakage=True)
    assert "px from test rows" in recorded(table, "region_predicted")["leakage"]
    del table.obs["fold"]
    with pytest.raises(KeyError, match=r"fold_key='fold'.*available: .*'donor'.*hw.pp.split"):
        hw.tl.knn_classifier(table)


def test_rows_without_embedding_label_or_fold(table):
    table.obsm["X_image"][:20] = np.nan
    table.obs["fold"] = table.obs["fold"].astype(object)
    table.obs.iloc[20:30, table.obs.columns.get_loc("fold")] = None
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(400) >= 50)
    hw.tl.knn_classifier(table, key_added="knn")
    assert table.obs["knn_predicted"].isna().to_numpy().tolist() == [True] * 30 + [False] * 370
    assert table.obs["knn_abstain"][:30].all()
    assert table.obs["knn_confidence"][:30].isna().all()
    assert table.obsm["knn_probability"][:30].isna().all(axis=None)


def test_coverage_is_the_share_that_is_answered(table):
    hw.tl.knn_classifier(table, coverage=0.7)
    assert table.obs["region_abstain"].mean() == pytest.approx(0.3, abs=0.01)
    answered = ~table.obs["region_abstain"]
    right = table.obs["region_predicted"].astype(str) == table.obs["region"].astype(str)
    assert right[answered].mean() > right.mean()
    hw.tl.knn_classifier(table, coverage=1.0)
    assert not table.obs["region_abstain"].any()


def test_copy_leaves_the_table_alone_and_spatialdata_works(table):
    before = table.copy()
    changed = hw.tl.knn_classifier(table, copy=True)
    assert "region_predicted" not in table.obs
    pd.testing.assert_frame_equal(table.obs, before.obs)
    sdata = hw.io.from_anndata(table)
    hw.tl.knn_classifier(sdata)
    found = sdata.tables["table"].obs["region_predicted"]
    assert (found.to_numpy() == changed.obs["region_predicted"].to_numpy()).all()


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ({"key": "X_fused"}, KeyError, "key='X_fused'.*'X_image'"),
        ({"labels_key": "none"}, KeyError, "labels_key='none'"),
        ({"k": 0}, ValueError, "`k` must be >= 1"),
        ({"weights": "rank"}, ValueError, "`weights` must be one of"),
        ({"metric": "l1"}, ValueError, "`metric` must be one of"),
        ({"coverage": 0}, ValueError, "`coverage` must be > 0"),
    ],
)
def test_bad_input(table, argument, error, words):
    with pytest.raises(error, match=words):
        hw.tl.knn_classifier(table, **argument)
    assert "region_predicted" not in table.obs


def test_nothing_to_predict_from(table):
    table.obsm["X_image"][:] = np.nan
    with pytest.raises(ValueError, match="NaN in every row"):
        hw.tl.knn_classifier(table)


def test_an_encoder_that_learned_from_the_labels_leaks(table):
    record(table, "X_image", "tl.image_encoder", {}, labels_seen=["section_2"])
    with pytest.raises(ValueError, match="'X_image' was trained with labels of 'section_2', which is tested on"):
        hw.tl.knn_classifier(table)
    hw.tl.knn_classifier(table, allow_leakage=True)
    assert "trained with labels" in recorded(table, "region_predicted")["leakage"]
