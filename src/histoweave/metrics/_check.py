"""Checks shared by the scores: labels and class probabilities in, arrays of one length out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histoweave._validate import label_name, listing, require_matrix


def label_array(values: Any, *, argument: str) -> np.ndarray:
    """Return labels as an array of names ``(n,)``; missing or empty labels raise."""
    array = np.asarray(values, dtype=object)
    if array.ndim != 1 or array.size == 0:
        msg = f"`{argument}` must hold one label a row, shape (n,) with n > 0; got shape {array.shape}."
        raise ValueError(msg)
    pairs = zip(array, pd.isna(array), strict=True)
    names = np.array([None if gap else label_name(value) or None for value, gap in pairs], dtype=object)
    missing = pd.isna(names)
    if missing.any():
        msg = (
            f"`{argument}` is missing for {int(missing.sum())} of {array.size} rows. Score labelled rows only: "
            f"`mask = pd.notna({argument})`, then pass `{argument}[mask]` and the same rows of every other argument."
        )
        raise ValueError(msg)
    return names


def same_length(**arrays: Any) -> None:
    """Raise unless all arguments have the same number of rows."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` has {n}" for name, n in lengths.items())
        msg = f"All arguments need the same number of rows: {found}."
        raise ValueError(msg)


def class_list(classes: Sequence[Any]) -> list[str]:
    """Return class names as strings; a name that occurs twice raises."""
    names = [label_name(name) for name in classes]
    if len(set(names)) < len(names):
        msg = f"`classes` names a class twice: {listing(names)}."
        raise ValueError(msg)
    return names


def require_known(labels: np.ndarray, classes: Sequence[str], *, argument: str) -> None:
    """Raise unless every label is one of ``classes``."""
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        msg = (
            f"`{argument}` holds labels that are not in `classes`: {listing(unknown)}; classes: "
            f"{listing(classes)}. A class the model never saw needs a column of zeros in `probability`."
        )
        raise ValueError(msg)


def probability_array(
    probability: Any, classes: Sequence[Any] | None, *, tolerance: float = 1e-3
) -> tuple[np.ndarray, list[str]]:
    """Return class probabilities ``(n, k)`` as float64, and the class of each column.

    A DataFrame brings its own class names; ``classes`` then chooses the order of its columns.
    """
    if isinstance(probability, pd.DataFrame):
        columns = class_list(probability.columns)
        names = columns if classes is None else class_list(classes)
        if set(names) != set(columns):
            msg = (
                f"The columns of `probability` ({listing(columns)}) are not the same set as `classes` "
                f"({listing(names)})."
            )
            raise ValueError(msg)
        array = probability.to_numpy(dtype=float)[:, [columns.index(name) for name in names]]
    elif classes is None:
        msg = "`classes` must name the columns of `probability` (or pass a DataFrame with named columns)."
        raise ValueError(msg)
    else:
        names, array = class_list(classes), np.asarray(probability, dtype=float)
    if array.ndim != 2 or array.shape[1] != len(names):
        msg = (
            f"`probability` must have one column a class, shape (n, {len(names)}) for {listing(names)}; "
            f"got {array.shape}."
        )
        raise ValueError(msg)
    if not np.isfinite(array).all():
        rows = int((~np.isfinite(array)).any(axis=1).sum())
        msg = f"`probability` has NaN or infinite values in {rows} of {len(array)} rows. Leave them out."
        raise ValueError(msg)
    sums = array.sum(axis=1)
    wrong = (np.abs(sums - 1) > tolerance) | (array < 0).any(axis=1)
    if wrong.any():
        first = int(wrong.argmax())
        msg = (
            f"`probability` must be non-negative with rows that sum to 1; {int(wrong.sum())} rows do not "
            f"(row {first}: minimum {array[first].min():.3g}, sum {sums[first]:.3g}). Are these logits?"
        )
        raise ValueError(msg)
    return array, names


def labels_and_probability(
    y_true: Any, probability: Any, classes: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the column of the true class ``(n,)``, the probabilities ``(n, k)`` and the class names."""
    truth = label_array(y_true, argument="y_true")
    array, names = probability_array(probability, classes)
    same_length(y_true=truth, probability=array)
    require_known(truth, names, argument="y_true")
    return pd.Index(names).get_indexer(truth), array, names


def complete_rows(X: Any, *, argument: str = "X", **columns: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the mask of rows with values in ``X`` and in every column, and the columns of these rows as names.

    A row of NaN has no such modality, a missing label is no label: both are left out. Columns that are ``None``
    are passed over.
    """
    if sp.issparse(X):
        msg = f"`{argument}` is sparse; pass `{argument}.toarray()`."
        raise TypeError(msg)
    n = len(np.asarray(X))
    rows = ~np.isnan(require_matrix(X, n, name=f"`{argument}`").astype(float)).any(axis=1)
    given = {name: np.asarray(values, dtype=object) for name, values in columns.items() if values is not None}
    same_length(**{argument: np.asarray(X)}, **given)
    for values in given.values():
        rows &= pd.notna(values)
    if not rows.any():
        msg = f"No row has values in `{argument}`" + "".join(f" and in `{name}`" for name in given) + "."
        raise ValueError(msg)
    return rows, {name: label_array(values[rows], argument=name) for name, values in given.items()}
