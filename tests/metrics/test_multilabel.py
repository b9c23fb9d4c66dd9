"""Findings that a row may have none, one or several of: against scores taken one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import histoweave as hw


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.integers(0, 2, (60, 3)).astype(float), columns=["necrosis", "oedema", "fat"])
    p = (0.3 * truth + 0.7 * rng.random((60, 3))).clip(0, 1)
    truth.iloc[:10, 0] = np.nan
    p.iloc[[3, 50]] = np.nan
    return truth, p


def test_every_finding_on_the_rows_where_it_is_known(drawn):
    truth, p = drawn
    table = hw.metrics.multilabel(truth, p, threshold=0.4)
    for name in truth:
        rows = truth[name].notna() & p[name].notna()
        y, q = truth[name][rows].astype(int), p[name][rows]
        expected = {
            "roc_auc": sk.roc_auc_score(y, q),
            "average_precision": sk.average_precision_score(y, q),
            "f1": sk.f1_score(y, q >= 0.4),
            "balanced_accuracy": sk.balanced_accuracy_score(y, q >= 0.4),
            "brier": sk.brier_score_loss(y, q),
            "n": rows.sum(),
            "prevalence": y.mean(),
            "n_not_predicted": (truth[name].notna() & p[name].isna()).sum(),
        }
        pd.testing.assert_series_equal(table.loc[name], pd.Series(expected, dtype=float), check_names=False)
    np.testing.assert_allclose(table.loc["mean"], table.iloc[:-1].mean())


def test_decisions_of_a_classifier_count_where_they_are_given(drawn):
    truth, p = drawn
    decided = (p > 0.2).astype("boolean").where(p.notna())
    by_name = hw.metrics.multilabel(truth, p, predicted=decided[["fat", "oedema", "necrosis"]])
    pd.testing.assert_frame_equal(by_name, hw.metrics.multilabel(truth, p, predicted=(p > 0.2).to_numpy()))
    for name in truth:
        rows = truth[name].notna() & p[name].notna()
        assert by_name.loc[name, "f1"] == sk.f1_score(truth[name][rows], p[name][rows] > 0.2)
    same = [name for name in by_name if name not in ("f1", "balanced_accuracy")]
    pd.testing.assert_frame_equal(by_name[same], hw.metrics.multilabel(truth, p)[same])
    with pytest.raises(ValueError, match="True or False in every row with probabilities"):
        hw.metrics.multilabel(truth, p, predicted=decided.drop(index=7).reindex(p.index))
    with pytest.raises(ValueError, match="must have 60 rows and the columns 'necrosis', 'oedema', 'fat'"):
        hw.metrics.multilabel(truth, p, predicted=decided[["fat"]])


def test_columns_are_told_by_name_and_arrays_by_place(drawn):
    truth, p = drawn
    expected = hw.metrics.multilabel(truth, p)
    pd.testing.assert_frame_equal(hw.metrics.multilabel(truth, p[["fat", "oedema", "necrosis"]]), expected)
    by_place = hw.metrics.multilabel(truth.to_numpy(), p.to_numpy())
    np.testing.assert_array_equal(by_place, expected)


def test_what_cannot_be_ranked_is_left_out_of_the_mean():
    truth = pd.DataFrame({"a": [1, 0, 1], "always": [1, 1, 1], "unknown": [None] * 3})
    table = hw.metrics.multilabel(truth, np.tile([[0.9], [0.2], [0.4]], 3))
    assert table.loc["a", "roc_auc"] == table.loc["mean", "roc_auc"] == 1
    assert table.loc["always", ["roc_auc", "average_precision", "f1"]].isna().all()
    assert table.loc["always", "brier"] == pytest.approx((0.01 + 0.64 + 0.36) / 3)
    assert table.loc["unknown", "n"] == 0


def test_truth_values_are_numbers():
    truth = pd.DataFrame({"a": [True, False, True]})
    assert hw.metrics.multilabel(truth, [[0.9], [0.1], [0.8]]).loc["a", "f1"] == 1


@pytest.mark.parametrize(
    ("truth", "p", "message"),
    [
        ([[0, 2]], [[0.1, 0.2]], "'1' has '2'"),
        ([["yes", "no"]], [[0.1, 0.2]], "'0' has 'yes'"),
        ([[0, 1]], [[0.1, 1.2]], "must lie in 0..1"),
        ([[0, 1]], [[0.1, np.nan]], "must lie in 0..1"),
        ([[0, 1]], [[0.1, 0.2, 0.3]], "columns"),
        ([[0, 1]], [[0.1, 0.2], [0.1, 0.2]], "number of rows"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "one column a finding"),
    ],
)
def test_refused(truth, p, message):
    with pytest.raises(ValueError, match=message):
        hw.metrics.multilabel(truth, p)
