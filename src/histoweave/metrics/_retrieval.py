"""Whether the nearest rows of an embedding are of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import digamma, gammaln

from histoweave._validate import require_number
from histoweave.metrics._check import complete_rows, label_array, same_length
from histoweave.metrics._neighbours import nearest_blocks


def retrieval(
    X: Any,
    labels: Any,
    *,
    groups: Any = None,
    gallery: Any = None,
    gallery_labels: Any = None,
    gallery_groups: Any = None,
    k: int | Sequence[int] = (1, 5, 10),
    metric: str = "cosine",
) -> dict[str, float]:
    """Score how well the rows nearest to a query are of its class.

    Every row asks all the others (leave one out), or with ``gallery`` the rows of that. Rows of a query's own
    group are never found: neighbours on the tissue share pixels, and a section shares its stain.

    Parameters
    ----------
    X
        Embedding of the queries ``(n, d)``. Rows of NaN are left out.
    labels
        Class of each row ``(n,)``. Rows without a label are left out.
    groups
        Section, donor or neighbourhood of each row ``(n,)``. Default: only the row itself is left out.
    gallery, gallery_labels, gallery_groups
        The rows to search, their classes, and their groups where queries have groups. Default: the queries.
    k
        Numbers of rows to look at.
    metric
        ``"cosine"`` or ``"euclidean"``. Rows at equal distance come in no particular order.

    Returns
    -------
    ``n``
        queries scored;
    ``n_left_out``
        queries without embedding or label;
    ``n_without_match``
        labelled queries left out because no row of another group has their class;
    ``recall_at_{k}``
        share of queries with at least one of the ``k`` nearest rows of their class (the field's usage);
    ``precision_at_{k}``
        share of the ``k`` nearest rows that are of the query's class;
    ``r_precision``
        the same among the ``R`` nearest, ``R`` the number of rows of that class to be found;
    ``map_at_r``
        mean average precision at R [1]_: as ``r_precision``, yet early hits count more;
    ``macro_map_at_r``
        the same, averaged over the queries of a class and then over classes;
    ``recall_at_{k}_chance``, ...
        what a ranking at random is expected to reach, for each of the scores.

    Raises
    ------
    ValueError
        Lengths or dimensions that disagree, no query with a match, or fewer rows to be found than ``k``.

    References
    ----------
    .. [1] Musgrave, Belongie & Lim (2020). A metric learning reality check. ECCV.

    Examples
    --------
    >>> import histoweave as hw
    >>> scores = hw.metrics.retrieval([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]], ["a", "a", "b", "b"], k=(1,))
    >>> scores["recall_at_1"], round(scores["recall_at_1_chance"], 3)
    (1.0, 0.333)
    """
    k = tuple(np.atleast_1d(k).tolist())
    for number in k:
        require_number(number, argument="k", at_least=1, integer=True)
    rows, found = complete_rows(X, labels=labels)
    queries, asked = np.asarray(X, dtype=float)[rows], found["labels"]
    own = _groups(groups, rows, "groups")
    if gallery is None:
        own = np.arange(len(queries)) if own is None else own
        gallery, known, others = queries, asked, own
    else:
        there, found = complete_rows(gallery, argument="gallery", gallery_labels=gallery_labels)
        gallery, known = np.asarray(gallery, dtype=float)[there], found["gallery_labels"]
        others = _groups(gallery_groups, there, "gallery_groups")
        if (own is None) != (others is None):
            msg = "`groups` and `gallery_groups` are needed both, or neither."
            raise ValueError(msg)
    if queries.shape[1] != gallery.shape[1]:
        msg = f"`X` has {queries.shape[1]} columns and `gallery` {gallery.shape[1]}; they must be one embedding."
        raise ValueError(msg)
    relevant, size = _to_be_found(asked, own, known, others)
    matched = relevant > 0
    if not matched.any():
        msg = "No query has a row of its class in another group; nothing to score."
        raise ValueError(msg)
    if size[matched].min() < max(k):
        msg = f"`k={max(k)}` is more than the {size[matched].min()} rows of other groups that a query can find."
        raise ValueError(msg)
    blocks = nearest_blocks(
        queries[matched],
        gallery,
        int(max(relevant.max(), *k)),
        metric=metric,
        groups=None if own is None else own[matched],
        others=others,
    )
    R, N, asked = relevant[matched], size[matched], asked[matched]
    parts = [_scores(asked[part, None] == known[index], R[part], k) for part, index, _ in blocks]
    reached = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    chance = _chance(R, N, k)
    scores = {"n": float(matched.sum()), "n_left_out": float((~rows).sum()), "n_without_match": float((~matched).sum())}
    for values, end in ((reached, ""), (chance, "_chance")):
        scores |= {name + end: float(value.mean()) for name, value in values.items()}
        scores["macro_map_at_r" + end] = float(pd.Series(values["map_at_r"]).groupby(asked).mean().mean())
    return scores


def _groups(values: Any, rows: np.ndarray, argument: str) -> np.ndarray | None:
    if values is None:
        return None
    values = np.asarray(values, dtype=object)
    same_length(X=rows, **{argument: values})
    return label_array(values[rows], argument=argument)


def _to_be_found(
    asked: np.ndarray, own: np.ndarray | None, known: np.ndarray, others: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of its class, and rows at all, that each query can find outside its own group."""
    relevant = pd.Series(known).value_counts().reindex(asked, fill_value=0).to_numpy()
    size = np.full(len(asked), len(known))
    if own is None:
        return relevant, size
    size = size - pd.Series(others).value_counts().reindex(own, fill_value=0).to_numpy()
    pairs = pd.MultiIndex.from_arrays([known, others]).value_counts()
    return relevant - pairs.reindex(pd.MultiIndex.from_arrays([asked, own]), fill_value=0).to_numpy(), size


def _scores(hit: np.ndarray, R: np.ndarray, k: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of each query from its hits ``(n, ranks)``, nearest first."""
    precision = hit.cumsum(axis=1) / np.arange(1, hit.shape[1] + 1)
    within = np.arange(hit.shape[1]) < R[:, None]
    scores = {f"recall_at_{number}": hit[:, :number].any(axis=1) for number in k}
    scores |= {f"precision_at_{number}": precision[:, number - 1] for number in k}
    scores["r_precision"] = np.take_along_axis(precision, R[:, None] - 1, axis=1)[:, 0]
    return scores | {"map_at_r": (precision * hit * within).sum(axis=1) / R}


def _chance(R: np.ndarray, N: np.ndarray, k: Sequence[int]) -> dict[str, np.ndarray]:
    """Expected scores of each query when ``N`` rows, ``R`` of them right, come in random order."""
    scores = {}
    for number in k:  # the hypergeometric probability of no hit
        possible = N - R >= number
        miss = np.where(possible, N - R, number)  # any value without an infinite logarithm
        log = gammaln(miss + 1) - gammaln(miss - number + 1) - gammaln(N + 1) + gammaln(N - number + 1)
        scores[f"recall_at_{number}"] = 1 - np.where(possible, np.exp(log), 0.0)
    share = R / N
    scores |= {f"precision_at_{number}": share for number in k}
    harmonic = digamma(R + 1) + np.euler_gamma
    # the sum over ranks i of P(rank i right) * E(precision at i | rank i right)
    expected = (harmonic + (R - 1) / np.maximum(N - 1, 1) * (R - harmonic)) / N
    return scores | {"r_precision": share, "map_at_r": expected}
