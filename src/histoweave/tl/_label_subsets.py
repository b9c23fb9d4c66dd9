"""Parts of the labels, smaller ones within larger ones: random spots, or patches as a pathologist draws them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
import pandas as pd
import scipy.sparse as sp

MODES = ("spots", "patches")


def nested_subset(
    labels: pd.Series,
    fraction: float,
    rng: np.random.Generator,
    *,
    neighbours: sp.csr_matrix | None = None,
    section: np.ndarray | None = None,
) -> pd.Series:
    """Return the labels of a share of each class, at least one, the others missing.

    Parameters
    ----------
    labels
        Class names, missing for unlabelled rows.
    fraction
        The share. With a generator in the same state, smaller shares lie within larger ones.
    rng
        What rows are chosen by.
    neighbours
        Adjacency ``(n, n)`` within sections. With it the rows of a class are patches of tissue, one in each section
        for as long as the tissue of that class hangs together; without it they lie anywhere.
    section
        Section of every row, needed with ``neighbours``.
    """
    kept = np.zeros(len(labels), dtype=bool)
    for name in sorted(labels.dropna().unique()):
        rows = np.flatnonzero(labels == name)
        ordered = rng.permutation(rows) if neighbours is None else _in_patches(rows, neighbours, section, rng)
        kept[ordered[: max(1, round(fraction * len(rows)))]] = True
    return labels.where(kept)


def _in_patches(
    rows: np.ndarray, neighbours: sp.csr_matrix, section: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows in the order in which patches of all sections grow, each at the same share of its section."""
    turn = np.empty(len(rows))
    for name in rng.permutation(np.unique(section[rows])):
        own = np.flatnonzero(section[rows] == name)
        grown = grow(neighbours[rows[own]][:, rows[own]], rng.permutation(len(own)))
        turn[own[grown]] = (np.arange(len(own)) + rng.random()) / len(own)
    return rows[np.argsort(turn, kind="stable")]


def grow(neighbours: sp.csr_matrix, starts: Iterable[int]) -> np.ndarray:
    """Return all rows in the order in which patches grow, compact and each connected at any time.

    The next row is the neighbour of the patch with the most neighbours inside it, among equals the one that has
    waited longest. A patch that cannot grow is left for a new one at the next of the ``starts``.

    Parameters
    ----------
    neighbours
        Symmetric adjacency ``(n, n)``.
    starts
        Rows at which to start, in order of preference.
    """
    inside = np.zeros(neighbours.shape[0], dtype=int)
    taken = np.zeros(len(inside), dtype=bool)
    order: list[int] = []
    for start in starts:
        queue = [(0, len(order), start)]
        while queue:
            row = heapq.heappop(queue)[2]
            if taken[row]:
                continue
            taken[row] = True
            order.append(row)
            for other in neighbours.indices[neighbours.indptr[row] : neighbours.indptr[row + 1]]:
                if not taken[other]:
                    inside[other] += 1
                    heapq.heappush(queue, (-inside[other], len(order), other))
    return np.asarray(order)
