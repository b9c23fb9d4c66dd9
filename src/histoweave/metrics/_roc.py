"""Curves that say how well a probability ranks rows, at every threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from histoweave._validate import listing
from histoweave.metrics._check import labels_and_probability
from histoweave.metrics._multilabel import findings_and_probability


def roc_curves(y_true: Any, probability: Any, classes: Sequence[Any] | None = None) -> pd.DataFrame:
    """Return the ROC curve of every class against the rest, or of every finding.

    Parameters
    ----------
    y_true
        True class of each row, shape ``(n,)``, nothing missing; or findings ``(n, k)``: 1 where a row has one, 0 where
        not, missing where nobody looked.
    probability
        Class probabilities ``(n, k)`` whose rows sum to 1, or probabilities of findings as for :func:`multilabel`.
    classes
        Class of each column, length ``k``; a DataFrame brings its own. Findings bring theirs in ``y_true``.

    Returns
    -------
    A tidy DataFrame, a row a corner of a curve: ``class``, ``threshold`` (rows of this probability or more are called
    positive; infinite at the start), ``false_positive_rate``, ``true_positive_rate``. From (0, 0) to (1, 1); the area
    under it is the ``roc_auc`` of :func:`per_class` or :func:`multilabel`. Classes of which there is no row, or
    nothing else, have no curve.

    Raises
    ------
    ValueError
        As in :func:`brier_score` or :func:`multilabel`; no class has a curve.

    Examples
    --------
    >>> import histoweave as hw
    >>> curves = hw.metrics.roc_curves(["a", "b", "a"], [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], classes=["a", "b"])
    >>> curves.loc[curves["class"] == "a", "true_positive_rate"].tolist()
    [0.0, 0.5, 0.5, 1.0]
    """
    if np.ndim(y_true) == 2:
        known, p = findings_and_probability(y_true, probability, argument="y_true")
        truth, array, names = known.to_numpy(), p.to_numpy(), list(known)
    else:
        codes, array, names = labels_and_probability(y_true, probability, classes)
        truth = np.eye(len(names))[codes]
    curves = {name: _curve(truth[:, column], array[:, column]) for column, name in enumerate(names)}
    drawn = {name: curve for name, curve in curves.items() if curve is not None}
    if not drawn:
        msg = f"There is no ROC curve: each of {listing(names)} is true of no row, or of every row."
        raise ValueError(msg)
    tidy = pd.concat(drawn, names=["class"]).reset_index(level=0).reset_index(drop=True)
    return tidy.assign(**{"class": pd.Categorical(tidy["class"], list(drawn))})


def _curve(truth: np.ndarray, probability: np.ndarray) -> pd.DataFrame | None:
    rows = ~(np.isnan(truth) | np.isnan(probability))
    if len(np.unique(truth[rows])) < 2:
        return None
    false, true, threshold = roc_curve(truth[rows], probability[rows])
    return pd.DataFrame({"threshold": threshold, "false_positive_rate": false, "true_positive_rate": true})
