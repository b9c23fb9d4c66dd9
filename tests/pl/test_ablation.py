"""The forest plot: order, intervals, the band of the nulls."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import histoweave as hw


@pytest.fixture
def results():
    arms = {
        "image": ("model", 0.6, 0.02),
        "fused": ("model", 0.7, np.nan),
        "gene": ("model", 0.8, 0.4),
        "majority": ("null", 0.1, 0.001),
        "depth": ("null", 0.3, 0.01),
    }
    return pd.DataFrame(
        [
            {
                "fold": fold, "seed": seed, "arm": arm, "kind": kind, "metric": "macro_f1", "reference": "fused",
                "macro_f1": value + shift + 0.01 * seed, "pooled": value, "low": value - 0.05, "high": value + 0.1,
                "difference": value - 0.7, "difference_low": value - 0.75, "difference_high": value - 0.6, "p_holm": p,
            }
            for arm, (kind, value, p) in arms.items()
            for fold, shift in (("0", -0.1), ("1", 0.1))
            for seed in (0, 1)
        ]
    )  # fmt: skip


def labels(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_reference_first_then_the_best_then_nulls(results):
    ax = hw.pl.ablation(results)
    assert labels(ax) == ["fused", "gene", "image", "depth", "majority"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlabel() == "macro F1"
    assert ax.texts[1].get_text() == "0.80 (0.75 to 0.90)"
    colors = [label.get_color() for label in ax.get_yticklabels()]
    assert colors[3] == colors[4] != colors[1] != colors[0]


def test_dots_are_folds_averaged_over_seeds_and_bars_the_intervals(results):
    ax = hw.pl.ablation(results)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[0].get_xdata(), [0.605, 0.805])
    bars = [line for line in ax.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]
    spans = [tuple(np.round(line.get_xdata(), 3)) for line in bars]
    assert (0.65, 0.8) in spans
    points = [line for line in ax.lines if line.get_marker() == "s"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in points], [0.7, 0.8, 0.6, 0.3, 0.1])


def test_band_reaches_to_the_upper_bound_of_the_best_null(results):
    band = hw.pl.ablation(results).patches[0]
    assert band.get_x() == 0
    assert band.get_width() == pytest.approx(0.4)
    models = results[results["kind"] == "model"]
    assert not hw.pl.ablation(models).patches


def test_differences_with_p_values(results):
    ax = hw.pl.ablation(results, show="difference")
    assert ax.get_xlabel() == "macro F1, difference to fused"
    assert ax.texts[1].get_text() == "+0.10 (+0.05 to +0.20), p = 0.4"
    assert "p =" not in ax.texts[0].get_text()
    assert not ax.patches


def test_without_intervals_there_are_points(results):
    ax = hw.pl.ablation(results.assign(low=np.nan, high=np.nan))
    assert ax.texts[0].get_text() == "0.70"
    assert ax.patches[0].get_width() == pytest.approx(0.3)


def test_given_axes_and_bad_input(results):
    _, ax = plt.subplots()
    assert hw.pl.ablation(results, ax=ax) is ax
    with pytest.raises(TypeError, match=r"hw\.tl\.ablation"):
        hw.pl.ablation({"arm": ["a"]})
    with pytest.raises(KeyError, match="p_holm"):
        hw.pl.ablation(results.drop(columns="p_holm"))
    with pytest.raises(ValueError, match="`show` must be one of"):
        hw.pl.ablation(results, show="ratio")
    with pytest.raises(ValueError, match="baseline"):
        hw.pl.ablation(results.replace({"kind": {"null": "baseline"}}))
    with pytest.raises(ValueError, match="finite"):
        hw.pl.ablation(results.assign(pooled=np.nan))
