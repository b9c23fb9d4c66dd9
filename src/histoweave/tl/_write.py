"""How predictions are written to a table: one set of columns, whoever made them."""

from __future__ import annotations

from typing import Any

import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._record import record


def write_prediction(
    table: AnnData,
    key_added: str,
    prediction: pd.DataFrame,
    probability: pd.DataFrame,
    function: str,
    params: dict[str, Any],
    **extra: Any,
) -> None:
    """Write ``predicted``, ``confidence``, ``abstain`` and probabilities under ``key_added``, with their record."""
    classes = list(probability.columns)
    table.obs[key_added + _keys.PREDICTED] = pd.Categorical(prediction["predicted"], categories=classes)
    table.obs[key_added + _keys.CONFIDENCE] = prediction["confidence"].to_numpy(dtype=float)
    table.obs[key_added + _keys.ABSTAIN] = prediction["abstain"].to_numpy(dtype=bool)
    table.obsm[key_added + _keys.PROBABILITY] = probability.set_index(table.obs_names).astype("float32")
    record(table, key_added + _keys.PREDICTED, function, params, classes=classes, **extra)
