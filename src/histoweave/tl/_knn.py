"""Label every row by its nearest labelled rows, none of them its own tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._resolve import working_copy
from histoweave._validate import listing, require_choice, require_number, warn
from histoweave.metrics._neighbours import METRICS, nearest, vote
from histoweave.models._prepare import masked_labels
from histoweave.pp._split import iter_folds
from histoweave.tl._embeddings import embedding, encoder_sections, refuse_leak
from histoweave.tl._write import write_prediction

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def knn_classifier(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.X_IMAGE,
    labels_key: str = _keys.REGION,
    fold_key: str = _keys.FOLD,
    k: int = 15,
    metric: str = "cosine",
    weights: str = "distance",
    coverage: float = 0.9,
    key_added: str | None = None,
    allow_leakage: bool = False,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict every row from its nearest labelled rows in other folds.

    Held out by construction: neither its own label nor any of its fold takes part in a row's prediction, so
    :func:`evaluate` of the result is a test. There is nothing to fit, which makes it the plainest judge of an
    embedding.

    Parameters
    ----------
    data
        AnnData or SpatialData object with an embedding and folds.
    key
        Embedding in ``obsm``.
    labels_key
        Labels in ``obs``; missing for unlabelled rows, which are predicted but never vote.
    fold_key
        Column of ``obs``: rows are predicted from rows with another value. Folds of :func:`histoweave.pp.split`,
        or ``"donor"`` or ``"library_id"`` to leave one out at a time. Rows of no fold are not predicted and do
        not vote.
    k
        Labelled rows that vote.
    metric
        ``"cosine"`` or ``"euclidean"``.
    weights
        ``"distance"``: a vote counts one over its distance. ``"uniform"``: all count the same.
    coverage
        Share of the predicted rows that should get an answer; the least confident others abstain.
    key_added
        Beginning of the names of the results. Default: ``labels_key``.
    allow_leakage
        Use folds that leak all the same; the record says so.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the coordinates.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed copy. With ``name = key_added``, writes:

    - ``obs[f"{name}_predicted"]``, categorical; missing where a row has no embedding or no fold;
    - ``obs[f"{name}_confidence"]``, the share of the votes, not calibrated;
    - ``obs[f"{name}_abstain"]``, True for the least confident rows and those without a prediction;
    - ``obsm[f"{name}_probability"]``, the shares of all regions;
    - ``uns["histoweave"][f"{name}_predicted"]``, with the sections the encoder had seen.

    Raises
    ------
    KeyError
        Embedding, labels or folds are missing.
    ValueError
        The folds leak, and ``allow_leakage`` is off; or no fold has labelled rows outside it.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_sections(3, n_rows=10, n_cols=10)
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> hw.tl.knn_classifier(adata, key="X_gene", fold_key="donor")
    >>> scores = hw.tl.evaluate(adata)
    """
    require_number(k, argument="k", at_least=1, integer=True)
    require_number(coverage, argument="coverage", above=0, at_most=1)
    require_choice(metric, METRICS, argument="metric")
    require_choice(weights, ("distance", "uniform"), argument="weights")
    out, table = working_copy(data, table_key, copy=copy)
    X, measured = embedding(table, key)
    labels = masked_labels(table, labels_key)
    where = {"fold_key": fold_key, "library_key": library_key, "spatial_key": spatial_key}
    reason = refuse_leak(
        table, [key], labels.notna().to_numpy(), allow_leakage=allow_leakage, donor_key=donor_key, **where
    )
    classes = sorted(labels.dropna().unique())
    y = pd.Categorical(labels, categories=classes).codes.astype(int)
    p = np.full((table.n_obs, len(classes)), np.nan)
    for fold in iter_folds(table, **where):
        train, test = np.flatnonzero(fold.train & measured & (y >= 0)), np.flatnonzero(fold.test & measured)
        if not len(train) or not len(test):
            warn(f"Fold {fold.name!r} is left out: {len(train)} rows to vote and {len(test)} rows to predict.")
            continue
        unseen = [classes[c] for c in np.setdiff1d(y[test][y[test] >= 0], y[train])]
        if unseen:
            warn(f"Fold {fold.name!r}: no row outside it is labelled {listing(unseen)}; its rows of that are errors.")
        p[test] = vote(*nearest(X[test], X[train], k, metric=metric), y[train], len(classes), weights=weights)
    predicted = ~np.isnan(p[:, 0])
    if not predicted.any():
        msg = (
            "No row could be predicted: no fold has labelled rows with an embedding outside it. Run `hw.pp.split(...)`."
        )
        raise ValueError(msg)
    write_prediction(
        table,
        key_added or labels_key,
        _answers(p, classes, coverage),
        pd.DataFrame(p, index=table.obs_names, columns=classes),
        "tl.knn_classifier",
        {"key": key, "labels_key": labels_key, "fold_key": fold_key, "k": k, "metric": metric, "weights": weights}
        | {"coverage": coverage},
        sections_seen=encoder_sections(table, key),
        leakage=reason or None,
    )
    return out if copy else None


def _answers(p: np.ndarray, classes: list[str], coverage: float) -> pd.DataFrame:
    """The likeliest class, its share, and whether to abstain, which rows without a prediction do."""
    predicted = ~np.isnan(p[:, 0])
    confidence = p.max(axis=1)
    least = np.quantile(confidence[predicted], 1 - coverage, method="lower")
    best = np.array(classes, dtype=object)[np.where(predicted, p.argmax(axis=1), 0)]
    return pd.DataFrame(
        {
            "predicted": np.where(predicted, best, None),
            "confidence": confidence,
            "abstain": ~(confidence >= least),
        }
    )
