"""How well several yes-or-no findings of every row are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from histoweave._validate import listing, require_number
from histoweave.metrics._check import same_length

SCORES = ("roc_auc", "average_precision", "f1", "balanced_accuracy", "brier")


def multilabel(truth: Any, probability: Any, *, predicted: Any = None, threshold: float = 0.5) -> pd.DataFrame:
    """Score findings that a row may have none, one or several of.

    Every finding is scored on the rows where it is known. Where all of these are alike there is nothing to rank and
    nothing to find: such scores are NaN, and left out of the mean.

    Parameters
    ----------
    truth
        1 where a row has a finding, 0 where not, missing where nobody looked: ``(n, k)``.
    probability
        Probability of each finding, ``(n, k)`` in 0..1; missing throughout a row that was not predicted, which is
        not scored. A DataFrame is brought into the order of ``truth``'s columns.
    predicted
        Whether each finding counts as predicted, ``(n, k)`` truth values, of predicted rows: what a classifier decided.
        Default: where the probability reaches the threshold.
    threshold
        Probability from which on a finding counts as predicted.

    Returns
    -------
    One row a finding (index ``finding``), and a last one, ``"mean"``: ``roc_auc``, ``average_precision``, ``f1``
    and ``balanced_accuracy`` of what counts as predicted, ``brier`` (mean squared error of the probability), ``n``
    (rows scored), ``prevalence`` (share of them with the finding: the average precision of guessing),
    ``n_not_predicted`` (rows with known truth alone).

    Raises
    ------
    ValueError
        Values that are neither 0, 1 nor missing; probabilities outside 0..1 or missing for some findings of a row;
        other columns or another number of rows than ``truth`` has.

    Examples
    --------
    >>> import histoweave as hw
    >>> truth = [[1, 0], [0, 1], [1, None]]
    >>> table = hw.metrics.multilabel(truth, [[0.9, 0.2], [0.3, 0.8], [0.6, 0.5]])
    >>> table.loc["mean", "roc_auc"]
    np.float64(1.0)
    """
    require_number(threshold, argument="threshold", above=0, below=1)
    known, p = findings_and_probability(truth, probability, argument="truth")
    rows = p.notna().all(axis=1).to_numpy()
    said = (p >= threshold) if predicted is None else _decisions(predicted, p, rows)
    rows = {name: _score(*(v[name].to_numpy() for v in (known, p, said)), rows) for name in known}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("finding")
    mean = table[list(SCORES)].mean().to_dict() | table[["n", "prevalence", "n_not_predicted"]].mean().to_dict()
    return pd.concat([table, pd.DataFrame([mean], index=pd.Index(["mean"], name="finding"))])


def findings(values: Any, *, argument: str) -> pd.DataFrame:
    """Return findings as a DataFrame of 0.0, 1.0 and NaN; anything else raises.

    Parameters
    ----------
    values
        A DataFrame or an array ``(n, k)`` of numbers or truth values; columns of an array are numbered.
    argument
        What to call it in errors.
    """
    frame = pd.DataFrame(values).copy()
    frame.columns = [str(name) for name in frame.columns]
    if frame.empty or frame.columns.has_duplicates:
        msg = f"`{argument}` must have one row an observation and one column a finding, got {frame.shape} with columns "
        msg += f"{listing(frame.columns)}."
        raise ValueError(msg)
    numbers = frame.apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = ~(numbers.isin([0, 1]) | frame.isna())
    if wrong.to_numpy().any():
        column = wrong.any().idxmax()
        found = frame.loc[wrong[column], column].unique()[:5].tolist()
        msg = (
            f"`{argument}` must hold 1 (has the finding), 0 (has not) or missing; {column!r} has {listing(found)}. "
            "Classes of which every row has one are labels: keep those in one column of `adata.obs`."
        )
        raise ValueError(msg)
    return numbers


def findings_and_probability(truth: Any, probability: Any, *, argument: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return findings and their probabilities with the same rows and columns; anything else raises."""
    known = findings(truth, argument=argument)
    p = _probabilities(probability, known.columns)
    same_length(**{argument: known, "probability": p})
    return known, p


def _probabilities(probability: Any, columns: pd.Index) -> pd.DataFrame:
    frame = pd.DataFrame(probability)
    if not isinstance(probability, pd.DataFrame) and frame.shape[1] == len(columns):
        frame.columns = columns
    if sorted(map(str, frame.columns)) != sorted(columns):
        msg = f"`probability` must have the columns {listing(columns)}, got {listing(frame.columns)}."
        raise ValueError(msg)
    frame = frame.rename(columns=str)[list(columns)].astype(float)
    missing = frame.isna().sum(axis=1).to_numpy()
    values = frame.to_numpy()
    if ((values < 0) | (values > 1)).any() or ((missing > 0) & (missing < len(columns))).any():
        msg = "`probability` must lie in 0..1, in every column of a row or, for rows without a prediction, in none."
        raise ValueError(msg)
    return frame


def _decisions(predicted: Any, p: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Return what counts as predicted as truth values in the form of ``p``; ``rows`` have probabilities."""
    frame = pd.DataFrame(predicted)
    if not isinstance(predicted, pd.DataFrame) and frame.shape[1] == p.shape[1]:
        frame.columns = p.columns
    frame = frame.rename(columns=str)
    if len(frame) != len(p) or sorted(frame.columns.map(str)) != sorted(p.columns):
        msg = f"`predicted` must have {len(p)} rows and the columns {listing(p.columns)}, got {frame.shape} with "
        raise ValueError(msg + f"{listing(frame.columns)}.")
    frame = frame[list(p.columns)].set_axis(p.index)
    if not frame[rows].isin([True, False]).all(axis=None):
        msg = "`predicted` must be True or False in every row with probabilities."
        raise ValueError(msg)
    return frame.where(frame.notna(), False).astype(bool)


def _score(truth: np.ndarray, p: np.ndarray, said: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    known = ~np.isnan(truth)
    n_not_predicted = float((known & ~rows).sum())
    truth, p, said = (values[known & rows] for values in (truth, p, said))
    out = dict.fromkeys(SCORES, np.nan)
    if len(truth):
        out["brier"] = float(np.square(p - truth).mean())
    if len(np.unique(truth)) == 2:
        out["roc_auc"] = float(roc_auc_score(truth, p))
        out["average_precision"] = float(average_precision_score(truth, p))
        out["f1"] = float(f1_score(truth, said, zero_division=0))
        out["balanced_accuracy"] = float(balanced_accuracy_score(truth, said))
    return out | {
        "n": float(len(truth)),
        "prevalence": float(truth.mean()) if len(truth) else np.nan,
        "n_not_predicted": n_not_predicted,
    }
