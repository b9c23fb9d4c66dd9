"""How much each row counts: neighbours on one section repeat each other, so groups count, not rows."""

from __future__ import annotations

import numpy as np

#: Correlation taken to hold between rows of one group where class shares are learned: a group is at most 10 rows.
CORRELATION = 0.1


def shared_weights(groups: np.ndarray) -> np.ndarray:
    """Return the weight of every row ``(n,)``; they sum to the effective number of observations.

    A group of ``n`` rows counts as ``n / (1 + (n - 1) * CORRELATION)`` observations, Kish's design effect; a group of
    one row as one.

    References
    ----------
    Kish (1965), Survey Sampling.
    """
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (1.0 + (size[group] - 1.0) * CORRELATION)


def balanced_weights(codes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the weight of every row ``(n,)``: a class of a group counts once however many rows it has.

    Classes weigh the same, whether few groups have them or many.
    """
    _, cell, size = np.unique(np.stack([groups, codes], axis=1), axis=0, return_inverse=True, return_counts=True)
    weight = 1.0 / size[cell.ravel()]
    total = np.bincount(codes, weight)
    return weight * total[total > 0].mean() / total[codes]
