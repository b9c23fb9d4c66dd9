"""How an embedding uses its space, and how far apart it puts classes, without training anything on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import calinski_harabasz_score, silhouette_score

from histoweave._validate import require_choice, require_number
from histoweave.metrics._check import complete_rows
from histoweave.metrics._neighbours import METRICS, nearest, unit_rows

BLOCK = 2_000  # rows compared with all others at a time


def effective_rank(X: Any) -> float:
    """Return how many dimensions an embedding uses: 1 for a line, ``d`` for a round cloud.

    The exponential of the entropy of the singular values of the centred embedding, as shares of their sum [1]_.
    A collapsed network shows here, whatever its loss says.

    Parameters
    ----------
    X
        Embedding ``(n, d)``. Rows of NaN are left out.

    Returns
    -------
    A number between 1 and the smaller of ``d`` and ``n - 1``; 0 where all rows are the same.

    Raises
    ------
    ValueError
        Fewer than two rows with values.

    References
    ----------
    .. [1] Roy & Vetterli (2007). The effective rank: a measure of effective dimensionality. EUSIPCO.

    Examples
    --------
    >>> import numpy as np
    >>> import histoweave as hw
    >>> round(hw.metrics.effective_rank(np.concatenate([np.eye(3), -np.eye(3)])), 6)
    3.0
    """
    X = _measured(X)
    centred = X - X.mean(axis=0)
    s = np.linalg.svd(np.linalg.qr(centred, mode="r"), compute_uv=False)
    if s[0] <= 1e-10 * max(np.abs(X).max(), 1e-300):  # what rounding leaves of equal rows
        return 0.0
    share = s[s > 0] / s.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def uniformity(X: Any, *, t: float = 2.0) -> float:
    """Return how evenly an embedding covers the sphere: the lower, the more is told apart.

    ``log mean exp(-t |x - y|^2)`` over all pairs of different rows, each row scaled to length 1 [1]_: 0 where all
    point the same way, towards ``-2 t`` for an even cover in many dimensions.

    Parameters
    ----------
    X
        Embedding ``(n, d)``. Rows of NaN are left out.
    t
        How fast the weight of a pair falls with its distance.

    Returns
    -------
    The uniformity.

    Raises
    ------
    ValueError
        Fewer than two rows with values.

    References
    ----------
    .. [1] Wang & Isola (2020). Understanding contrastive representation learning through alignment and uniformity
       on the hypersphere. ICML.

    Examples
    --------
    >>> import histoweave as hw
    >>> round(hw.metrics.uniformity([[1.0, 0.0], [-1.0, 0.0]]), 6)
    -8.0
    """
    require_number(t, argument="t", above=0)
    X = unit_rows(_measured(X))
    n = len(X)
    square, total = (X * X).sum(axis=1), 0.0
    for start in range(0, n, BLOCK):
        rows = np.arange(start, min(start + BLOCK, n))
        pairs = np.exp(-t * (square[rows, None] + square - 2 * X[rows] @ X.T))
        pairs[rows - start, rows] = 0.0
        total += pairs.sum()
    return float(np.log(max(total, np.finfo(float).tiny) / (n * (n - 1))))


def alignment(X: Any, labels: Any, *, groups: Any = None) -> float:
    """Return how far apart rows lie that belong together: 0 where they coincide, 2 for unrelated directions.

    The mean of ``|x - y|^2`` over the pairs of rows of one label, each row scaled to length 1, averaged over labels.
    Where every label has two rows, the views of one crop, it is the alignment of [1]_.

    Parameters
    ----------
    X
        Embedding ``(n, d)``. Rows of NaN are left out.
    labels
        What a row is: its region, or the number of its crop. Rows without one are left out.
    groups
        Section or donor of each row: only pairs of different groups count.

    Returns
    -------
    The alignment; labels without a pair are left out of the mean.

    Raises
    ------
    ValueError
        No two rows belong together.

    References
    ----------
    .. [1] Wang & Isola (2020). Understanding contrastive representation learning through alignment and uniformity
       on the hypersphere. ICML.

    Examples
    --------
    >>> import histoweave as hw
    >>> round(hw.metrics.alignment([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], ["a", "a", "a"]), 3)
    1.333
    """
    rows, found = complete_rows(X, labels=labels, groups=groups)
    X = unit_rows(np.asarray(X, dtype=float)[rows])
    own = found.get("groups", np.arange(len(X)).astype(str))
    means = []
    for _, here in pd.Series(range(len(X))).groupby(found["labels"]).indices.items():
        part = pd.DataFrame(X[here]).groupby(own[here])
        sums, sizes = part.sum().to_numpy(), part.size().to_numpy()
        # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, summed over ordered pairs of different groups by their sums
        lengths = pd.Series((X[here] ** 2).sum(axis=1)).groupby(own[here]).sum().to_numpy()
        pairs = sizes.sum() ** 2 - (sizes**2).sum()
        if pairs:
            inner = (sums.sum(axis=0) ** 2).sum() - (sums**2).sum()
            means.append((2 * (lengths * (sizes.sum() - sizes)).sum() - 2 * inner) / pairs)
    if not means:
        msg = "No two rows have one label" + (" and different `groups`." if groups is not None else ".")
        raise ValueError(msg)
    return float(max(np.mean(means), 0.0))


def separation(X: Any, labels: Any, *, k: int = 15, metric: str = "cosine") -> dict[str, float]:
    """Score how far apart an embedding puts known classes.

    Parameters
    ----------
    X
        Embedding ``(n, d)``. Rows of NaN are left out.
    labels
        Class of each row ``(n,)``. Rows without a label are left out.
    k
        Neighbours for ``knn_purity``.
    metric
        Distance of the silhouette and the neighbours, ``"cosine"`` or ``"euclidean"``.

    Returns
    -------
    ``n``
        rows scored;
    ``silhouette``
        mean over rows of ``(b - a) / max(a, b)``, ``a`` the mean distance to the own class and ``b`` to the nearest
        other one [1]_; -1 to 1;
    ``silhouette_scaled``
        the same brought to 0..1, ``(s + 1) / 2``, as in [2]_;
    ``calinski_harabasz``
        spread between over spread within classes, each by its degrees of freedom [3]_, in Euclidean distance; 1
        is expected where classes do not differ;
    ``knn_purity``
        share of a row's ``k`` nearest rows that are of its class, averaged within classes, then over classes;
    ``knn_purity_chance``
        the same for neighbours at random.

    Raises
    ------
    ValueError
        Fewer than two classes, or as many classes as rows.

    References
    ----------
    .. [1] Rousseeuw (1987). Silhouettes. J. Comput. Appl. Math.
    .. [2] Luecken et al. (2022). Benchmarking atlas-level data integration in single-cell genomics. Nat. Methods.
    .. [3] Calinski & Harabasz (1974). A dendrite method for cluster analysis. Commun. Stat.

    Examples
    --------
    >>> import histoweave as hw
    >>> scores = hw.metrics.separation([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]], ["a", "a", "b", "b"], k=1)
    >>> scores["knn_purity"]
    1.0
    """
    require_choice(metric, METRICS, argument="metric")
    require_number(k, argument="k", at_least=1, integer=True)
    rows, found = complete_rows(X, labels=labels)
    X, labels = np.asarray(X, dtype=float)[rows], found["labels"]
    n_classes = len(set(labels))
    if not 2 <= n_classes < len(X):
        msg = f"`labels` has {n_classes} classes in {len(X)} rows; two or more are needed, and fewer than rows."
        raise ValueError(msg)
    silhouette = silhouette_score(X, labels, metric=metric)
    purity, chance = knn_purity(X, labels, k, metric)
    return {
        "n": float(len(X)),
        "silhouette": float(silhouette),
        "silhouette_scaled": float((silhouette + 1) / 2),
        "calinski_harabasz": float(calinski_harabasz_score(X, labels)),
        "knn_purity": purity,
        "knn_purity_chance": chance,
    }


def knn_purity(X: np.ndarray, labels: np.ndarray, k: int, metric: str) -> tuple[float, float]:
    """Share of nearest rows of the own class, averaged over classes, and what is expected at random."""
    own = np.arange(len(X))
    index, _ = nearest(X, X, min(k, len(X) - 1), metric=metric, groups=own, others=own)
    share = pd.Series((labels[index] == labels[:, None]).mean(axis=1)).groupby(labels).mean()
    sizes = pd.Series(labels).value_counts()
    return float(share.mean()), float(((sizes - 1) / (len(X) - 1)).mean())


def _measured(X: Any) -> np.ndarray:
    rows, _ = complete_rows(X)
    if rows.sum() < 2:
        msg = "`X` has 1 row with values; at least 2 are needed."
        raise ValueError(msg)
    return np.asarray(X, dtype=float)[rows]
