"""Scores of stored predictions, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn import metrics

import histoweave as hw


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])
    truth = rng.integers(0, 3, 200)
    p = rng.dirichlet(np.ones(3), 200) + 0.6 * np.eye(3)[truth]
    p /= p.sum(1, keepdims=True)
    index = [f"s{i}" for i in range(200)]
    obs = pd.DataFrame(
        {"region": names[truth].astype(object), "x_predicted": pd.Categorical(names[p.argmax(1)])}, index
    )
    obs.loc[obs.index[:20], "region"] = None
    obs["x_abstain"] = p.max(1) < 0.5
    obs["held_out"] = np.arange(200) >= 100
    adata = AnnData(obs=obs)
    adata.obsm["x_probability"] = pd.DataFrame(p, index=index, columns=names)
    return adata


def value(scores, metric, region="overall"):
    return scores.set_index(["region", "metric"])["value"].loc[(region, metric)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("abstained", [True, False])
def test_scores_are_scikit_learns(table, masked, abstained):
    found = hw.tl.evaluate(table, prediction="x", mask_key="held_out" if masked else None, include_abstained=abstained)
    labelled = table.obs["region"].notna() & (table.obs["held_out"] | (not masked))
    rows = labelled & (abstained | ~table.obs["x_abstain"])
    truth, guess = table.obs["region"][rows].to_numpy(str), table.obs["x_predicted"][rows].to_numpy(str)
    assert value(found, "n") == rows.sum()
    assert value(found, "accuracy") == pytest.approx(metrics.accuracy_score(truth, guess))
    assert value(found, "macro_f1") == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    assert value(found, "adjusted_rand") == pytest.approx(metrics.adjusted_rand_score(truth, guess))
    p = table.obsm["x_probability"].to_numpy()[rows]
    assert value(found, "log_loss") == pytest.approx(metrics.log_loss(truth, p, labels=["a", "b", "c"]))
    assert value(found, "coverage") == pytest.approx(rows.sum() / labelled.sum())
    per = metrics.precision_recall_fscore_support(truth, guess, labels=["a", "b", "c"])
    assert [value(found, "f1", r) for r in "abc"] == pytest.approx(per[2])


def test_class_that_was_never_predicted_is_an_error_of_the_model(table):
    table.obs["region"] = table.obs["region"].where(table.obs["region"] != "c", "new")
    found = hw.tl.evaluate(table, prediction="x")
    assert value(found, "recall", "new") == 0
    assert np.isfinite(value(found, "accuracy"))


def test_numbers_as_names(table):
    codes = {"a": 1.0, "b": 2.0, "c": 3.0}
    table.obs["number"] = table.obs["region"].map(codes)
    table.obs["n_predicted"] = table.obs["x_predicted"].astype(object).map(codes).astype(float)
    found = hw.tl.evaluate(table, labels_key="number", prediction="n")
    assert value(found, "accuracy") == value(hw.tl.evaluate(table, prediction="x"), "accuracy")


@pytest.mark.parametrize(
    "mask",
    [
        np.where(np.arange(200) % 2, "True", "False"),
        np.where(np.arange(200) % 2, True, None),
        np.arange(200) % 2,
    ],
)
def test_mask_that_is_not_boolean_is_refused(table, mask):
    table.obs["mask"] = mask
    with pytest.raises(ValueError, match="True or False in every row"):
        hw.tl.evaluate(table, prediction="x", mask_key="mask")


def test_nothing_to_score(table):
    table.obs["none"] = False
    with pytest.raises(ValueError, match="nothing to score"):
        hw.tl.evaluate(table, prediction="x", mask_key="none")
    with pytest.raises(KeyError, match="hw.tl.predict_regions"):
        hw.tl.evaluate(table)
    with pytest.raises(KeyError, match="mask_key='nope'"):
        hw.tl.evaluate(table, prediction="x", mask_key="nope")
    with pytest.raises(KeyError, match="labels_key='nope'"):
        hw.tl.evaluate(table, labels_key="nope", prediction="x")
    table.obs["region"] = None
    with pytest.raises(ValueError, match="holds no label"):
        hw.tl.evaluate(table, prediction="x")
