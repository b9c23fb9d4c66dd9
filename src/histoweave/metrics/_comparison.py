"""Is one arm better than another? Tests on the scores of the same folds, intervals from resampled groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import stats

from histoweave._random import SeedLike, rng
from histoweave._validate import label_name, require_choice, require_number, warn
from histoweave.metrics._check import label_array, same_length

CHUNK = 5_000_000  # weights of groups held at a time


def holm(p_values: Any) -> np.ndarray:
    """Adjust p-values for the number of comparisons, so that any false alarm among them is as rare as stated.

    Parameters
    ----------
    p_values
        Shape ``(n,)``. A NaN (a comparison that could not be made) stays NaN and is not counted.

    Returns
    -------
    Adjusted p-values ``(n,)``, in the same order.

    References
    ----------
    Holm (1979), Scandinavian Journal of Statistics 6.

    Examples
    --------
    >>> import histoweave as hw
    >>> hw.metrics.holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    wrong = (p < 0) | (p > 1)
    if p.ndim != 1 or wrong.any():
        msg = f"`p_values` must be numbers from 0 to 1, shape (n,); got shape {p.shape}, {int(wrong.sum())} outside."
        raise ValueError(msg)
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return out


def corrected_t_test(differences: Any, *, test_ratio: float) -> dict[str, float]:
    """Test whether differences between two arms over the folds of a cross-validation are zero on average.

    Folds share training rows, so that their differences are not independent and the usual paired t-test finds too
    much. The variance of the mean is corrected for it: ``(1 / n + test_ratio) * variance``.

    Parameters
    ----------
    differences
        One difference a fold ``(n,)``; the seeds of a fold averaged before. NaN is left out.
    test_ratio
        Rows tested on per row trained on, ``1 / (k - 1)`` for ``k`` equal folds.

    Returns
    -------
    ``n`` (folds), ``difference`` (their mean), ``low`` and ``high`` (95 % interval of it), ``t`` and ``p_value``
    (two-sided). Fewer than two folds test nothing: ``t``, interval and p-value are NaN.

    References
    ----------
    Nadeau & Bengio (2003), Machine Learning 52; Bouckaert & Frank (2004), PAKDD.

    Examples
    --------
    >>> import histoweave as hw
    >>> found = hw.metrics.corrected_t_test([0.10, 0.12, 0.08, 0.11, 0.09], test_ratio=1 / 4)
    >>> round(found["t"], 2), round(found["p_value"], 4)
    (9.43, 0.0007)
    """
    require_number(test_ratio, argument="test_ratio", at_least=0)
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1:
        msg = f"`differences` must hold one number a fold, shape (n,); got shape {values.shape}."
        raise ValueError(msg)
    values = values[~np.isnan(values)]
    n, mean = len(values), float(values.mean()) if len(values) else np.nan
    found = {"n": float(n), "difference": mean, "low": np.nan, "high": np.nan, "t": np.nan, "p_value": np.nan}
    if n < 2:
        return found
    error = np.sqrt((1 / n + test_ratio) * values.var(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    t = 0.0 if mean == 0 else float(np.divide(mean, error)) if error else float(np.copysign(np.inf, mean))
    return found | {"low": mean - half, "high": mean + half, "t": t, "p_value": float(2 * stats.t.sf(abs(t), n - 1))}


def group_bootstrap(
    y_true: Any,
    y_pred: Mapping[str, Any] | pd.DataFrame,
    groups: Any,
    *,
    reference: str | None = None,
    metrics: Sequence[str] = ("macro_f1", "balanced_accuracy", "accuracy"),
    n_resamples: int = 2000,
    level: float = 0.95,
    random_state: SeedLike = 0,
) -> pd.DataFrame:
    """Score held-out predictions, pooled over folds, with intervals from resampling whole groups.

    Rows of a donor, a section or a block of tissue resemble each other: what would differ in another study are the
    groups, so groups are drawn with replacement, the same ones for all arms, and all their rows with them. A class that
    a resample lacks has its score in all rows there: left out, rare classes would lift the resamples without them.

    Parameters
    ----------
    y_true
        True class of each row ``(n,)``, nothing missing; or a mapping from arm to it, or to ``(n, n_seeds)``, where
        arms are scored against labels of their own.
    y_pred
        Arm to predicted class ``(n,)``, or ``(n, n_seeds)``: then the score is the mean over seeds. Missing where
        an arm predicted nothing; such rows are left out of its score, which is NaN where no row is left.
    groups
        Donor, section or block of each row ``(n,)``.
    reference
        Arm that the others are compared with.
    metrics
        Of ``"macro_f1"``, ``"balanced_accuracy"`` and ``"accuracy"``, as in
        :func:`histoweave.metrics.classification`.
    n_resamples
        Number of resamples.
    level
        Coverage of the percentile intervals. With fewer than about ten groups they are too narrow.
    random_state
        Seed.

    Returns
    -------
    A tidy DataFrame, one row an arm and metric: ``arm``, ``metric``, ``value``, ``low``, ``high``, and with
    ``reference`` the ``difference`` to it, ``difference_low`` and ``difference_high``. With one group, intervals
    are NaN.

    Raises
    ------
    ValueError
        Lengths that disagree, missing true labels, or a ``reference`` that is not among the arms.

    References
    ----------
    Davison & Hinkley (1997), Bootstrap Methods and their Application, on resampling clusters.

    Examples
    --------
    >>> import histoweave as hw
    >>> truth = ["a", "a", "b", "b"] * 5
    >>> arms = {"good": truth, "poor": ["a", "b"] * 10}
    >>> found = hw.metrics.group_bootstrap(truth, arms, [i // 4 for i in range(20)], reference="good")
    >>> found.loc[found["metric"] == "accuracy", ["arm", "value", "difference"]].values.tolist()
    [['good', 1.0, 0.0], ['poor', 0.5, -0.5]]
    """
    for name in metrics:
        require_choice(name, tuple(SCORES), argument="metrics")
    if reference is not None:
        require_choice(reference, tuple(y_pred), argument="reference")
    require_number(n_resamples, argument="n_resamples", at_least=1, integer=True)
    require_number(level, argument="level", above=0, below=1)
    group = pd.factorize(label_array(groups, argument="groups"))[0]
    tables, k = _confusion_tables(y_true, y_pred, group)
    n_groups = group.max() + 1
    if n_groups < 2:
        warn("All rows are of one group: no interval can be told. Score more donors, sections or blocks.")
    values = {arm: _scores(np.ones((1, n_groups)), found, k, metrics) for arm, found in tables.items()}
    drawn: dict[str, list[np.ndarray]] = {arm: [] for arm in tables}
    generator, step = rng(random_state), max(1, CHUNK // n_groups)
    for start in range(0, n_resamples if n_groups > 1 else 0, step):
        weights = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), min(step, n_resamples - start))
        for arm, found in tables.items():
            drawn[arm].append(_scores(weights.astype(float), found, k, metrics))
    resampled = {arm: np.concatenate(d) if d else np.full((1, len(metrics)), np.nan) for arm, d in drawn.items()}
    rows = []
    for arm in tables:
        columns = {"value": values[arm][0]} | _interval(resampled[arm], level, "")
        if reference is not None:
            columns["difference"] = (values[arm] - values[reference])[0]
            columns |= _interval(resampled[arm] - resampled[reference], level, "difference_")
        rows.append(pd.DataFrame({"arm": arm, "metric": list(metrics)} | columns))
    return pd.concat(rows, ignore_index=True)


def _confusion_tables(
    y_true: Any, y_pred: Mapping[str, Any] | pd.DataFrame, group: np.ndarray
) -> tuple[dict[str, list[sp.csr_matrix]], int]:
    """Return per arm and seed the confusion matrix of every group ``(n_groups, k * k)``, and the number of classes."""
    truths, guesses = {}, {}
    for arm, values in y_pred.items():
        truth, guess = (
            a.reshape(len(a), -1)
            for a in (
                np.asarray(v, dtype=object) for v in (y_true[arm] if isinstance(y_true, Mapping) else y_true, values)
            )
        )
        same_length(y_true=truth, groups=group, **{f"y_pred[{arm!r}]": guess})
        truths[arm] = label_array(truth.ravel(), argument="y_true").reshape(truth.shape)
        guesses[arm] = pd.DataFrame(guess).map(label_name, na_action="ignore").to_numpy(dtype=object)
    found = [a[pd.notna(a)] for a in (*truths.values(), *guesses.values())]
    names = pd.Index(np.unique(np.concatenate(found).astype(str)))
    k = len(names)
    tables = {}
    for arm, guess in guesses.items():
        truth = np.broadcast_to(truths[arm], guess.shape)
        tables[arm] = [
            _counts(names.get_indexer(t), names.get_indexer(g), group, k) for t, g in zip(truth.T, guess.T, strict=True)
        ]
    return tables, k


def _counts(truth: np.ndarray, guess: np.ndarray, group: np.ndarray, k: int) -> sp.csr_matrix:
    rows = guess >= 0  # predicted
    shape = (group.max() + 1, k * k)
    return sp.csr_matrix((np.ones(rows.sum()), (group[rows], (truth * k + guess)[rows])), shape=shape)


def _scores(weights: np.ndarray, tables: list[sp.csr_matrix], k: int, metrics: Sequence[str]) -> np.ndarray:
    """Return scores ``(n_resamples, n_metrics)`` of groups with these weights, the mean over seeds."""
    found = []
    for table in tables:
        drawn, whole = (w @ table for w in (weights, np.ones((1, table.shape[0]))))
        counts, total = drawn.reshape(-1, k, k), whole.reshape(1, k, k)
        found.append(np.stack([_score(name, counts, total) for name in metrics], axis=1))
    return np.mean(found, axis=0)


def _score(metric: str, counts: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return a score of confusion matrices ``(n, k, k)``; a class without rows has its score in ``whole``."""
    if metric == "accuracy":
        with np.errstate(invalid="ignore"):
            return np.einsum("nkk->n", counts) / counts.sum(axis=(1, 2))
    values, fallback = SCORES[metric](counts), SCORES[metric](whole)
    there = whole.sum(axis=2)[0] > 0
    if not there.any():  # an arm that predicted nothing
        return np.full(len(counts), np.nan)
    return np.where(counts.sum(axis=2) > 0, values, fallback)[:, there].mean(axis=1)


def _interval(values: np.ndarray, level: float, prefix: str) -> dict[str, np.ndarray]:
    tail = (1 - level) / 2
    known = ~np.isnan(values).all(axis=0)
    bounds = np.full((2, values.shape[1]), np.nan)
    bounds[:, known] = np.nanquantile(values[:, known], [tail, 1 - tail], axis=0)
    return {f"{prefix}low": bounds[0], f"{prefix}high": bounds[1]}


def _f1(counts: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=2) + counts.sum(axis=1)
    return 2 * np.einsum("nkk->nk", counts) / np.maximum(total, 1)


def _recall(counts: np.ndarray) -> np.ndarray:
    return np.einsum("nkk->nk", counts) / np.maximum(counts.sum(axis=2), 1)


#: What is compared: the mean of these over classes, or the share of rows that are right.
SCORES = {"macro_f1": _f1, "balanced_accuracy": _recall, "accuracy": None}
