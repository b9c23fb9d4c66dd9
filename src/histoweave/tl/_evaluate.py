"""Score stored predictions against labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._validate import label_name, require_key, require_labels, require_mask
from histoweave.metrics import classification, per_class

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def evaluate(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    prediction: str | None = None,
    mask_key: str | None = None,
    include_abstained: bool = True,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Score predicted regions against labels, overall and per region.

    Parameters
    ----------
    data
        AnnData or SpatialData object with predictions.
    labels_key
        Labels in ``obs``; unlabelled rows are left out.
    prediction
        Beginning of the names of the predictions, as in ``key_added`` of the function that made them.
        Default: ``labels_key``.
    mask_key
        Boolean column of ``obs``; only its True rows are scored. Name held-out rows here: a score on the rows
        a model was fitted on says nothing.
    include_abstained
        Score the rows on which the classifier abstained as well.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A tidy DataFrame: ``region`` (``"overall"`` or a region), ``metric``, ``value``. Overall metrics are those of
    :func:`histoweave.metrics.classification`, and ``coverage``, the share of labelled rows that were scored.

    Raises
    ------
    KeyError
        Predictions, labels or mask are missing.
    ValueError
        No row is labelled and predicted, or the mask is not boolean.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hidden = adata.obsm["spatial"][:, 0] > 1000
    >>> adata.obs["hidden"] = hidden
    >>> adata.obs["known"] = adata.obs["region"].where(~hidden)
    >>> clf = hw.models.RegionClassifier(image=None).fit(adata, labels_key="known")
    >>> hw.tl.predict_regions(adata, clf)
    >>> scores = hw.tl.evaluate(adata, mask_key="hidden")
    >>> scores.columns.tolist()
    ['region', 'metric', 'value']
    """
    table = get_table(data, table_key)
    labels = require_labels(table, labels_key, min_classes=1)
    name = prediction or labels_key
    run = "hw.tl.fusion_classifier(...)` or `hw.tl.predict_regions(...)"
    require_key(table.obs, name + _keys.PREDICTED, where="adata.obs", argument="prediction", run=run)
    predicted = table.obs[name + _keys.PREDICTED].astype(object).map(label_name, na_action="ignore")
    wanted = labels.notna().to_numpy() & require_mask(table, mask_key)
    rows = wanted & predicted.notna().to_numpy()
    if not include_abstained:
        require_key(table.obs, name + _keys.ABSTAIN, where="adata.obs", argument="prediction", run=run)
        rows &= ~table.obs[name + _keys.ABSTAIN].to_numpy(dtype=bool)
    if not rows.any():
        msg = f"No row is labelled in `adata.obs[{labels_key!r}]`, predicted and within the mask; nothing to score."
        raise ValueError(msg)
    truth, guess, probability, classes = _aligned(table, labels, predicted, name, rows)
    overall = classification(truth, guess, probability, classes=classes) | {"coverage": rows.sum() / wanted.sum()}
    tidy = [pd.DataFrame({"region": "overall", "metric": list(overall), "value": list(overall.values())})]
    regions = per_class(truth, guess, probability, classes=classes)
    long = regions.rename_axis("region").reset_index().melt("region", var_name="metric")
    return pd.concat([*tidy, long], ignore_index=True)


def _aligned(
    table: AnnData, labels: pd.Series, predicted: pd.Series, name: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[str]]:
    """Truth, prediction and probabilities of the scored rows over the union of their classes."""
    truth, guess = labels.to_numpy()[rows], predicted.to_numpy()[rows]
    stored = table.obsm.get(name + _keys.PROBABILITY)
    if not isinstance(stored, pd.DataFrame):
        return truth, guess, None, sorted(set(truth) | set(guess))
    classes = sorted(set(stored.columns) | set(truth))
    probability = stored.reindex(columns=classes, fill_value=0.0).to_numpy(dtype=float)[rows]
    return truth, guess, probability / probability.sum(axis=1, keepdims=True), classes
