"""Findings on held-out folds: each asked by itself, on the same embeddings, as by hand."""

from __future__ import annotations

import numpy as np
import pytest

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.models import MultiLabelClassifier, RegionClassifier

pytestmark = pytest.mark.usefixtures("few_trees")


@pytest.fixture(scope="module")
def table(_sections):
    table = _sections.copy()
    hw.pp.split(table, by="donor", n_folds=2)
    region = table.obs["region_truth"].astype(str)
    findings = region.str.get_dummies().iloc[:, :2].astype(float).set_axis(["tumour", "necrosis"], axis=1)
    findings.iloc[::7, 1] = np.nan  # nobody looked for it there
    table.obsm["findings"] = findings
    return table


@pytest.fixture(scope="module")
def model():
    return MultiLabelClassifier(RegionClassifier(image=None))


@pytest.fixture(scope="module")
def scores(table, model):
    return hw.tl.cross_validate(table, model=model, labels_key="findings", key_added="held_out")


def test_held_out_probabilities_are_those_of_a_hand_made_fit(table, model, scores):
    held_out = table.obsm["held_out_probability"]
    assert list(held_out) == ["tumour", "necrosis"]
    assert list(scores.loc[scores["arm"] == "gene", ["fold", "finding"]].itertuples(index=False, name=None)) == [
        (fold, name) for fold in ("0", "1") for name in ("tumour", "necrosis")
    ]
    for fold in ("0", "1"):
        test = (table.obs["fold"] == fold).to_numpy()
        fitted = MultiLabelClassifier(model.chain).fit(table[~test].copy())
        p = fitted.predict_proba(table[test].copy())
        np.testing.assert_allclose(held_out[test], p, atol=1e-5)
        decided = fitted.predict(table[test].copy()).xs("predicted", axis=1, level=1)
        truth = hw.metrics.multilabel(table.obsm["findings"][test], p, predicted=decided)
        for name in held_out:
            row = scores.query("arm == 'gene' and fold == @fold and finding == @name").iloc[0]
            for score in ("roc_auc", "average_precision", "f1", "balanced_accuracy", "brier", "n", "prevalence"):
                assert row[score] == pytest.approx(truth.loc[name, score], abs=1e-5)


def test_nulls_are_beaten(scores):
    means = scores.groupby("arm")["average_precision"].mean()
    assert means["gene"] > means.drop("gene").max() + 0.2
    assert set(means.index) == {"gene", "majority", "depth", "coordinates", "neighbour vote"}


def test_curves_end_in_cross_validation_and_a_fold_is_embedded_once(table, model, scores, monkeypatch):
    seen, fit = [], RegionClassifier._fit_encoders
    monkeypatch.setattr(RegionClassifier, "_fit_encoders", lambda self, light: seen.append(self) or fit(self, light))
    curve = hw.tl.label_efficiency(
        table, model=model, labels_key="findings", fractions=[0.1, 1], seeds=[0], nulls=False
    )
    assert len(seen) == 2
    keys = ["fold", "finding", "arm"]
    full = curve[curve["fraction"] == 1].set_index(keys)
    expected = scores[scores["kind"] == "model"].set_index(keys).loc[full.index]
    for score in ("roc_auc", "brier", "n_train"):
        np.testing.assert_allclose(full[score], expected[score])
    known = table.obsm["findings"].notna()
    few = curve[curve["fraction"] == 0.1].set_index(keys)["n_train"]
    for (fold, name, _), n in few.items():
        assert n == pytest.approx(0.1 * known.loc[table.obs["fold"] != fold, name].sum(), abs=2)


def test_a_finding_that_a_fold_cannot_ask_is_left_out_with_a_word(table, model):
    spoilt = table.copy()
    spoilt.obsm["findings"] = table.obsm["findings"].copy()
    spoilt.obsm["findings"].loc[table.obs["fold"] == "0", "necrosis"] = np.nan
    with pytest.warns(HistoweaveWarning, match=r"Fold '\d' is left out for 'necrosis': \d of present and absent"):
        found = hw.tl.cross_validate(spoilt, model=model, labels_key="findings", nulls=False)
    assert found["finding"].tolist() == ["tumour", "tumour"]


def test_bad_input(table, model):
    with pytest.raises(KeyError, match=r"labels_key.*'region'.*adata.obsm"):
        hw.tl.cross_validate(table, model=model)
    for function in (hw.tl.ablation, hw.tl.transfer):
        options = {"source": ["section_1"], "target": ["section_3"]} if function is hw.tl.transfer else {}
        with pytest.raises(TypeError, match="`model` is a MultiLabelClassifier"):
            function(table, model=model, labels_key="findings", **options)
