"""Features that have learned nothing: random projections of the pixels and of the expression."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from histoweave._random import rng
from histoweave._resolve import sections
from histoweave.loaders import crop_batches, require_crops
from histoweave.models._sections import SectionScaler
from histoweave.pp._expression import raw_counts

N_PROJECTIONS = 64
SIDE = 32  # crops are averaged to so many pixels a side: the projection of larger ones is the same noise, only slower


def random_features(
    table: AnnData, crops_key: str, layer: str | None, *, library_key: str, random_state: int
) -> dict[str, np.ndarray]:
    """Return random projections ``(n_obs, 64)`` of the crops and of the log-normalised counts that the table holds.

    They are standardised within each section, as embeddings are; rows without crops or counts are 0, the mean.
    """
    generator = rng(random_state)
    found = {}
    if crops_key in table.obsm:
        found["random pixels"] = _pixels(table, crops_key, generator)
    if table.n_vars and _is_counts(table, layer):
        found["random genes"] = _genes(table, layer, generator)
    rows_of = sections(table, library_key)
    return {
        name: np.nan_to_num(SectionScaler().fit(values).transform(values, rows_of)) for name, values in found.items()
    }


def _is_counts(table: AnnData, layer: str | None) -> bool:
    try:
        return raw_counts(table, layer)[0].nnz > 0
    except ValueError:  # log values alone, or repeated gene names: no such null
        return False


def _pixels(table: AnnData, crops_key: str, generator: np.random.Generator) -> np.ndarray:
    import torch
    import torch.nn.functional as F

    crops, available = require_crops(table, crops_key)
    side = min(SIDE, *crops.shape[1:3])
    weights = torch.from_numpy(generator.normal(size=(3 * side * side, N_PROJECTIONS)).astype(np.float32))
    out = np.full((table.n_obs, N_PROJECTIONS), np.nan)
    for rows, batch in crop_batches(crops, np.flatnonzero(available), description="random pixels"):
        small = F.adaptive_avg_pool2d(batch.permute(0, 3, 1, 2).float() / 255, side)
        out[rows] = (small.flatten(1) @ weights).numpy()
    return out


def _genes(table: AnnData, layer: str | None, generator: np.random.Generator) -> np.ndarray:
    counts = raw_counts(table, layer)[0]
    depth = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    scale = np.divide(np.median(depth[depth > 0]), depth, out=np.zeros(len(depth)), where=depth > 0)
    weights = generator.normal(size=(counts.shape[1], N_PROJECTIONS))
    out = np.asarray((sp.diags(scale) @ counts).tocsr().log1p() @ weights)
    out[depth == 0] = np.nan
    return out
