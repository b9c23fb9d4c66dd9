"""Cross-validation: hand-made folds, what leaks, what is transductive, what is stated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave._record import recorded
from histoweave._validate import HistoweaveWarning
from histoweave.models import RegionClassifier

GENES = RegionClassifier(image=None)


@pytest.fixture
def table(cut):
    hw.pp.split(cut, by="donor", n_folds=2)
    return cut


@pytest.fixture(scope="module")
def scored(_cut, few_trees):
    table = _cut.copy()
    hw.pp.split(table, by="donor", n_folds=2)
    return table, hw.tl.cross_validate(table, key_added="cv")


def test_one_row_a_fold_and_arm(scored):
    _, scores = scored
    arms = ["fused", "image", "gene", "majority", "depth", "coordinates", "neighbour vote"]
    assert scores.groupby("fold")["arm"].apply(list).tolist() == [arms, arms]
    assert (scores["kind"] == np.where(scores["arm"].isin(arms[:3]), "model", "null")).all()
    assert not scores["transductive"].any()
    assert (scores["leakage"] == "").all()
    assert (scores["n"] == 200).all()
    assert (scores["n_train"] == 200).all()
    assert (scores["n_not_predicted"] == 0).all()
    best = scores[scores["kind"] == "null"]["macro_f1"].max()
    assert scores[scores["kind"] == "model"]["macro_f1"].min() > best + 0.1


def test_held_out_predictions_are_those_of_a_hand_made_fit(scored):
    table, scores = scored
    for name in ("0", "1"):
        test = (table.obs["fold"].astype(str) == name).to_numpy()
        clf = RegionClassifier().fit(table[~test].copy())
        expected = clf.predict_proba(table[test].copy())
        np.testing.assert_allclose(table.obsm["cv_probability"][test], expected, atol=1e-5)
        guess = clf.predict(table[test].copy())["predicted"].to_numpy()
        assert (table.obs["cv_predicted"][test].astype(str) == guess).all()
        numbers = hw.metrics.classification(table.obs["region"][test].astype(str), guess, expected)
        row = scores[(scores["fold"] == name) & (scores["arm"] == "fused")].iloc[0]
        for metric in ("macro_f1", "log_loss", "ece"):
            assert row[metric] == pytest.approx(numbers[metric], abs=1e-4)
    entry = recorded(table, "cv_predicted")
    assert entry["function"] == "tl.cross_validate"
    assert entry["params"]["arm"] == "fused"


def test_table_is_not_changed_unless_asked(table):
    before = table.copy()
    hw.tl.cross_validate(table, model=GENES, folds=["0"], nulls=False)
    pd.testing.assert_frame_equal(table.obs, before.obs)
    assert set(table.obsm) == set(before.obsm)
    assert set(table.uns["histoweave"]) == set(before.uns["histoweave"])


def test_encoders_never_see_the_test_sections(table, monkeypatch):
    seen = []
    fit = RegionClassifier._fit_encoders

    def spy(self, light):
        seen.append(set(light.obs["library_id"]))
        return fit(self, light)

    monkeypatch.setattr(RegionClassifier, "_fit_encoders", spy)
    hw.tl.cross_validate(table, model=GENES, nulls=False)
    sections = [set(table.obs["library_id"][table.obs["fold"] != name]) for name in ("0", "1")]
    assert seen == sections


def test_blocks_are_transductive_and_labels_of_test_blocks_unseen(section, monkeypatch):
    hw.pp.split(section, by="blocks", n_folds=2, n_rings=1)
    fitted = []
    fit = RegionClassifier._fit_fusion

    def spy(self, light, features, labels, **options):
        fitted.append(labels.copy())
        return fit(self, light, features, labels, **options)

    monkeypatch.setattr(RegionClassifier, "_fit_fusion", spy)
    scores = hw.tl.cross_validate(section, model=RegionClassifier(image=None, n_rings=1))
    assert scores["transductive"].all()
    fold = section.obs["fold"].astype(str).to_numpy()
    xy, buffer = section.obsm["spatial"], float(recorded(section, "fold")["buffer_px"]["section_1"])
    assert len(fitted) == 2
    for name, labels in zip(("0", "1"), fitted, strict=True):
        used, test = labels.notna().to_numpy(), fold == name
        assert not (used & test).any()
        distance = np.linalg.norm(xy[used][:, None] - xy[test][None], axis=2)
        assert distance.min() > buffer
        assert (scores.loc[scores["fold"] == name, "n_train"] == used.sum()).all()


def test_leaking_folds_are_refused_with_the_reason(table):
    table.obs["fold"] = np.arange(table.n_obs) % 2
    with pytest.raises(ValueError, match="The folds leak: .*allow_leakage=True"):
        hw.tl.cross_validate(table, model=GENES)
    scores = hw.tl.cross_validate(table, model=GENES, allow_leakage=True, nulls=False, folds=["0"])
    assert scores["leakage"].str.contains("training rows lie").all()
    assert scores["transductive"].all()


def test_sections_of_one_donor_on_both_sides_leak(table):
    table.obs["donor"] = "one"
    with pytest.raises(ValueError, match="sections of one donor"):
        hw.tl.cross_validate(table, model=GENES)


def test_unseen_class_is_stated_and_counted_as_error(table):
    labels = table.obs["region"].astype(object)
    table.obs["region"] = labels.where(~((table.obs["fold"] == "1") & (labels == "region_1")))  # first in order
    with pytest.warns(HistoweaveWarning, match="Fold '0': no training row has 'region_1'"):
        scores = hw.tl.cross_validate(table, model=GENES, key_added="cv")
    fold = scores[scores["fold"] == "0"]
    assert (fold["unseen_classes"] == "region_1").all()
    share = (labels[table.obs["fold"] == "0"] == "region_1").mean()
    assert fold["accuracy"].max() <= 1 - share
    assert (table.obsm["cv_probability"]["region_1"][table.obs["fold"] == "0"] == 0).all()


def test_rows_that_cannot_be_predicted_are_counted_even_beside_an_unseen_class(table):
    labels = table.obs["region"].astype(object)
    table.obs["region"] = labels.where(~((table.obs["fold"] == "1") & (labels == "region_1")))
    counts = table.layers["counts"].tolil()
    empty = np.flatnonzero(table.obs["fold"] == "0")[:7]
    counts[empty] = 0
    table.layers["counts"] = counts.tocsr()
    with pytest.warns(HistoweaveWarning):
        scores = hw.tl.cross_validate(table, model=GENES, nulls=False, folds=["0"])
    assert scores["n_not_predicted"].tolist() == [7]
    assert scores["n"].tolist() == [193]


def test_labels_that_are_numbers(table):
    table.obs["number"] = table.obs["region"].astype(str).str[-1].astype(float)
    hw.tl.cross_validate(table, labels_key="number", model=GENES, nulls=False, key_added="cv")
    assert list(table.obsm["cv_probability"].columns) == ["1", "2", "3"]
    assert table.obs["cv_predicted"].notna().all()
    truth = table.obs["number"].astype(int).astype(str)
    assert (table.obs["cv_predicted"].astype(str) == truth).mean() > 0.8


def test_rows_of_no_fold_and_unlabelled_rows_are_left_out(table):
    table.obs["fold"] = table.obs["fold"].astype(object)
    table.obs.loc[table.obs_names[:50], "fold"] = np.nan
    table.obs["region"] = table.obs["region"].astype(object).where(np.arange(table.n_obs) % 2 == 0)
    scores = hw.tl.cross_validate(table, model=GENES, nulls=False, key_added="cv")
    assert scores["n"].sum() == (400 - 50) / 2
    assert table.obs["cv_predicted"][:50].isna().all()
    assert table.obs["cv_predicted"][50:].notna().all()


def test_fold_without_labels_is_left_out_with_a_word(table):
    table.obs["region"] = table.obs["region"].astype(object).where(table.obs["fold"] == "0")
    with (
        pytest.warns(HistoweaveWarning, match="is left out"),
        pytest.raises(ValueError, match="No fold has labelled rows"),
    ):
        hw.tl.cross_validate(table, model=GENES)


def test_arms_and_folds_that_are_asked_for(table):
    scores = hw.tl.cross_validate(table, model=GENES, arms=["gene"], folds=["1"], nulls=False)
    assert scores[["fold", "arm"]].to_numpy().tolist() == [["1", "gene"]]
    with pytest.raises(ValueError, match="`arms` must be one of"):
        hw.tl.cross_validate(table, arms=["protein"])
    with pytest.raises(ValueError, match="`folds` must be one of '0', '1', got '7'"):
        hw.tl.cross_validate(table, model=GENES, folds=[7])
    with pytest.raises(ValueError, match="None of the arms 'image'"):
        hw.tl.cross_validate(table, model=GENES, arms=["image"])


def test_missing_folds_or_labels(table):
    with pytest.raises(KeyError, match="hw.io.read_labels"):
        hw.tl.cross_validate(table, labels_key="none")
    del table.obs["fold"]
    with pytest.raises(KeyError, match="hw.pp.split"):
        hw.tl.cross_validate(table, model=GENES)


@pytest.mark.slow
def test_same_seed_same_scores_and_spatialdata_too(table):
    first = hw.tl.cross_validate(table, model=GENES)
    pd.testing.assert_frame_equal(first, hw.tl.cross_validate(table, model=GENES))
    pd.testing.assert_frame_equal(first, hw.tl.cross_validate(hw.io.from_anndata(table.copy()), model=GENES))
