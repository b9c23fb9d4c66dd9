"""Nearest rows of an embedding, with own groups left out, and what they vote for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from histoweave._validate import require_choice

METRICS = ("cosine", "euclidean")
BLOCK = 4_000_000  # distances in memory at a time


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Return rows of length 1; a row of zeros stays."""
    X = np.asarray(X, dtype=float)
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(length > 0, length, 1.0)


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, metric: str = "cosine", groups: Any = None, others: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` nearest gallery rows of every query and their distances, both ``(n, k)``, nearest first.

    Parameters
    ----------
    queries, gallery
        Finite values ``(n, d)`` and ``(m, d)``.
    k
        Rows to find.
    metric
        ``"cosine"`` or ``"euclidean"``.
    groups, others
        Group of every query and of every gallery row: rows of the query's own group are never found.

    Returns
    -------
    Row numbers, -1 where fewer than ``k`` rows are in other groups, and distances, there infinite.
    """
    found = list(nearest_blocks(queries, gallery, k, metric=metric, groups=groups, others=others))
    return np.concatenate([index for _, index, _ in found]), np.concatenate([far for _, _, far in found])


def nearest_blocks(
    queries: np.ndarray, gallery: np.ndarray, k: int, *, metric: str, groups: Any, others: Any
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield ``(query numbers, rows found, distances)`` block by block, see `nearest`."""
    require_choice(metric, METRICS, argument="metric")
    # rows at equal distance come in no particular order: sorted by class, they would give a collapsed embedding a score
    order = np.random.default_rng(0).permutation(len(gallery))
    if metric == "cosine":
        queries, gallery = unit_rows(queries), unit_rows(gallery)[order]
    else:
        centre = np.mean(gallery, axis=0, dtype=float)  # squares of values far from 0 would cancel
        queries, gallery = queries - centre, gallery[order] - centre
    if groups is not None:
        codes, _ = pd.factorize(np.concatenate([np.asarray(groups, dtype=object), np.asarray(others, dtype=object)]))
        groups, others = codes[: len(queries)], codes[len(queries) :][order]
    step = max(1, BLOCK // max(len(gallery), 1))
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        far = _distances(queries[rows], gallery, metric)
        if groups is not None:
            far[groups[rows, None] == others] = np.inf
        index = _smallest(far, k)
        far = np.take_along_axis(far, index, axis=1)
        index = np.where(np.isfinite(far), order[index], -1)
        short = ((0, 0), (0, k - index.shape[1]))
        yield rows, np.pad(index, short, constant_values=-1), np.pad(far, short, constant_values=np.inf)


def _distances(a: np.ndarray, b: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        return np.maximum(1.0 - a @ b.T, 0.0)
    square = (a * a).sum(axis=1)[:, None] - 2 * (a @ b.T) + (b * b).sum(axis=1)
    return np.sqrt(np.maximum(square, 0.0))


def _smallest(far: np.ndarray, k: int) -> np.ndarray:
    if k >= far.shape[1]:
        return np.argsort(far, axis=1, kind="stable")
    index = np.argpartition(far, k - 1, axis=1)[:, :k]
    return np.take_along_axis(index, np.argsort(np.take_along_axis(far, index, axis=1), axis=1, kind="stable"), axis=1)


def vote(
    index: np.ndarray, distance: np.ndarray, y: np.ndarray, n_classes: int, *, weights: str = "distance"
) -> np.ndarray:
    """Return the share ``(n, n_classes)`` of the votes of the rows found that each class gets; NaN without any.

    Votes count the same (``"uniform"``) or as one over the distance (``"distance"``); rows at distance 0 then
    decide alone.
    """
    require_choice(weights, ("distance", "uniform"), argument="weights")
    there = index >= 0
    if weights == "uniform":
        weight = there.astype(float)
    else:
        same = there & (distance == 0)
        inverse = np.divide(1.0, distance, out=np.zeros(distance.shape), where=there & (distance > 0))
        weight = np.where(same.any(axis=1, keepdims=True), same, inverse)
    votes = np.zeros((len(index), n_classes))
    np.add.at(votes, (np.arange(len(index))[:, None], np.where(there, y[index], 0)), weight)
    total = votes.sum(axis=1, keepdims=True)
    return np.divide(votes, total, out=np.full(votes.shape, np.nan), where=total > 0)
