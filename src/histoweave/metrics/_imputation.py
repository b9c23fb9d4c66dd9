"""Agreement of predicted with measured expression, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def imputation(truth: Any, predicted: Any, *, names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return Pearson and Spearman correlation and root mean squared error of every gene.

    Parameters
    ----------
    truth
        Measured values ``(n, genes)``.
    predicted
        Predicted values, same shape.
    names
        Names of the genes. Default: their numbers.

    Returns
    -------
    A DataFrame indexed by ``gene`` with ``pearson``, ``spearman`` and ``rmse``. The correlation with a constant
    is not defined: NaN, never 0.

    Raises
    ------
    ValueError
        The shapes differ, there are fewer than 2 rows, or a value is NaN or infinite.

    Examples
    --------
    >>> import numpy as np, histoweave as hw
    >>> truth = np.array([[1.0], [2.0], [4.0]])
    >>> hw.metrics.imputation(truth, truth + 1, names=["A"]).round(2).loc["A"].tolist()
    [1.0, 1.0, 1.0]
    """
    from scipy.sparse import issparse
    from scipy.stats import rankdata

    truth, predicted = (
        np.asarray(values.toarray() if issparse(values) else values, dtype=np.float64) for values in (truth, predicted)
    )
    if truth.ndim != 2 or truth.shape != predicted.shape or len(truth) < 2:
        msg = f"`truth` and `predicted` must be (n, genes) alike with 2 rows or more, got {truth.shape} and "
        raise ValueError(msg + f"{predicted.shape}.")
    if names is not None and len(names) != truth.shape[1]:
        msg = f"`names` has {len(names)} entries for {truth.shape[1]} genes; give one a gene."
        raise ValueError(msg)
    for name, values in (("truth", truth), ("predicted", predicted)):
        if not np.isfinite(values).all():
            msg = f"`{name}` has NaN or infinite values; leave these rows or genes out."
            raise ValueError(msg)
    genes = pd.Index(range(truth.shape[1]) if names is None else list(names), name="gene")
    return pd.DataFrame(
        {
            "pearson": _pearson(truth, predicted),
            "spearman": _pearson(rankdata(truth, axis=0), rankdata(predicted, axis=0)),
            "rmse": np.sqrt(np.mean((truth - predicted) ** 2, axis=0)),
        },
        index=genes,
    )


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    constant = (np.ptp(a, axis=0) < 1e-12) | (np.ptp(b, axis=0) < 1e-12)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    product = (a * b).sum(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.where(constant, np.nan, product / np.where(size > 0, size, 1))
