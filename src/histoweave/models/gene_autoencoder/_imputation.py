"""How well hidden genes are predicted, beside what the gene's mean and the spot's neighbours tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave.metrics._imputation import imputation
from histoweave.models.gene_autoencoder._data import Rows
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs


def imputation_scores(
    table: AnnData,
    rows: Rows,
    predicted: np.ndarray,
    scored: np.ndarray,
    genes: Sequence[str],
    *,
    n_rings: int,
    library_key: str,
    spatial_key: str,
) -> pd.DataFrame:
    """Return scores per section, gene and method, see ``GeneAutoencoder.score_imputation``.

    Parameters
    ----------
    table
        The table, for its neighbourhoods.
    rows
        Its aligned expression.
    predicted
        Predicted log values ``(n_obs, genes scored)``.
    scored
        Mask of the model's genes that are scored; the table has them.
    genes
        Their names.
    n_rings, library_key, spatial_key
        As there.
    """
    truth = rows.log[:, scored].toarray()
    truth[~rows.usable] = np.nan
    rings = ring_graphs(table, n_rings=n_rings, library_key=library_key, spatial_key=spatial_key)
    around = context_features(truth, [sum(rings[1:], rings[0])])[:, truth.shape[1] :]
    alone = np.concatenate([np.diff(r.indptr)[:, None] for r in rings], axis=1).sum(axis=1) == 0
    frames = []
    for name, members in rows.rows_of.items():
        part = members[rows.usable[members]]
        if len(part) < 2:
            continue
        mean = np.broadcast_to(truth[part].mean(axis=0), truth[part].shape)
        # a spot without neighbours would stand for itself
        beside = np.where(alone[part][:, None], mean, around[part])
        for method, values in (("model", predicted[part]), ("gene mean", mean), ("neighbour mean", beside)):
            scores = imputation(truth[part], values, names=genes).reset_index()
            frames.append(scores.assign(section=name, method=method))
    columns = ["section", "gene", "method", "pearson", "spearman", "rmse"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
