"""Scores per gene against SciPy, gene by gene."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

import histoweave as hw


def test_scores_are_scipys():
    rng = np.random.default_rng(0)
    truth = rng.poisson(2, (50, 4)).astype(float)
    predicted = truth + rng.normal(size=truth.shape)
    found = hw.metrics.imputation(truth, predicted, names=list("abcd"))
    for i, name in enumerate("abcd"):
        assert found.loc[name, "pearson"] == pytest.approx(stats.pearsonr(truth[:, i], predicted[:, i])[0])
        assert found.loc[name, "spearman"] == pytest.approx(stats.spearmanr(truth[:, i], predicted[:, i])[0])
        assert found.loc[name, "rmse"] == pytest.approx(np.sqrt(np.mean((truth[:, i] - predicted[:, i]) ** 2)))


def test_correlation_with_a_constant_is_missing():
    found = hw.metrics.imputation([[1, 0], [2, 0], [3, 0]], [[5, 1], [5, 2], [5, 3]])
    assert found[["pearson", "spearman"]].isna().all(axis=None)
    assert found["rmse"].notna().all()


@pytest.mark.parametrize(
    ("truth", "predicted", "names", "message"),
    [
        ([[1.0], [2.0]], [[1.0]], None, "must be"),
        ([[1.0], [np.nan]], [[1.0], [2.0]], None, "`truth` has NaN"),
        ([[1.0], [2.0]], [[1.0], [np.inf]], None, "`predicted` has NaN"),
        ([[1.0], [2.0]], [[1.0], [2.0]], ["a", "b"], "`names` has 2 entries for 1"),
    ],
)
def test_bad_input_is_named(truth, predicted, names, message):
    with pytest.raises(ValueError, match=message):
        hw.metrics.imputation(truth, predicted, names=names)


def test_sparse_matrices_are_those_they_stand_for():
    truth = np.random.default_rng(0).poisson(1.0, (20, 3)).astype(float)
    expected = hw.metrics.imputation(truth, truth + 1)
    pd.testing.assert_frame_equal(hw.metrics.imputation(sp.csr_matrix(truth), truth + 1), expected)
