import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import histoweave as hw


def numbers(ax):
    side = len(ax.get_xticklabels())
    return np.array([float(text.get_text() or "nan") for text in ax.texts[: side * side]]).reshape(side, side)


def names(labels):
    return [label.get_text() for label in labels]


def test_confusion_counts(table):
    ax = hw.pl.confusion(table, normalize=None)
    assert names(ax.get_xticklabels()) == ["stroma", "tumour", "fat"]
    # 36 spots; the first (tumour) has no label, the last (stroma) is called fat
    np.testing.assert_array_equal(numbers(ax), [[17, 0, 1], [0, 17, 0], [0, 0, 0]])
    assert names(ax.get_yticklabels())[0] == "stroma  (n = 18)"
    assert ax.get_title().startswith("35 spots, accuracy 0.97")


def test_confusion_shares_and_classes_without_truth(table):
    ax = hw.pl.confusion(table)
    np.testing.assert_allclose(numbers(ax)[0], [0.94, 0, 0.06])
    assert np.isnan(numbers(ax)[2]).all()  # no spot is labelled fat: no shares, rather than zeros


def test_confusion_mask_and_missing_predictions(table):
    table.obs["held_out"] = np.arange(36) >= 30
    ax = hw.pl.confusion(table, normalize=None, mask_key="held_out")
    assert np.nansum(numbers(ax)) == 6
    table.obs.loc[table.obs_names[30], "region_predicted"] = np.nan
    assert np.nansum(numbers(hw.pl.confusion(table, normalize=None, mask_key="held_out"))) == 5


def test_confusion_bad_input(table):
    with pytest.raises(KeyError, match="fusion_classifier"):
        hw.pl.confusion(table, predicted_key="nothing")
    with pytest.raises(ValueError, match="normalize"):
        hw.pl.confusion(table, normalize="pred")
    with pytest.raises(ValueError, match="boolean"):
        hw.pl.confusion(table, mask_key="region_confidence")
    table.obs["none"] = False
    with pytest.raises(ValueError, match="nothing to draw"):
        hw.pl.confusion(table, mask_key="none")
    table.obs["region"] = None
    with pytest.raises(ValueError, match="no label"):
        hw.pl.confusion(table)


@pytest.fixture
def results():
    means = {
        "image": ("model", 0.6),
        "fused": ("model", 0.8),
        "majority": ("null", 0.1),
        "depth": ("null", 0.9),
    }
    return pd.DataFrame(
        [
            {"fold": fold, "arm": arm, "kind": kind, "macro_f1": mean + shift}
            for arm, (kind, mean) in means.items()
            for fold, shift in enumerate([-0.05, 0.0, 0.05])
        ]
    )


def test_scores_models_above_nulls_best_first(results):
    ax = hw.pl.scores(results)
    assert names(ax.get_yticklabels()) == ["fused", "image", "depth", "majority"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlabel() == "macro F1"
    assert [text.get_text() for text in ax.texts] == ["0.80", "0.60", "0.90", "0.10"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[0].get_xdata(), [0.75, 0.8, 0.85])
    assert dots[0].get_color() != dots[2].get_color() == dots[3].get_color()


def test_scores_of_errors_have_the_smallest_first(results):
    ax = hw.pl.scores(results.rename(columns={"macro_f1": "log_loss"}), metric="log_loss")
    assert names(ax.get_yticklabels()) == ["image", "fused", "majority", "depth"]
    (dotted,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted.get_xdata(), 0.1)


def test_scores_leaves_out_missing_folds(results):
    results.loc[3, "macro_f1"] = np.nan  # of 0.75, 0.80 and 0.85 the first
    assert hw.pl.scores(results).texts[0].get_text() == "0.83"


def test_scores_draws_into_given_axes(results):
    _, ax = plt.subplots()
    assert hw.pl.scores(results, ax=ax) is ax


def test_scores_bad_input(results):
    with pytest.raises(ValueError, match="2 findings"):
        hw.pl.scores(results.assign(finding=["tumour", *["necrosis"] * (len(results) - 1)]))
    with pytest.raises(TypeError, match="cross_validate"):
        hw.pl.scores({"arm": ["a"]})
    with pytest.raises(KeyError, match="macro_f1"):
        hw.pl.scores(results, metric="f1")
    with pytest.raises(KeyError, match="kind"):
        hw.pl.scores(results.drop(columns="kind"))
    with pytest.raises(ValueError, match="baseline"):
        hw.pl.scores(results.replace({"kind": {"null": "baseline"}}))
    with pytest.raises(ValueError, match="finite"):
        hw.pl.scores(results.assign(macro_f1=np.nan))
