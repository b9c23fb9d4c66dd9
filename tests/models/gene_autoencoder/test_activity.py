"""Programme activity against naive implementations of the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from histoweave.models.gene_autoencoder._activity import programme_activity, recovery_area
from histoweave.pp._expression import normalise_log

ALL = {"s": np.arange(30)}


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    members = np.zeros((3, 80), dtype=bool)
    for row, size in zip(members, (4, 12, 30), strict=True):
        row[rng.permutation(80)[:size]] = True
    return rng.poisson(rng.gamma(0.5, 2, (30, 80))), members


def aucell(values: np.ndarray, members: np.ndarray, last: int) -> float:
    """Area under the step curve of recovered genes over ranks, as in AUCell's R code, ties in the order given."""
    rank = np.empty(len(values), dtype=int)
    rank[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)

    def area(x: np.ndarray) -> float:
        x = np.sort(x[x < last])
        return float(np.sum(np.diff(np.append(x, last)) * np.arange(1, len(x) + 1)))

    return area(rank[members]) / area(np.arange(1, members.sum() + 1))


def test_aucell_without_ties(case):
    _, members = case
    values = np.random.default_rng(1).permuted(np.tile(np.arange(1, 81), (30, 1)), axis=1)
    ours = recovery_area(sp.csr_matrix(values), members, 0.25)
    naive = [[aucell(row, m, 20) for m in members] for row in values]
    np.testing.assert_allclose(ours, naive, atol=1e-12)


def test_ties_get_the_mean_over_random_orders(case):
    values, members = case
    ours = recovery_area(sp.csr_matrix(values[:3]), members, 0.25)
    rng, total = np.random.default_rng(2), np.zeros((3, 3))
    for _ in range(1500):
        order = rng.permutation(80)
        total += [[aucell(row[order], m[order], 20) for m in members] for row in values[:3]]
    np.testing.assert_allclose(ours, total / 1500, atol=0.015)


def test_zscore_is_that_of_dense_arrays_within_each_section(case):
    values, members = case
    rows_of = {"a": np.arange(0, 30, 2), "b": np.arange(1, 30, 2)}
    ours = programme_activity(sp.csr_matrix(values), members, rows_of, method="zscore")
    log = normalise_log(sp.csr_matrix(values)).toarray().astype(float)
    for rows in rows_of.values():
        part = log[rows]
        z = (part - part.mean(axis=0)) / np.where(part.std(axis=0) > 0, part.std(axis=0), 1)
        truth = np.stack([z[:, m].sum(axis=1) / np.sqrt(m.sum()) for m in members], axis=1)
        np.testing.assert_allclose(ours[rows], truth, atol=1e-4)


@pytest.mark.parametrize("method", ["aucell", "zscore"])
def test_rows_without_counts_are_nan_and_change_no_other(case, method):
    values, members = case
    with_empty = values.copy()
    with_empty[7] = 0
    ours = programme_activity(sp.csr_matrix(with_empty), members, ALL, method=method)
    assert np.isnan(ours[7]).all()
    kept = {"s": np.delete(np.arange(30), 7)}
    alone = programme_activity(sp.csr_matrix(values), members, kept, method=method)
    np.testing.assert_allclose(np.delete(ours, 7, 0), np.delete(alone, 7, 0), atol=1e-6)


def test_aucell_does_not_change_with_depth(case):
    values, members = case
    a, b = (programme_activity(sp.csr_matrix(values * k), members, ALL) for k in (1, 3))
    np.testing.assert_array_equal(a, b)


def test_bad_arguments(case):
    values, members = case
    with pytest.raises(ValueError, match="`method` must be one of 'aucell', 'zscore'"):
        programme_activity(sp.csr_matrix(values), members, ALL, method="ssgsea")
    with pytest.raises(ValueError, match="top_share"):
        programme_activity(sp.csr_matrix(values), members, ALL, top_share=0)
