"""Weights of rows, against counting by hand."""

from __future__ import annotations

import numpy as np

from histoweave.models.fusion._balance import CORRELATION, balanced_weights, shared_weights


def test_independent_rows_count_as_one_each():
    codes, groups = np.array([0, 1, 1, 2]), np.arange(4)
    np.testing.assert_array_equal(shared_weights(groups), 1)
    balanced = balanced_weights(codes, groups)
    np.testing.assert_allclose(balanced, [4 / 3, 2 / 3, 2 / 3, 4 / 3])


def test_a_group_counts_as_its_effective_size():
    groups = np.repeat([0, 1, 2], [1, 50, 100_000])
    total = np.bincount(groups, shared_weights(groups))
    np.testing.assert_allclose(total, [1, 50 / (1 + 49 * CORRELATION), 1 / CORRELATION], rtol=1e-3)


def test_every_class_of_a_group_counts_once_and_classes_weigh_the_same():
    rng = np.random.default_rng(0)
    codes, groups = rng.choice(3, 500, p=[0.8, 0.15, 0.05]), rng.choice(4, 500, p=[0.7, 0.1, 0.1, 0.1])
    codes[(groups > 0) & (codes == 2)] = 0  # one group alone has the third class
    weight = balanced_weights(codes, groups)
    cells = {(g, c): weight[(groups == g) & (codes == c)] for g in range(4) for c in range(3)}
    totals = {cell: w.sum() for cell, w in cells.items() if len(w)}
    n = len(totals)
    for (_, c), total in totals.items():
        same_class = sum(other == c for _, other in totals)
        np.testing.assert_allclose(total, n / 3 / same_class)
    assert all(np.ptp(w) == 0 for w in cells.values() if len(w))
