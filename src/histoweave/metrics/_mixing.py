"""Whether an embedding tells batches (sections, donors) apart that it should mix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score, silhouette_samples
from sklearn.preprocessing import StandardScaler

from histoweave._random import SeedLike, child_seeds, rng
from histoweave._validate import require_choice, require_number
from histoweave.metrics._check import complete_rows
from histoweave.metrics._neighbours import METRICS, nearest, vote

N_PERMUTATIONS = 10


def batch_mixing(
    X: Any, batches: Any, *, labels: Any = None, k: int = 15, metric: str = "cosine", random_state: SeedLike = 0
) -> dict[str, float]:
    """Score how well an embedding mixes batches, beside what perfect mixing would reach.

    Sections differ in which regions they have, and that alone keeps their rows apart. With ``labels`` the
    references keep every section's regions as they are, and silhouettes are taken region by region.

    Parameters
    ----------
    X
        Embedding ``(n, d)``. Rows of NaN are left out.
    batches
        Section or donor of each row ``(n,)``.
    labels
        Region of each row; rows without one are left out. Default: all rows are alike.
    k
        Neighbours of a row.
    metric
        ``"cosine"`` or ``"euclidean"``.
    random_state
        Seed of the permutations behind the references.

    Returns
    -------
    ``n``, ``n_batches``
        rows and batches;
    ``silhouette_batch``
        ``1 - |s|``, ``s`` the silhouette of the batches within a region, averaged within and then over regions
        [1]_; 1 for perfect mixing. NaN where no region has two batches;
    ``knn_entropy``
        entropy of the batches among the ``k`` nearest rows over the largest possible one; 0 where neighbours
        are all of one batch;
    ``knn_entropy_mixed``
        the same after batches were permuted (within regions): the value of perfect mixing;
    ``batch_purity``, ``batch_purity_mixed``
        share of the ``k`` nearest rows that are of the same batch, and its value for perfect mixing.

    Raises
    ------
    ValueError
        One batch only.

    References
    ----------
    .. [1] Luecken et al. (2022). Benchmarking atlas-level data integration in single-cell genomics. Nat. Methods.

    Examples
    --------
    >>> import numpy as np
    >>> import histoweave as hw
    >>> X = np.random.default_rng(0).normal(size=(100, 4))
    >>> scores = hw.metrics.batch_mixing(X, np.repeat(["s1", "s2"], 50))
    >>> abs(scores["knn_entropy"] - scores["knn_entropy_mixed"]) < 0.05
    True
    """
    require_choice(metric, METRICS, argument="metric")
    require_number(k, argument="k", at_least=1, integer=True)
    X, batch, region = _prepare(X, batches, labels)
    own = np.arange(len(X))
    index, _ = nearest(X, X, min(k, len(X) - 1), metric=metric, groups=own, others=own)
    generator = rng(random_state)
    permuted = [_neighbour_scores(_permuted(batch, region, generator), index) for _ in range(N_PERMUTATIONS)]
    entropy, purity = _neighbour_scores(batch, index)
    mixed_entropy, mixed_purity = np.mean(permuted, axis=0)
    return {
        "n": float(len(X)),
        "n_batches": float(batch.max() + 1),
        "silhouette_batch": _silhouette(X, batch, region, metric),
        "knn_entropy": entropy,
        "knn_entropy_mixed": float(mixed_entropy),
        "batch_purity": purity,
        "batch_purity_mixed": float(mixed_purity),
    }


def batch_leakage(
    X: Any,
    batches: Any,
    *,
    labels: Any = None,
    groups: Any = None,
    k: int = 15,
    n_folds: int = 5,
    metric: str = "cosine",
    random_state: SeedLike = 0,
) -> dict[str, float]:
    """Score how well held-out rows betray the batch they come from.

    Within each region, a linear classifier (discriminant analysis with shrunken covariance [1]_) and a vote of the
    ``k`` nearest rows predict the batch of rows they have not seen. Which regions a batch has is not counted.

    Parameters
    ----------
    X
        Embedding ``(n, d)``. Rows of NaN are left out.
    batches
        Section or donor of each row ``(n,)``.
    labels
        Region of each row; rows without one are left out. Default: all rows are one region.
    groups
        Rows to hold out together, such as blocks of tissue: neighbours share pixels. Default: every row alone.
    k
        Neighbours that vote; fewer where a batch has fewer rows in a region.
    n_folds
        Folds of the cross-validation; a batch takes part in a region where it has so many groups.
    metric
        Distance of the neighbours, ``"cosine"`` or ``"euclidean"``.
    random_state
        Seed of the folds.

    Returns
    -------
    ``linear``, ``knn``
        balanced accuracy beyond chance, ``(accuracy - chance) / (1 - chance)``, averaged over regions: 0 where
        batches cannot be told apart, 1 where every row betrays its batch;
    ``linear_accuracy``, ``knn_accuracy``, ``chance``
        balanced accuracy, and one over the number of batches, averaged over regions;
    ``n``, ``n_regions``
        rows and regions with two or more batches that could be scored; all else is NaN where there is none.

    Raises
    ------
    ValueError
        One batch only.

    References
    ----------
    .. [1] Ledoit & Wolf (2004). A well-conditioned estimator for large-dimensional covariance matrices. J. Multivar.
       Anal.

    Examples
    --------
    >>> import numpy as np
    >>> import histoweave as hw
    >>> batches = np.repeat(["s1", "s2"], 50)
    >>> X = np.random.default_rng(0).normal(size=(100, 4)) + 9 * (batches == "s1")[:, None]
    >>> hw.metrics.batch_leakage(X, batches)["linear"]
    1.0
    """
    require_choice(metric, METRICS, argument="metric")
    require_number(k, argument="k", at_least=1, integer=True)
    require_number(n_folds, argument="n_folds", at_least=2, integer=True)
    X, batch, region, group = _prepare(X, batches, labels, groups)
    scored = []
    seeds = child_seeds(random_state, region.max() + 1)
    for number, seed in enumerate(seeds):
        rows = _with_groups(np.flatnonzero(region == number), batch, group, n_folds)
        y = np.unique(batch[rows], return_inverse=True)[1]
        if len(rows) and y.max() > 0:
            guesses = _held_out(X[rows], y, group[rows], k, n_folds, metric, seed)
            accuracy = [balanced_accuracy_score(y, guess) for guess in guesses]
            scored.append([*accuracy, 1 / (y.max() + 1), len(rows)])
    linear, knn, chance, size = np.array(scored).T if scored else np.full((4, 1), np.nan)
    return {
        "linear": float(np.mean((linear - chance) / (1 - chance))),
        "knn": float(np.mean((knn - chance) / (1 - chance))),
        "linear_accuracy": float(linear.mean()),
        "knn_accuracy": float(knn.mean()),
        "chance": float(chance.mean()),
        "n": float(np.nansum(size)),
        "n_regions": float(len(scored)),
    }


def _prepare(X: Any, batches: Any, labels: Any, *groups: Any) -> tuple[np.ndarray, ...]:
    """Values of the complete rows, and the number of their batch, region and, where asked for, group."""
    columns = {"batches": batches, "labels": labels} | dict(zip(["groups"], groups, strict=False))
    rows, found = complete_rows(X, **columns)
    codes = {name: np.unique(values.astype(str), return_inverse=True)[1] for name, values in found.items()}
    n = int(rows.sum())
    if codes["batches"].max() == 0:
        msg = f"`batches` names one batch only in {n} rows with values; two or more are needed."
        raise ValueError(msg)
    out = [np.asarray(X, dtype=float)[rows], codes["batches"], codes.get("labels", np.zeros(n, dtype=int))]
    return (*out, codes.get("groups", np.arange(n))) if groups else tuple(out)


def _permuted(batch: np.ndarray, region: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    out = batch.copy()
    for number in range(region.max() + 1):
        out[region == number] = generator.permutation(batch[region == number])
    return out


def _neighbour_scores(batch: np.ndarray, index: np.ndarray) -> tuple[float, float]:
    """Mean entropy of the batches of the neighbours, 0..1, and share of them of the own batch."""
    n_batches = batch.max() + 1
    share = np.stack([(batch[index] == b).mean(axis=1) for b in range(n_batches)], axis=1)
    logs = np.log(share, out=np.zeros(share.shape), where=share > 0)
    largest = np.log(min(n_batches, index.shape[1])) or 1.0  # one neighbour has no entropy
    purity = np.take_along_axis(share, batch[:, None], axis=1)
    return float(-(share * logs).sum(axis=1).mean() / largest), float(purity.mean())


def _silhouette(X: np.ndarray, batch: np.ndarray, region: np.ndarray, metric: str) -> float:
    means = []
    for number in range(region.max() + 1):
        rows = np.flatnonzero(region == number)
        if 2 <= len(np.unique(batch[rows])) < len(rows):
            means.append(np.mean(1 - np.abs(silhouette_samples(X[rows], batch[rows], metric=metric))))
    return float(np.mean(means)) if means else float("nan")


def _with_groups(rows: np.ndarray, batch: np.ndarray, group: np.ndarray, n_folds: int) -> np.ndarray:
    """Those of ``rows`` whose batch has ``n_folds`` groups or more among them."""
    counts = {b: len(np.unique(group[rows][batch[rows] == b])) for b in np.unique(batch[rows])}
    return rows[[counts[b] >= n_folds for b in batch[rows]]] if len(rows) else rows


def _held_out(
    X: np.ndarray, y: np.ndarray, group: np.ndarray, k: int, n_folds: int, metric: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    linear, knn = np.zeros_like(y), np.zeros_like(y)
    n_classes = y.max() + 1
    for train, test in _folds(y, group, n_folds, seed):
        seen, scaler = np.unique(y[train]), StandardScaler().fit(X[train])
        if len(seen) > 1:
            model = LinearDiscriminantAnalysis(
                solver="lsqr", shrinkage="auto", priors=np.full(len(seen), 1 / len(seen))
            ).fit(scaler.transform(X[train]), y[train])
            linear[test] = model.predict(scaler.transform(X[test]))
        size = np.bincount(y[train], minlength=n_classes)
        # more votes than the smallest batch has rows would hide it; a large batch has more rows near any place
        index, distance = nearest(X[test], X[train], min(k, size[size > 0].min()), metric=metric)
        share = vote(index, distance, y[train], n_classes, weights="uniform")
        knn[test] = (share / np.maximum(size, 1)).argmax(axis=1)
    return linear, knn


def _folds(y: np.ndarray, group: np.ndarray, n_folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows to train and to test on: the groups of every class dealt out in turn, none split."""
    names, first, member = np.unique(group, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    place = pd.Series(order).groupby(y[first][order]).cumcount().to_numpy()
    fold = np.empty(len(names), dtype=int)
    fold[order] = place % n_folds
    for number in range(n_folds):
        yield np.flatnonzero(fold[member] != number), np.flatnonzero(fold[member] == number)
