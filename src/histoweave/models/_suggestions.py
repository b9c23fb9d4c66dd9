"""Which rows to label next: those that bring many uncertain rows near to a label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MOST_ROWS = 4000  # that the gain of a label is summed over; more are sampled
CHUNK = 1000  # rows whose gain is computed at a time, to hold few copies of their distances


def uncertainty(p: np.ndarray) -> np.ndarray:
    """Return 1 minus the margin between the two likeliest classes; 1 for rows that are not predicted."""
    second, first = np.sort(p, axis=1)[:, -2:].T
    return np.where(np.isnan(first), 1.0, 1.0 - (first - second))


def distances(X: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return Euclidean distances ``(n, len(rows))``."""
    square = (X**2).sum(axis=1)
    found = square[:, None] + square[rows] - 2 * (X @ X[rows].T)
    return np.sqrt(np.maximum(found, 0))


def choose(
    X: np.ndarray,
    weight: np.ndarray,
    labelled: np.ndarray,
    free: np.ndarray,
    n: int,
    take: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Return up to ``n`` groups of rows to label, the most useful first.

    Greedy facility location: each step takes the row that most lowers the weighted sum, over all rows, of the
    distance to the nearest labelled row. Rows that stand for many others are taken, outliers are not; what has been
    taken counts as labelled, so the next one is elsewhere.

    Parameters
    ----------
    X
        Features ``(n, d)``.
    weight
        How much each row wants a label near it ``(n,)``.
    labelled
        Mask of the rows that have one.
    free
        Mask of the rows that may be taken.
    n
        Number of groups.
    take
        From the row that is taken and the mask of those still free to ``(rows of its group, mask of rows to leave
        out from now on)``.
    rng
        What samples rows where there are many.
    """
    sample = np.arange(len(X)) if len(X) <= MOST_ROWS else np.sort(rng.choice(len(X), MOST_ROWS, replace=False))
    D = distances(X, sample)
    # without labels every row is as far from one as rows are from each other
    nearest = D[labelled].min(axis=0) if labelled.any() else np.full(len(sample), D.mean(), dtype=D.dtype)
    wanted, free, groups = weight[sample].astype(D.dtype), free.copy(), []
    while len(groups) < n and free.any():
        candidates = np.flatnonzero(free)
        parts = np.array_split(candidates, len(candidates) // CHUNK + 1)
        gain = np.concatenate([np.maximum(nearest - D[part], 0) @ wanted for part in parts])
        group, near = take(int(candidates[gain.argmax()]), free)
        groups.append(group)
        free &= ~near
        free[group] = False
        nearest = np.minimum(nearest, D[group].min(axis=0))
    return groups
