"""Embeddings in few dimensions: principal components, t-SNE, UMAP."""

from __future__ import annotations

from typing import Final

import numpy as np

AXES: Final = {"pca": "PC", "tsne": "t-SNE", "umap": "UMAP"}  # how the axes of a layout are called


def lay_out(
    values: np.ndarray,
    method: str,
    seed: int,
    *,
    n_components: int = 2,
    n_neighbors: int = 15,
    perplexity: float = 30.0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return coordinates ``(n, n_components)`` float32 of finite ``values`` ``(n, d)``, and explained shares of PCA.

    Dimensions that the values do not have are 0. Few rows get fewer neighbours and a lower perplexity.
    """
    if method == "pca":
        from sklearn.decomposition import PCA

        model = PCA(n_components=min(n_components, *values.shape), random_state=seed)
        xy = model.fit_transform(values)
        missing = n_components - xy.shape[1]
        return np.pad(xy, ((0, 0), (0, missing))).astype(np.float32), np.pad(
            model.explained_variance_ratio_, (0, missing)
        )
    if method == "tsne":
        from sklearn.manifold import TSNE

        init = "random" if min(values.shape) < n_components else "pca"
        # the fast method draws in up to 3 dimensions
        model = TSNE(
            n_components,
            perplexity=min(perplexity, (len(values) - 1) / 3),
            init=init,
            method="barnes_hut" if n_components < 4 else "exact",
            random_state=seed,
        )
        return model.fit_transform(values).astype(np.float32), None
    import scanpy as sc
    from anndata import AnnData

    scratch = AnnData(np.asarray(values, dtype=np.float32))
    sc.pp.neighbors(scratch, n_neighbors=min(n_neighbors, len(values) - 1), use_rep="X", random_state=seed)
    sc.tl.umap(scratch, n_components=n_components, random_state=seed)
    return scratch.obsm["X_umap"].astype(np.float32), None
