"""How well predicted labels and probabilities match the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_auc_score

from histoweave.metrics._calibration import brier_score, expected_calibration_error, log_loss
from histoweave.metrics._check import class_list, label_array, probability_array, require_known, same_length
from histoweave.metrics._clustering import agreement


def classification(
    y_true: Any, y_pred: Any, probability: Any = None, classes: Sequence[Any] | None = None
) -> dict[str, float | str]:
    """Score predicted labels, and class probabilities where there are any.

    A class that no row of ``y_true`` belongs to has no recall, no F1 and no ROC curve. It is left out of
    every average over classes and named in ``absent_classes``; it is never scored 0. A row predicted to be
    of such a class is still an error for its true class.

    Parameters
    ----------
    y_true
        True class of each row, shape ``(n,)``; nothing missing (mask unlabelled rows first).
    y_pred
        Predicted class of each row, shape ``(n,)``; nothing missing.
    probability
        Class probabilities, shape ``(n, k)``; rows sum to 1. A DataFrame brings its class names as columns.
    classes
        All classes, in the order of the columns of ``probability``; by default its column names, or without
        ``probability`` the classes found.

    Returns
    -------
    ``n``
        rows scored;
    ``accuracy``
        share of rows that are right;
    ``balanced_accuracy``
        mean recall over the classes present in ``y_true``;
    ``macro_f1``
        mean F1, ``2 TP / (2 TP + FP + FN)``, over the classes present in ``y_true``; a present class that is
        never hit counts as 0;
    ``weighted_f1``
        the same, weighted by the number of true rows;
    ``adjusted_rand``, ``rand``, ``nmi``
        agreement of the two partitions, as in :func:`clustering`;
    ``absent_classes``
        names of the classes without a true row, joined by ``"; "``, empty when there is none;
    ``log_loss``, ``brier``, ``ece``
        with ``probability``: :func:`log_loss`, :func:`brier_score`, :func:`expected_calibration_error`;
    ``roc_auc``
        with ``probability``: mean one-against-rest area under the ROC curve over the present classes; NaN
        when only one class is present.

    Raises
    ------
    ValueError
        Missing labels; labels outside ``classes``; probabilities that are NaN, do not sum to 1, or have
        another number of columns than there are classes; lengths that disagree.

    See Also
    --------
    per_class : the same, class by class.

    Examples
    --------
    >>> import histoweave as hw
    >>> scores = hw.metrics.classification(["a", "a", "b"], ["a", "b", "b"], classes=["a", "b", "c"])
    >>> round(scores["macro_f1"], 3), scores["absent_classes"]
    (0.667, 'c')
    """
    truth, guess, array, names = _prepare(y_true, y_pred, probability, classes)
    table = _per_class(truth, guess, array, names)
    present = table[table["support"] > 0]
    scores: dict[str, float | str] = {
        "n": float(len(truth)),
        "accuracy": float((truth == guess).mean()),
        "balanced_accuracy": float(present["recall"].mean()),
        "macro_f1": float(present["f1"].mean()),
        "weighted_f1": float(np.average(present["f1"], weights=present["support"])),
        **agreement(truth, guess),
        "absent_classes": "; ".join(table.index[table["support"] == 0]),
    }
    if array is not None:
        scores["log_loss"] = log_loss(truth, array, names)
        scores["brier"] = brier_score(truth, array, names)
        scores["roc_auc"] = float(present["roc_auc"].mean())
        scores["ece"] = expected_calibration_error(truth, array, names)
    return scores


def per_class(y_true: Any, y_pred: Any, probability: Any = None, classes: Sequence[Any] | None = None) -> pd.DataFrame:
    """Score every class on its own.

    Parameters
    ----------
    y_true, y_pred, probability, classes
        As in :func:`classification`.

    Returns
    -------
    One row a class (index ``class``), in the order of ``classes``: ``precision`` (NaN when the class is never
    predicted), ``recall``, ``f1``, ``roc_auc`` (one against the rest; NaN without ``probability`` or when all
    rows are of this class), ``support`` (true rows), ``predicted`` (rows predicted). Of a class without true
    rows all scores are NaN.

    Raises
    ------
    ValueError
        As in :func:`classification`.

    Examples
    --------
    >>> import histoweave as hw
    >>> table = hw.metrics.per_class(["a", "a", "b"], ["a", "b", "b"])
    >>> table["recall"].to_dict()
    {'a': 0.5, 'b': 1.0}
    """
    return _per_class(*_prepare(y_true, y_pred, probability, classes))


def _prepare(
    y_true: Any, y_pred: Any, probability: Any, classes: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str]]:
    truth, guess = label_array(y_true, argument="y_true"), label_array(y_pred, argument="y_pred")
    same_length(y_true=truth, y_pred=guess)
    array = None
    if probability is not None:
        array, names = probability_array(probability, classes)
        same_length(y_true=truth, probability=array)
    else:
        names = sorted({*truth, *guess}) if classes is None else class_list(classes)
    require_known(truth, names, argument="y_true")
    require_known(guess, names, argument="y_pred")
    return truth, guess, array, names


def _per_class(truth: np.ndarray, guess: np.ndarray, array: np.ndarray | None, names: list[str]) -> pd.DataFrame:
    counts = confusion_matrix(truth, guess, labels=np.array(names, dtype=object))
    hits, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    there = support > 0
    nan = np.full(len(names), np.nan)
    auc = nan.copy()
    if array is not None:
        for column in np.flatnonzero(there & (support < len(truth))):
            auc[column] = roc_auc_score(truth == names[column], array[:, column])
    return pd.DataFrame(
        {
            "precision": np.divide(hits, predicted, out=nan.copy(), where=there & (predicted > 0)),
            "recall": np.divide(hits, support, out=nan.copy(), where=there),
            "f1": np.divide(2 * hits, support + predicted, out=nan.copy(), where=there),
            "roc_auc": auc,
            "support": support,
            "predicted": predicted,
        },
        index=pd.Index(names, name="class"),
    )
