"""Label curves: nested subsets on the same folds, cross-validation's scores at all labels, counts that are true."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave.models import RegionClassifier
from histoweave.models.fusion._heads import ForestHead
from histoweave.tl import _nulls
from histoweave.tl._fold_runner import FoldRunner

GENES = RegionClassifier(image=None, fusion_options={"heads": ["linear"]})
SCORES = ["n", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece", "n_not_predicted"]


@pytest.fixture(scope="module", autouse=True)
def few_trees_of_nulls():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_nulls, "ForestHead", partial(ForestHead, 10))
        yield


@pytest.fixture(scope="module")
def table(_cut):
    out = _cut.copy()
    hw.pp.split(out, by="donor", n_folds=2)
    return out


@pytest.fixture(scope="module")
def scores(table):
    return hw.tl.label_efficiency(
        table, model=GENES, fractions=[1, 0.05], mode=["spots", "patches"], seeds=[0, 3], arms=["gene"]
    )


def test_one_row_a_fold_mode_seed_fraction_and_arm(scores):
    keys = ["fold", "mode", "seed", "fraction", "arm"]
    assert not scores.duplicated(keys).any()
    sizes = [scores[key].nunique() for key in keys]
    assert sizes == [2, 2, 2, 2, 5]
    assert len(scores) == np.prod(sizes)
    assert ((scores["kind"] == "model") == (scores["arm"] == "gene")).all()
    assert (scores["n"] == 200).all()


def test_with_all_labels_scores_are_those_of_cross_validate(table, scores):
    expected = hw.tl.cross_validate(table, model=GENES, arms=["gene"], random_state=3).set_index(["fold", "arm"])
    whole = scores[(scores["fraction"] == 1) & (scores["seed"] == 3)]
    for _, found in whole.groupby("mode"):
        found = found.set_index(["fold", "arm"]).loc[expected.index]
        columns = [c for c in expected if c in found and c not in ("kind", "leakage", "unseen_classes")]
        assert set(SCORES) <= set(columns)
        pd.testing.assert_frame_equal(found[columns], expected[columns])


def test_counts_are_those_of_the_labels(table, scores):
    labels = table.obs["region"].astype(str)
    for fold, part in scores.groupby("fold"):
        sizes = labels[(table.obs["fold"] != fold).to_numpy()].value_counts()
        for fraction, rows in part.groupby("fraction"):
            taken = np.maximum(1, (fraction * sizes).round().astype(int))
            assert (rows["n_train"] == taken.sum()).all()
            assert (rows["n_smallest_class"] == taken.min()).all()


def test_labels_help(scores):
    mean = scores[scores["arm"] == "gene"].groupby(["mode", "fraction"])["macro_f1"].mean()
    for mode in ("spots", "patches"):
        assert mean[mode, 0.05] + 0.05 < mean[mode, 1.0]


def test_all_arms_see_the_same_nested_labels_and_embeddings_are_made_once(table, monkeypatch):
    seen, embedded, fit = {}, [], FoldRunner.fit

    def spy(self, embeddings, labels, **kwargs):
        seen.setdefault(len(embedded), []).append(set(labels.dropna().index))
        return fit(self, embeddings, labels, **kwargs)

    encode = RegionClassifier._fit_encoders
    monkeypatch.setattr(RegionClassifier, "_fit_encoders", lambda *a: embedded.append(1) or encode(*a))
    monkeypatch.setattr(FoldRunner, "fit", spy)
    options = {"model": GENES, "arms": ["gene"], "nulls": False, "fractions": [0.05, 0.2, 0.5], "seeds": [1]}
    hw.tl.label_efficiency(table, mode="patches", **options)
    assert len(embedded) == 2
    for fold in (1, 2):
        few, some, half = seen[fold]
        assert few < some < half


def test_same_call_same_scores_and_a_fold_alone_is_what_it_is_among_others(table):
    options = {"model": GENES, "arms": ["gene"], "nulls": False, "fractions": [0.05], "seeds": [2], "mode": "patches"}
    whole = hw.tl.label_efficiency(table, **options)
    pd.testing.assert_frame_equal(whole, hw.tl.label_efficiency(table, **options))
    one = hw.tl.label_efficiency(table, folds=["1"], **options)
    pd.testing.assert_frame_equal(whole[whole["fold"] == "1"].reset_index(drop=True), one)


def test_one_spot_a_class_is_enough(table):
    options = {"model": GENES, "arms": ["gene"], "nulls": True, "fractions": [1e-6], "seeds": [0], "folds": ["0"]}
    scores = hw.tl.label_efficiency(table, **options)
    assert (scores["n_train"] == 3).all()
    assert (scores["n_smallest_class"] == 1).all()
    assert scores["macro_f1"].notna().all()


def test_bad_input(table):
    with pytest.raises(ValueError, match="`mode` must be one of 'spots', 'patches', got 'blobs'"):
        hw.tl.label_efficiency(table, mode="blobs")
    with pytest.raises(ValueError, match="`fractions` must be > 0, got 0"):
        hw.tl.label_efficiency(table, fractions=[0])
    with pytest.raises(ValueError, match="`seeds` is empty"):
        hw.tl.label_efficiency(table, seeds=[])
    with pytest.raises(ValueError, match="`arms` must be one of"):
        hw.tl.label_efficiency(table, arms=["protein"])
    leaking = table.copy()
    leaking.obs["fold"] = np.arange(table.n_obs) % 2
    with pytest.raises(ValueError, match="The folds leak"):
        hw.tl.label_efficiency(leaking, model=GENES)
