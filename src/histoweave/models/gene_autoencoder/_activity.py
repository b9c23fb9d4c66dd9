"""How active a gene programme is in each spot, from expression alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp

from histoweave._validate import require_choice, require_number
from histoweave.pp._expression import normalise_log

METHODS = ("aucell", "zscore")


def programme_activity(
    counts: sp.csr_matrix,
    members: np.ndarray,
    rows_of: Mapping[str, np.ndarray],
    *,
    method: str = "aucell",
    top_share: float = 0.05,
) -> np.ndarray:
    """Return the activity ``(n, programmes)`` float32; rows without counts are NaN.

    Parameters
    ----------
    counts
        Raw counts ``(n, genes)`` without stored zeros.
    members
        Boolean ``(programmes, genes)``.
    rows_of
        Row numbers of each section.
    method, top_share
        See :func:`histoweave.tl.gene_programmes`.
    """
    require_choice(method, METHODS, argument="method")
    require_number(top_share, argument="top_share", above=0, at_most=1)
    usable = np.flatnonzero(np.diff(counts.indptr) > 0)
    out = np.full((counts.shape[0], len(members)), np.nan, dtype=np.float32)
    if method == "aucell":
        out[usable] = recovery_area(counts[usable], members, top_share)
        return out
    values = normalise_log(counts, 1e4)
    for rows in rows_of.values():
        part = rows[np.isin(rows, usable)]
        if len(part):
            out[part] = _combined_z(values[part], members)
    return out


def recovery_area(counts: sp.csr_matrix, members: np.ndarray, top_share: float) -> np.ndarray:
    """Return the area under each programme's recovery curve over the top genes of each row, as a share of the largest.

    Tied genes, such as all that were not seen, get what they would on average if ties were broken at random.
    """
    n_genes = counts.shape[1]
    last = int(np.ceil(top_share * n_genes))
    if last < 2:
        msg = (
            f"`top_share={top_share}` of {n_genes} genes is the best one alone, under whose curve there is no area: "
            f"pass more than {1 / n_genes:.3g}, or `method='zscore'`."
        )
        raise ValueError(msg)
    # a gene at rank r of the top adds last - r to the area; running sums give the mean over any stretch of ranks
    gain = np.maximum(last - np.arange(1, n_genes + 1), 0).astype(float)
    running = np.concatenate([[0.0], np.cumsum(gain)])
    weights = counts.astype(np.float64)
    unseen = np.empty(counts.shape[0])
    for i, (start, stop) in enumerate(zip(counts.indptr[:-1], counts.indptr[1:], strict=True)):
        levels, level, size = np.unique(-counts.data[start:stop], return_inverse=True, return_counts=True)
        end = np.cumsum(size)
        weights.data[start:stop] = ((running[end] - running[end - size]) / size)[level]
        unseen[i] = (running[-1] - running[end[-1]]) / max(n_genes - end[-1], 1) if len(levels) else 0
    seen = counts.astype(bool).astype(np.float64)
    sizes = members.sum(axis=1)
    here = members.T.astype(np.float64)
    area = np.asarray(weights @ here) + unseen[:, None] * (sizes - np.asarray(seen @ here))
    return area / np.maximum(running[np.minimum(sizes, n_genes)], 1e-12)


def _combined_z(values: sp.csr_matrix, members: np.ndarray) -> np.ndarray:
    """Sum of the z-scores of a programme's genes over the square root of their number; constant genes add 0."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0)).ravel()
    sd = np.sqrt(np.maximum(square - mean**2, 0))
    scale = np.where(sd > 1e-6, 1 / np.maximum(sd, 1e-6), 0)
    weights = (members * scale).T
    return (np.asarray(values @ weights) - mean @ weights) / np.sqrt(members.sum(axis=1))
