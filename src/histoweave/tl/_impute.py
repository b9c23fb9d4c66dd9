"""Expression of genes that were not measured, or measured badly, as a trained autoencoder predicts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave.models.gene_autoencoder import GeneAutoencoder
from histoweave.models.gene_autoencoder._apply import gene_list

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def impute(
    data: AnnData | SpatialData,
    *,
    model: GeneAutoencoder,
    genes: Sequence[str] | None = None,
    score: bool = True,
    n_rings: int = 1,
    layer: str | None = None,
    key_added: str = "imputed",
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame | None:
    """Predict genes of every spot from its other genes, and say how well that works.

    Parameters
    ----------
    data
        AnnData or SpatialData object with raw counts.
    model
        A fitted :class:`histoweave.models.GeneAutoencoder`.
    genes
        Genes of the model to predict, all hidden at once. Default: all of the model's, hidden a fifth at a time,
        so that no value is predicted from itself.
    score
        Score the genes that the table has, each predicted without having been seen, beside two nulls. Needs
        coordinates or array positions.
    n_rings
        Rings of neighbours that one of the nulls averages.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    key_added
        Name of the results.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    The scores as :meth:`histoweave.models.GeneAutoencoder.score_imputation` returns them, one row a section, gene
    and method (``"model"``, ``"gene mean"``, ``"neighbour mean"``); ``None`` with ``score=False``. Writes:

    - ``layers[key_added]``, log-normalised float32 ``(n_obs, n_vars)``; NaN for genes that were not predicted and
      for rows without counts;
    - ``obsm[key_added]``, a DataFrame of the predicted genes that the table lacks; only where there are any;
    - ``uns["histoweave"][key_added]``.

    Raises
    ------
    KeyError
        A gene is not one of the model's.
    RuntimeError
        The model is not fitted.
    ValueError
        The table has too few of the model's genes, or its values are not raw counts.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> model = hw.models.GeneAutoencoder(n_latent=16, max_epochs=5).fit(adata)
    >>> scores = hw.tl.impute(adata, model=model)
    >>> adata.layers["imputed"].shape
    (400, 300)
    """
    _, table = working_copy(data, table_key)
    keys = {"layer": layer, "library_key": library_key}
    if not isinstance(model, GeneAutoencoder):
        msg = f"`model` must be a `hw.models.GeneAutoencoder`, got {type(model).__name__}."
        raise TypeError(msg)
    genes = gene_list(genes)
    predicted, scores = model.impute(table, genes=genes, **keys), None
    if score:
        scores = model.score_imputation(table, predicted=predicted, n_rings=n_rings, spatial_key=spatial_key, **keys)
    column = pd.Series(model.alignment(table)._columns, index=model.genes)[predicted.columns].to_numpy()
    here = column >= 0
    values = np.full(table.shape, np.nan, dtype=np.float32)
    values[:, column[here]] = predicted.loc[:, here]
    table.layers[key_added] = values
    if not here.all():
        table.obsm[key_added] = predicted.loc[:, ~here]
    params = {"genes": genes, "layer": layer}
    record(
        table, key_added, "tl.impute", params, sections_seen=model.sections_seen, packages=("torch",),
        n_genes=predicted.shape[1],
    )  # fmt: skip
    return scores
