"""Tests and intervals for comparing arms, against statsmodels, SciPy and naive loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

import histoweave as hw
from histoweave._validate import HistoweaveWarning


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for p in (rng.uniform(size=9), rng.uniform(0, 0.05, size=6), np.array([0.02, 0.02, 0.5, 1.0, 0.0])):
        np.testing.assert_allclose(hw.metrics.holm(p), multipletests(p, method="holm")[1])


def test_holm_does_not_count_what_was_not_compared():
    np.testing.assert_allclose(hw.metrics.holm([0.04, np.nan, 0.01]), [0.04, np.nan, 0.02])
    assert hw.metrics.holm([]).shape == (0,)
    for wrong in ([1.2], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            hw.metrics.holm(wrong)


def test_without_shared_rows_it_is_the_paired_t_test():
    d = np.random.default_rng(1).normal(0.1, 0.2, size=8)
    found = hw.metrics.corrected_t_test(d, test_ratio=0)
    peer = stats.ttest_1samp(d, 0)
    assert found["p_value"] == pytest.approx(peer.pvalue)
    assert found["t"] == pytest.approx(peer.statistic)
    np.testing.assert_allclose([found["low"], found["high"]], peer.confidence_interval(0.95))


def test_corrected_t_by_hand():
    d = np.array([0.1, 0.3, 0.2, np.nan, 0.0])
    found = hw.metrics.corrected_t_test(d, test_ratio=1 / 3)
    t = 0.15 / np.sqrt((1 / 4 + 1 / 3) * np.var([0.1, 0.3, 0.2, 0.0], ddof=1))
    assert found["n"] == 4
    assert found["t"] == pytest.approx(t)
    assert found["p_value"] == pytest.approx(2 * stats.t.sf(t, 3))


def test_false_alarms_of_cross_validation_are_as_rare_as_stated():
    # the mean of a training set of 5 folds, tested on the fold: differences to the truth are correlated over folds
    rng, alarms = np.random.default_rng(2), {0.0: 0, 0.25: 0}
    for _ in range(400):
        x = rng.normal(size=(5, 6))
        d = [x[i].mean() + np.delete(x, i, 0).mean() for i in range(5)]  # zero on average, training rows shared
        for ratio in alarms:
            alarms[ratio] += hw.metrics.corrected_t_test(d, test_ratio=ratio)["p_value"] < 0.05
    assert alarms[0.25] < alarms[0.0]
    assert alarms[0.0] > 400 * 0.05 * 1.5
    assert hw.metrics.corrected_t_test([0.0, 0.0], test_ratio=0.5)["p_value"] == 1
    assert np.isnan(hw.metrics.corrected_t_test([0.3], test_ratio=0.5)["p_value"])


@pytest.fixture(scope="module")
def arms():
    rng = np.random.default_rng(3)
    groups = np.repeat([f"donor {i}" for i in range(12)], 15)
    truth = rng.choice(["a", "b", "c"], p=[0.7, 0.3, 0.0], size=len(groups)).astype(object)
    truth[:4] = "c"  # of one donor: some resamples are without

    def guess(right):
        return np.where(rng.uniform(size=len(truth)) < right, truth, rng.choice(["a", "b", "c", "d"], len(truth)))

    good = np.stack([guess(0.8), guess(0.8)], axis=1).astype(object)
    poor = guess(0.4).astype(object)
    poor[::20] = None
    return truth, {"good": good, "poor": poor}, groups


def test_bootstrap_is_a_loop_over_resampled_groups(arms):
    truth, predicted, groups = arms
    options = {"n_resamples": 25, "level": 0.9, "random_state": 5}
    found = hw.metrics.group_bootstrap(truth, predicted, groups, reference="good", **options)
    names = list(dict.fromkeys(groups))
    weights = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), 25)

    metrics = ["macro_f1", "balanced_accuracy", "accuracy"]

    def score(arm, rows):
        parts = []
        for column in predicted[arm].reshape(len(truth), -1).T:
            kept, known = rows[pd.notna(column[rows])], pd.notna(column)
            scores, whole = (
                hw.metrics.per_class(truth[r], column[r], classes=["a", "b", "c", "d"])[["f1", "recall"]]
                for r in (kept, known)
            )
            means = scores.fillna(whole).loc[["a", "b", "c"]].mean()  # nobody is of class d
            parts.append([means["f1"], means["recall"], (truth[kept] == column[kept]).mean()])
        return np.mean(parts, axis=0)

    drawn = {"good": [], "poor": []}
    for w in weights:
        picked = [np.flatnonzero(groups == n) for n, times in zip(names, w, strict=True) for _ in range(times)]
        for arm, values in drawn.items():
            values.append(score(arm, np.concatenate(picked)))
    gap = np.subtract(drawn["poor"], drawn["good"])
    rows = found.set_index("arm")
    for arm, values in drawn.items():
        assert rows.loc[arm, "metric"].tolist() == metrics
        np.testing.assert_allclose(rows.loc[arm, "value"], score(arm, np.arange(len(truth))))
        np.testing.assert_allclose(rows.loc[arm, ["low", "high"]].T, np.quantile(values, [0.05, 0.95], axis=0))
    bounds = rows.loc["poor", ["difference_low", "difference_high"]].T
    np.testing.assert_allclose(bounds, np.quantile(gap, [0.05, 0.95], axis=0), atol=1e-12)
    assert (rows.loc["good", ["difference", "difference_low", "difference_high"]] == 0).all(axis=None)


def test_whole_groups_say_less_than_their_rows(arms):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    truth = np.full(600, "a", dtype=object)
    predicted = np.where(np.repeat(rng.uniform(size=20) < 0.7, 30), "a", "b")  # a donor is right or wrong as a whole
    wide, narrow = (
        hw.metrics.group_bootstrap(truth, {"x": predicted}, g, metrics=["accuracy"]).iloc[0]
        for g in (groups, np.arange(600))
    )
    assert wide["high"] - wide["low"] > 4 * (narrow["high"] - narrow["low"])
    sd = (wide["high"] - wide["low"]) / 3.92
    assert sd == pytest.approx(np.sqrt(wide["value"] * (1 - wide["value"]) / 20), rel=0.15)


def test_arms_with_labels_of_their_own(arms):
    truth, predicted, groups = arms
    other = np.stack([np.roll(truth, 1), np.roll(truth, 2)], axis=1)
    found = hw.metrics.group_bootstrap(
        {"good": truth, "poor": other}, {"good": predicted["good"], "poor": predicted["good"]}, groups
    ).set_index(["arm", "metric"])
    mean = np.mean([(other[:, i] == predicted["good"][:, i]).mean() for i in range(2)])
    assert found.loc[("poor", "accuracy"), "value"] == pytest.approx(mean)
    assert found.loc[("good", "accuracy"), "value"] > 0.8


def test_chunks_of_resamples_are_the_same_resamples(arms, monkeypatch):
    truth, predicted, groups = arms
    whole = hw.metrics.group_bootstrap(truth, predicted, groups, n_resamples=50)
    monkeypatch.setattr("histoweave.metrics._comparison.CHUNK", 40)
    pd.testing.assert_frame_equal(whole, hw.metrics.group_bootstrap(truth, predicted, groups, n_resamples=50))


def test_one_group_has_no_interval(arms):
    truth, predicted, _ = arms
    with pytest.warns(HistoweaveWarning, match="one group"):
        found = hw.metrics.group_bootstrap(truth, predicted, np.zeros(len(truth)), reference="poor")
    assert found[["low", "high", "difference_low", "difference_high"]].isna().all(axis=None)
    assert found["value"].notna().all()


def test_bad_input(arms):
    truth, predicted, groups = arms
    with pytest.raises(ValueError, match="`reference` must be one of 'good', 'poor'"):
        hw.metrics.group_bootstrap(truth, predicted, groups, reference="best")
    with pytest.raises(ValueError, match="same number of rows"):
        hw.metrics.group_bootstrap(truth[1:], predicted, groups)
    with pytest.raises(ValueError, match="missing for 1"):
        hw.metrics.group_bootstrap(np.append(truth[1:], None), predicted, groups)
    with pytest.raises(ValueError, match="`groups` is missing for 1"):
        hw.metrics.group_bootstrap(truth, predicted, [None, *groups[1:]])
    with pytest.raises(ValueError, match="`metrics` must be one of"):
        hw.metrics.group_bootstrap(truth, predicted, groups, metrics=["log_loss"])
    with pytest.raises(ValueError, match="one number a fold"):
        hw.metrics.corrected_t_test([[0.1]], test_ratio=0.2)


def test_an_arm_that_predicted_nothing_has_no_score():
    truth = ["a", "b"] * 10
    arms = {"good": truth, "silent": [None] * 20}
    options = {"reference": "good", "metrics": ["macro_f1", "accuracy"], "n_resamples": 20}
    found = hw.metrics.group_bootstrap(truth, arms, [i // 4 for i in range(20)], **options).set_index("arm")
    assert found.loc["silent", ["value", "low", "high", "difference", "difference_low"]].isna().all(axis=None)
    assert (found.loc["good", ["value", "low", "high"]] == 1).all(axis=None)
