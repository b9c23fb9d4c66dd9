"""Which rows a picture of scores counts, and their probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._validate import require_key, require_labels, require_mask

if TYPE_CHECKING:
    from anndata import AnnData

CLASSIFY = "hw.tl.fusion_classifier(...)"


def require_any(rows: np.ndarray, what: str) -> None:
    """Raise if no row counts."""
    if not rows.any():
        msg = f"No row has {what}; there is nothing to draw."
        raise ValueError(msg)


def stored_probability(table: AnnData, labels_key: str, probability_key: str | None) -> pd.DataFrame:
    """Return the probabilities of all rows, one named column a class."""
    key = probability_key or labels_key + _keys.PROBABILITY
    require_key(table.obsm, key, where="adata.obsm", argument="probability_key", run=CLASSIFY)
    frame = table.obsm[key]
    if not isinstance(frame, pd.DataFrame):
        msg = f"`adata.obsm[{key!r}]` must be a DataFrame whose columns are the classes, got {type(frame).__name__}."
        raise TypeError(msg)
    return frame.rename(columns=str)


def labels_and_probability(
    table: AnnData, labels_key: str, probability_key: str | None, mask_key: str | None
) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the labels of the rows that have one and were predicted, and their probabilities.

    A class the model never saw has probability 0 everywhere: its rows count as wrong.
    """
    truth = require_labels(table, labels_key, min_classes=1).to_numpy()
    frame = stored_probability(table, labels_key, probability_key)
    rows = pd.notna(truth) & require_mask(table, mask_key) & frame.notna().any(axis=1).to_numpy()
    require_any(rows, f"a label in `adata.obs[{labels_key!r}]` and probabilities")
    unseen = sorted(set(truth[rows]) - set(frame.columns))
    return truth[rows], frame[rows].assign(**dict.fromkeys(unseen, 0.0))
