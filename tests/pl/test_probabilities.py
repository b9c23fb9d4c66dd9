"""Reliability and ROC curves: what is drawn is what the probabilities say."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from sklearn.metrics import roc_auc_score

import histoweave as hw


@pytest.fixture
def calibrated(table):
    p = np.tile([0.55, 0.75, 0.95], 12)
    tumour = (table.obs["region"] == "tumour").to_numpy()
    table.obsm["region_probability"] = pd.DataFrame(
        {"tumour": np.where(tumour, p, 1 - p), "stroma": np.where(tumour, 1 - p, p)}, index=table.obs_names
    )
    return table


def test_reliability_points_and_error(calibrated):
    ax = hw.pl.reliability(calibrated, n_bins=10)
    (observed,) = [c.lines[0] for c in ax.containers if isinstance(c, ErrorbarContainer)]
    np.testing.assert_allclose(observed.get_xdata().astype(float), [0.55, 0.75, 0.95])
    np.testing.assert_allclose(observed.get_ydata().astype(float), 1)  # every spot is right
    error = hw.metrics.expected_calibration_error(
        calibrated.obs["region"][1:], calibrated.obsm["region_probability"][1:], n_bins=10
    )
    assert ax.get_title() == f"35 spots, expected calibration error {error:.3f}"


def test_reliability_leaves_out_rows_without_prediction_and_keeps_unseen_classes(calibrated):
    calibrated.obsm["region_probability"].iloc[5] = np.nan
    assert hw.pl.reliability(calibrated).get_title().startswith("34 spots")
    calibrated.obs.loc[calibrated.obs_names[8], "region"] = "necrosis"
    assert hw.pl.reliability(calibrated).get_title().startswith("34 spots")


def test_reliability_bad_input(calibrated):
    with pytest.raises(KeyError, match="probability_key"):
        hw.pl.reliability(calibrated, probability_key="p")
    calibrated.obsm["p"] = calibrated.obsm["region_probability"].to_numpy()
    with pytest.raises(TypeError, match="DataFrame"):
        hw.pl.reliability(calibrated, probability_key="p")


@pytest.fixture
def ranked(table):
    """Tumour is ranked well and not perfectly."""
    tumour = (table.obs["region"] == "tumour").to_numpy()
    p = np.clip(0.3 * tumour + 0.7 * np.random.default_rng(0).random(36), 0, 1)
    table.obsm["region_probability"] = pd.DataFrame({"tumour": p, "stroma": 1 - p}, index=table.obs_names)
    return table


def curves(ax):
    return {line.get_label().split("  ")[0]: line for line in ax.lines if "  " in line.get_label()}


def test_roc_has_the_area_of_the_mann_whitney_statistic(ranked):
    ax = hw.pl.roc(ranked)
    known = ranked.obs["region"].notna().to_numpy()
    tumour, p = (ranked.obs["region"] == "tumour")[known], ranked.obsm["region_probability"]["tumour"][known]
    positive, negative = p[tumour].to_numpy(), p[~tumour].to_numpy()
    expected = (positive[:, None] > negative).mean()
    drawn = curves(ax)
    assert list(drawn) == ["tumour", "stroma"]
    for line in drawn.values():
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(expected)
    assert drawn["tumour"].get_label() == f"tumour  {expected:.2f}  (n = {tumour.sum()})"
    assert ax.get_title() == f"35 spots, mean area under the curve {expected:.2f}"


def test_roc_has_the_colours_of_the_map(ranked):
    ranked.uns["region_colors"] = ["#111111", "#222222"]
    assert {name: line.get_color() for name, line in curves(hw.pl.roc(ranked)).items()} == {
        "stroma": "#111111",
        "tumour": "#222222",
    }


def test_roc_counts_masked_and_predicted_rows_alone(ranked):
    ranked.obs["held_out"] = np.arange(36) % 2 == 1
    ranked.obsm["region_probability"].iloc[5] = np.nan
    assert hw.pl.roc(ranked, mask_key="held_out").get_title().startswith("17 spots")


def test_roc_of_a_class_the_model_never_saw_is_a_guess(ranked):
    ranked.obs["region"] = ranked.obs["region"].astype(object)
    ranked.obs.loc[ranked.obs_names[8], "region"] = "necrosis"
    assert "necrosis  0.50  (n = 1)" in [line.get_label() for line in hw.pl.roc(ranked).lines]


@pytest.fixture
def found(table):
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.integers(0, 2, (36, 3)).astype(float), table.obs_names, ["necrosis", "oedema", "fat"])
    truth.iloc[:4, 0] = np.nan
    table.obsm["findings"] = truth
    p = (0.3 * truth.fillna(0) + 0.7 * rng.random((36, 3)))[["fat", "necrosis"]]
    p.iloc[10] = np.nan
    table.obsm["findings_probability"] = p
    return table


def test_roc_of_findings_where_they_are_known(found):
    ax = hw.pl.roc(found, labels_key="findings")
    truth, p = found.obsm["findings"], found.obsm["findings_probability"]
    labels = []
    for name in ("fat", "necrosis"):  # the model has no oedema
        rows = truth[name].notna() & p[name].notna()
        area = roc_auc_score(truth[name][rows], p[name][rows])
        labels.append(f"{name}  {area:.2f}  (n = {truth[name][rows].sum():.0f})")
    assert [line.get_label() for line in curves(ax).values()] == labels


def test_roc_bad_input(ranked, found):
    with pytest.raises(KeyError, match="probability_key"):
        hw.pl.roc(ranked, probability_key="p")
    with pytest.raises(KeyError, match="labels_key='nothing'"):  # not of probabilities, which have their name from it
        hw.pl.roc(ranked, labels_key="nothing")
    ranked.obs["stroma_alone"] = (ranked.obs["region"] == "stroma").to_numpy()
    with pytest.raises(ValueError, match="no ROC curve"):
        hw.pl.roc(ranked, mask_key="stroma_alone")
    with pytest.raises(ValueError, match="none of which is a finding"):
        hw.pl.roc(found, labels_key="findings", probability_key="region_probability")
