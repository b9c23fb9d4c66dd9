"""Label curves: means and intervals that a loop finds, nulls in grey, counts on the axis."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import histoweave as hw
from histoweave.pl._evaluation import _NULL
from histoweave.pl._label_efficiency import interval


@pytest.fixture
def results():
    rows = []
    for mode, drop in (("spots", 0.0), ("patches", 0.1)):
        for fold in (0, 1):
            for seed in (0, 1, 2):
                for fraction, n in ((0.1, 10), (1.0, 100)):
                    about = {"mode": mode, "fold": fold, "seed": seed, "fraction": fraction, "n_train": n + 2 * fold}
                    about["n_smallest_class"] = n // 10
                    score = 0.4 + 0.4 * fraction + 0.1 * fold + 0.01 * seed - drop
                    rows.append(about | {"arm": "gene", "kind": "model", "macro_f1": score})
                    rows.append(about | {"arm": "majority", "kind": "null", "macro_f1": 0.1})
                    rows.append(about | {"arm": "depth", "kind": "null", "macro_f1": 0.2})
    return pd.DataFrame(rows)


def test_means_against_labelled_spots_with_nulls_in_grey(results):
    ax = hw.pl.label_efficiency(results, mode="spots")
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["gene", "majority", "depth"]
    np.testing.assert_allclose(lines["gene"].get_xdata(), [11, 101])
    np.testing.assert_allclose(lines["gene"].get_ydata(), [0.5, 0.86])
    assert ax.get_xscale() == "log"
    assert lines["majority"].get_color() == lines["depth"].get_color() == _NULL != lines["gene"].get_color()
    assert lines["majority"].get_linestyle() != lines["depth"].get_linestyle()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["11\n(1)", "101\n(10)"]
    assert ax.get_ylabel() == "macro F1"
    assert {text.get_text() for text in ax.get_legend().get_texts()} == set(lines)


def test_a_panel_a_mode(results):
    axes = hw.pl.label_efficiency(results)
    assert [ax.get_title() for ax in axes] == ["random spots", "contiguous patches"]
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), [0.4, 0.76])
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_interval_is_that_of_folds_and_seeds():
    values = np.array([[0.2, 0.3], [0.6, 0.8], [0.5, 0.5]])
    rng, means = np.random.default_rng(5), []
    for _ in range(4000):
        folds = [values[k] for k in rng.integers(3, size=3)]
        means.append(np.mean([rng.choice(seeds, size=2) for seeds in folds]))
    np.testing.assert_allclose(interval(values), np.quantile(means, [0.025, 0.975]), atol=0.02)
    assert interval(np.array([[0.4]])) == (0.4, 0.4)
    low, high = interval(np.array([[0.1, np.nan], [0.3, 0.3]]))
    assert (low, high) == pytest.approx((0.1, 0.3))


def test_band_of_a_model(results):
    ax = hw.pl.label_efficiency(results, mode="spots", arms=["gene"])
    assert [line.get_label() for line in ax.lines] == ["gene"]
    low, high = ax.collections[0].get_paths()[0].vertices[:, 1].min(), ax.collections[0].get_paths()[0].vertices
    part = results.query("mode == 'spots' and arm == 'gene' and fraction == 0.1").pivot(
        index="fold", columns="seed", values="macro_f1"
    )
    assert low == pytest.approx(interval(part.to_numpy())[0])
    assert high[:, 1].max() > 0.86


def test_draws_into_given_axes(results):
    _, ax = plt.subplots()
    assert hw.pl.label_efficiency(results, mode="patches", ax=ax) is ax
    with pytest.raises(ValueError, match="2 axes"):
        hw.pl.label_efficiency(results, ax=ax)


def test_bad_input(results):
    with pytest.raises(TypeError, match="label_efficiency"):
        hw.pl.label_efficiency({"arm": ["a"]})
    with pytest.raises(KeyError, match="n_smallest_class"):
        hw.pl.label_efficiency(results.drop(columns="n_smallest_class"))
    with pytest.raises(KeyError, match="metric='f1'"):
        hw.pl.label_efficiency(results, metric="f1")
    with pytest.raises(ValueError, match="`mode` must be one of"):
        hw.pl.label_efficiency(results, mode="blobs")
    with pytest.raises(ValueError, match="`arms` must be one of"):
        hw.pl.label_efficiency(results, arms=["image"])
    with pytest.raises(ValueError, match="finite"):
        hw.pl.label_efficiency(results.assign(macro_f1=np.nan))
    several = results.assign(finding=["tumour", *["necrosis"] * (len(results) - 1)])
    with pytest.raises(ValueError, match="2 findings .*results\\['finding'\\] == 'tumour'"):
        hw.pl.label_efficiency(several)
    hw.pl.label_efficiency(several[several["finding"] == "necrosis"])


def test_an_arm_of_one_panel_only_is_in_the_legend(results):
    results = results[~((results["arm"] == "depth") & (results["mode"] == "patches"))]
    axes = hw.pl.label_efficiency(results)
    assert [text.get_text() for text in axes[-1].get_legend().get_texts()] == ["gene", "majority", "depth"]
