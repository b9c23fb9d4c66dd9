"""ROC curves: against counting at every threshold, and the areas that other scores give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import histoweave as hw


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "c"], 80)
    p = rng.dirichlet([1, 1, 1], 80) + 0.7 * (truth[:, None] == np.array(["a", "b", "c"]))
    p = (p / p.sum(1, keepdims=True)).round(2)  # with ties
    p[:, 2] = 1 - p[:, 0] - p[:, 1]
    return truth, pd.DataFrame(p, columns=["a", "b", "c"])


def test_rates_are_those_counted_at_the_threshold(drawn):
    truth, p = drawn
    curves = hw.metrics.roc_curves(truth, p)
    for row in curves.itertuples():
        name = row[1]
        called = p[name].to_numpy() >= row.threshold
        assert row.true_positive_rate == called[truth == name].mean()
        assert row.false_positive_rate == called[truth != name].mean()
    ends = curves.groupby("class", observed=True)[["false_positive_rate", "true_positive_rate"]]
    assert (ends.first() == 0).all(axis=None)
    assert (ends.last() == 1).all(axis=None)


def area(curve):
    return np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"])


def test_areas_are_the_roc_auc_of_the_classes(drawn):
    truth, p = drawn
    scores = hw.metrics.per_class(truth, p.idxmax(axis=1), p)
    for name, curve in hw.metrics.roc_curves(truth, p).groupby("class", observed=True):
        assert area(curve) == pytest.approx(scores.loc[name, "roc_auc"])


def test_areas_are_the_roc_auc_of_the_findings():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.integers(0, 2, (60, 3)).astype(float), columns=["necrosis", "oedema", "fat"])
    p = 0.3 * truth + 0.7 * rng.random((60, 3))
    truth.iloc[:10, 0] = np.nan
    truth["fat"] = 1.0  # of all: no curve
    p.iloc[30] = np.nan
    curves = hw.metrics.roc_curves(truth, p[["fat", "necrosis", "oedema"]])
    assert list(curves["class"].cat.categories) == ["necrosis", "oedema"]
    scores = hw.metrics.multilabel(truth, p)
    for name, curve in curves.groupby("class", observed=True):
        assert area(curve) == pytest.approx(scores.loc[name, "roc_auc"])


def test_classes_without_rows_have_no_curve():
    curves = hw.metrics.roc_curves(["a", "b"], [[0.5, 0.4, 0.1], [0.2, 0.7, 0.1]], classes=["a", "b", "c"])
    assert set(curves["class"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("truth", "p", "match"),
    [
        (["a", "a"], [[1.0, 0.0], [0.5, 0.5]], "no ROC curve"),
        (["a", "z"], [[1.0, 0.0], [0.5, 0.5]], "'z'"),
        (["a", "b"], [[2.0, 0.0], [0.5, 0.5]], "sum to 1"),
        (["a", None], [[1.0, 0.0], [0.5, 0.5]], "missing"),
        ([[0, 2], [1, 0]], [[1.0, 0.0], [0.5, 0.5]], "must hold 1"),
        ([[0, 1], [1, 0]], [[1.0, 0.0]], "same number of rows"),
    ],
)
def test_bad_input(truth, p, match):
    with pytest.raises(ValueError, match=match):
        hw.metrics.roc_curves(truth, p, classes=["a", "b"])
