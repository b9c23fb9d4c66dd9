"""Embeddings in two or three dimensions, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoweave import _keys
from histoweave._layout import lay_out
from histoweave._random import child_seeds
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._validate import require_choice, require_number
from histoweave.tl._embeddings import embedding

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PACKAGES = {"umap": ("scanpy", "umap-learn"), "tsne": ("scikit-learn",), "pca": ("scikit-learn",)}


def project(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.X_IMAGE,
    method: str = "umap",
    n_components: int = 2,
    n_neighbors: int = 15,
    perplexity: float = 30.0,
    key_added: str | None = None,
    random_state: int = 0,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Bring an embedding to two dimensions and keep them, so that every picture shows the same layout.

    Parameters
    ----------
    data
        AnnData or SpatialData object with an embedding.
    key
        Embedding in ``obsm``. Rows of NaN (no such modality) stay NaN and take no part.
    method
        ``"umap"`` (neighbours and layout by Scanpy), ``"tsne"`` or ``"pca"`` (scikit-learn).
    n_components
        Dimensions.
    n_neighbors
        Neighbours of a row, for UMAP; fewer where there are few rows.
    perplexity
        Of t-SNE; at most a third of the rows.
    key_added
        Name of the result in ``obsm``. Default: ``f"{key}_{method}"``.
    random_state
        Seed.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed copy. Writes ``obsm[key_added]`` ``(n_obs, n_components)`` float32, and
    ``uns["histoweave"][key_added]``, for PCA with the share of the variance of each dimension. Draw it with
    ``hw.pl.embedding(data, key=key_added)``.

    Raises
    ------
    KeyError
        There is no such embedding.
    ValueError
        Fewer than three rows have values, or other arguments are out of range.

    Notes
    -----
    Distances between far groups mean little in t-SNE and UMAP, and sizes of groups mean nothing: judge an
    embedding by :func:`embedding_quality` and :func:`probe`.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> hw.tl.project(adata, key="X_gene", method="pca")
    >>> adata.obsm["X_gene_pca"].shape
    (400, 2)
    """
    require_choice(method, tuple(PACKAGES), argument="method")
    require_number(n_components, argument="n_components", at_least=1, integer=True)
    require_number(n_neighbors, argument="n_neighbors", at_least=2, integer=True)
    require_number(perplexity, argument="perplexity", above=0)
    require_number(random_state, argument="random_state", at_least=0, integer=True)
    out, table = working_copy(data, table_key, copy=copy)
    X, measured = embedding(table, key)
    if measured.sum() < 3:
        msg = f"`adata.obsm[{key!r}]` has {int(measured.sum())} rows with values; at least 3 are needed."
        raise ValueError(msg)
    options = {"n_components": n_components, "n_neighbors": n_neighbors, "perplexity": float(perplexity)}
    found, shares = lay_out(X[measured], method, child_seeds(random_state, 1)[0], **options)
    name = key_added or f"{key}_{method}"
    table.obsm[name] = np.full((table.n_obs, n_components), np.nan, dtype=np.float32)
    table.obsm[name][measured] = found
    extra = {} if shares is None else {"explained_variance_ratio": shares}
    params = {"key": key, "method": method} | options
    record(table, name, "tl.project", params, random_state=random_state, packages=PACKAGES[method], **extra)
    return out if copy else None
