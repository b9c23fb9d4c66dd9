"""Whose answers a spot may follow: its neighbours on the array, or the spots of its section that are most like it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._resolve import sections
from histoweave.models.fusion._check import Graph
from histoweave.pp._graph import ring_graphs

N_SIMILAR = 10


def answer_neighbours(
    smoothing: str | None,
    table: AnnData,
    embeddings: Mapping[str, np.ndarray],
    *,
    among: np.ndarray | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
) -> Graph:
    """Return the ``graph`` that a :class:`histoweave.models.FusionClassifier` needs for its ``smoothing``.

    Parameters
    ----------
    smoothing
        Its kind; ``None`` needs no graph.
    table
        The rows, in sections.
    embeddings
        Modality to what a row itself is like ``(n_obs, d)``, without its surroundings.
    among
        Rows that may be similar to each other ``(n_obs,)``, all by default; neighbours on the array are of all rows.
    library_key, spatial_key
        As for :func:`histoweave.pp.spatial_context`.
    """
    if smoothing is None:
        return None
    if smoothing == "similar":
        rows_of = sections(table, library_key)
        return {name: similar_rows(values, rows_of, among) for name, values in embeddings.items()}
    return ring_graphs(table, n_rings=1, library_key=library_key, spatial_key=spatial_key)[0]


def similar_rows(X: np.ndarray, rows_of: Mapping[str, np.ndarray], among: np.ndarray | None = None) -> sp.csr_matrix:
    """Return which rows are among the 10 of their section that are nearest to each other, ``(n, n)`` boolean.

    Parameters
    ----------
    X
        ``(n, d)``; rows of NaN are nobody's neighbours.
    rows_of
        Rows of each section.
    among
        Rows to look at ``(n,)``.
    """
    from sklearn.neighbors import NearestNeighbors

    known = ~np.isnan(X).any(axis=1) & (True if among is None else among)
    pairs = [np.empty((2, 0), dtype=np.int64)]
    for rows in rows_of.values():
        here = rows[known[rows]]
        k = min(N_SIMILAR, len(here) - 1)
        if k > 0:
            near = NearestNeighbors(n_neighbors=k).fit(X[here]).kneighbors(return_distance=False)
            pairs.append(np.stack([np.repeat(here, k), here[near.ravel()]]))
    i, j = np.concatenate(pairs, axis=1)
    graph = sp.csr_matrix((np.ones(len(i), dtype=bool), (i, j)), shape=(len(X),) * 2)
    return (graph + graph.T).astype(bool)
