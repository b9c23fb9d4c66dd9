"""Checks whose errors name the argument, what was found, what is available and what to run next."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

AT_ONCE = 1_000_000  # values looked at together, so that a check takes no memory to speak of


class HistoweaveWarning(UserWarning):
    """A stated fallback: the result is valid, but not quite what the call may have meant."""


def warn(message: str) -> None:
    """Warn of a fallback, pointing at the line that called into histoweave."""
    frame, depth, stacklevel = sys._getframe(), 0, 1
    while frame is not None:
        depth += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] == "histoweave":
            stacklevel = depth + 1  # the caller of the outermost of our frames, whatever lies between them
        frame = frame.f_back
    warnings.warn(message, HistoweaveWarning, stacklevel=stacklevel)


def listing(names: Collection[Any], limit: int = 12) -> str:
    """Write names for an error message, cut when there are many."""
    names = [str(n) for n in names]
    shown = ", ".join(repr(n) for n in names[:limit])
    return (shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")) or "none"


def require_key(container: Any, key: str, *, where: str, argument: str, run: str | None = None) -> None:
    """Raise ``KeyError`` unless ``key`` is in ``container``.

    ``where`` is how a user writes the container (``"adata.obsm"``), ``run`` the call that makes the key.
    """
    if key in container:
        return
    names = list(container.keys())
    close = get_close_matches(str(key), [str(n) for n in names], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    step = f" Run `{run}` first." if run else ""
    msg = f"`{argument}={key!r}` is not in `{where}`; available: {listing(names)}.{hint}{step}"
    raise KeyError(msg)


def require_choice(value: Any, options: Sequence[Any], *, argument: str) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``options``."""
    if value not in options:
        msg = f"`{argument}` must be one of {listing(options)}, got {value!r}."
        raise ValueError(msg)


def require_number(
    value: Any,
    *,
    argument: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    integer: bool = False,
) -> None:
    """Raise unless ``value`` is a finite number within the stated bounds."""
    kind = "an integer" if integer else "a number"
    allowed = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, allowed) or not np.isfinite(value):
        msg = f"`{argument}` must be {kind}, got {value!r}."
        raise TypeError(msg)
    bounds = (
        (above, ">", value > above if above is not None else True),
        (at_least, ">=", value >= at_least if at_least is not None else True),
        (below, "<", value < below if below is not None else True),
        (at_most, "<=", value <= at_most if at_most is not None else True),
    )
    broken = [f"{sign} {bound:g}" for bound, sign, holds in bounds if not holds]
    if broken:
        msg = f"`{argument}` must be {' and '.join(broken)}, got {value!r}."
        raise ValueError(msg)


def require_matrix(values: Any, n_rows: int, *, name: str) -> np.ndarray:
    """Return ``values`` as a finite-or-all-NaN-row float array of shape ``(n_rows, d)``.

    A row of NaN means that the observation has no such modality; a NaN anywhere else is an error.
    """
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[0] != n_rows or array.shape[1] == 0 or array.dtype.kind not in "fiub":
        msg = f"{name} must be an array of numbers of shape ({n_rows}, n_features), got {array.shape} {array.dtype}."
        raise ValueError(msg)
    bad = ~np.isfinite(array)
    partly = bad.any(axis=1) & ~np.isnan(array).all(axis=1)
    if partly.any():
        msg = (
            f"{name} has NaN or infinite values in {int(partly.sum())} rows (first: row "
            f"{int(partly.argmax())}). "
            "Recompute the embedding; a row without the modality must be NaN throughout."
        )
        raise ValueError(msg)
    return array


def require_counts(matrix: Any, *, where: str) -> None:
    """Raise ``ValueError`` unless all stored values are raw counts: finite, non-negative, whole numbers."""
    values = matrix.data if sp.issparse(matrix) else np.asarray(matrix).ravel()
    if values.size == 0:
        return
    if not np.issubdtype(values.dtype, np.number):
        msg = f"{where} must be numeric, got {values.dtype}."
        raise ValueError(msg)
    low = values.min()  # NaN propagates through min
    if not np.isfinite(low) or not np.isfinite(values.max()):
        msg = f"{where} has NaN or infinite values. Repair or remove them before continuing."
        raise ValueError(msg)
    if low < 0:
        msg = f"{where} has negative values (minimum {low:g}); raw counts are needed. Were they scaled?"
        raise ValueError(msg)
    pieces = range(0, 0 if np.issubdtype(values.dtype, np.integer) else values.size, AT_ONCE)
    if any(np.any(piece != np.floor(piece)) for piece in (values[i : i + AT_ONCE] for i in pieces)):
        msg = (
            f"{where} has fractional values (maximum {values.max():g}): these look normalised or "
            "log-transformed, and raw counts are needed. Point to the raw counts with `layer=`."
        )
        raise ValueError(msg)


def require_sections(values: Any, names: Iterable[str], *, argument: str) -> None:
    """Raise where a mapping by section names sections that are not there, while others are left without a value."""
    if not isinstance(values, Mapping):
        return
    names = [str(name) for name in names]
    unknown = [key for key in values if key not in names]
    if unknown and not set(names) <= set(values):
        msg = f"`{argument}` names {listing(unknown)}, but the sections are {listing(names)}."
        raise KeyError(msg)


def require_labels(table: AnnData, labels_key: str, *, min_classes: int = 2, min_spots: int = 1) -> pd.Series:
    """Return the labels as a string Series with missing values for unlabelled rows.

    Raises when the column is missing, holds no label, or fewer than ``min_classes`` classes with at least
    ``min_spots`` spots. Labels that are numbers are taken as names; blanks at the ends are removed.
    """
    require_key(table.obs, labels_key, where="adata.obs", argument="labels_key", run="hw.io.read_labels(...)")
    if labels_key == table.uns.get("spatialdata_attrs", {}).get("region_key"):
        msg = (
            f"`adata.obs[{labels_key!r}]` names the sections (`uns['spatialdata_attrs']`), it holds no labels. Run "
            "`hw.io.read_labels(...)`, or name another column with `labels_key=`."
        )
        raise ValueError(msg)
    column = table.obs[labels_key]
    missing = column.isna().to_numpy()
    values = column.astype(object).where(~missing, None)
    names = values.map(label_name, na_action="ignore")
    names = names.where(names != "", None).where(~missing, None)
    if names.notna().sum() == 0:
        msg = f"`adata.obs[{labels_key!r}]` holds no label; at least {min_classes} regions need labelled spots."
        raise ValueError(msg)
    sizes = names.value_counts()
    if (sizes >= min_spots).sum() < min_classes:
        found = ", ".join(f"{name!r} ({count})" for name, count in sizes.items())
        msg = (
            f"`adata.obs[{labels_key!r}]` needs at least {min_classes} regions with {min_spots} or more "
            f"labelled "
            f"spots each; found {found}. Label more spots."
        )
        raise ValueError(msg)
    return pd.Series(names, index=table.obs_names, name=labels_key)


def require_mask(table: AnnData, mask_key: str | None) -> np.ndarray:
    """Return a boolean column of ``obs``, all true without a key; text and gaps would count as true, and raise."""
    if mask_key is None:
        return np.ones(table.n_obs, dtype=bool)
    require_key(table.obs, mask_key, where="adata.obs", argument="mask_key")
    mask = table.obs[mask_key]
    if not pd.api.types.is_bool_dtype(mask) or mask.isna().any():
        found = f"{mask.dtype}: {listing(mask.unique(), 4)}"
        msg = f"`mask_key={mask_key!r}` must be boolean, True or False in every row, got {found}."
        raise ValueError(msg)
    return mask.to_numpy(dtype=bool)


def label_name(value: Any) -> str:
    """Return the name of a label: blanks at the ends removed, whole numbers without a decimal point."""
    if isinstance(value, float | np.floating) and value.is_integer():  # a column of integers with gaps is read as float
        value = int(value)
    return str(value).strip()
