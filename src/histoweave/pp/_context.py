"""What surrounds a spot: means of a representation over the rings of its neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import working_copy
from histoweave._validate import require_key, require_matrix, warn
from histoweave.pp._graph import ring_graphs

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def context_features(X: np.ndarray, rings: Sequence[sp.csr_matrix]) -> np.ndarray:
    """Return each row's own values followed by the mean over each of its rings.

    Parameters
    ----------
    X
        Features ``(n, d)``; a row of NaN stands for an observation without the modality.
    rings
        Boolean adjacencies ``(n, n)``, the nearest ring first, as :func:`ring_graphs` returns them.

    Returns
    -------
    ``(n, d * (1 + len(rings)))`` float32. Rows of NaN are left out of the means. A ring without any
    measured neighbour takes the mean of the ring before it (in the end the row's own values), so that
    spots on the border stay comparable. A row of NaN stays NaN throughout.
    """
    X = np.asarray(X, dtype=np.float32)
    measured = ~np.isnan(X).any(axis=1)
    filled = np.where(measured[:, None], X, np.float32(0))
    blocks = [np.where(measured[:, None], X, np.float32(np.nan))]
    for ring in rings:
        weights = ring.astype(np.float32)
        count = weights @ measured.astype(np.float32)
        mean = (weights @ filled) / np.maximum(count, 1)[:, None]
        block = np.where((count > 0)[:, None], mean, blocks[-1])
        block[~measured] = np.nan
        blocks.append(block)
    return np.concatenate(blocks, axis=1)


def own_values(values: np.ndarray, n_rings: int) -> np.ndarray:
    """Return the own values of rows out of what `context_features` made of them and ``n_rings`` rings."""
    return values[:, : values.shape[1] // (1 + n_rings)]


def spatial_context(
    data: AnnData | SpatialData,
    *,
    keys: str | Sequence[str] = (_keys.X_IMAGE, _keys.X_GENE),
    n_rings: int = 2,
    key_added: str | Sequence[str] | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Add the mean of each neighbourhood ring to a representation.

    A spot's surroundings often say more about its region than the spot itself. For every key, the own
    values and the mean over each ring of the true array neighbourhood are put side by side. Rings never
    leave a section.

    Parameters
    ----------
    data
        AnnData or SpatialData object.
    keys
        Representations in ``obsm``, each ``(n_obs, d)``. Left at its default, those of the two that exist.
    n_rings
        Number of rings: array steps 1, 2, ... (in a Visium section about 100 um each).
    key_added
        Names of the results, one for each of ``keys``; default ``f"{key}_context"``.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates, used where array positions are missing.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed object if ``copy=True``. Writes to the table:

    - ``obsm[key_added]``: float32 ``(n_obs, d * (1 + n_rings))``; own values, ring 1, ring 2, ... A row of
      NaN (no such modality) stays NaN; a ring without neighbours takes the ring before it.
    - ``obsp["spatial_connectivities"]``: ring 1 as a 0/1 matrix, under squidpy's name.
    - ``uns["histoweave"][key_added]``: the arguments.

    Raises
    ------
    KeyError
        A key is not in ``obsm``.
    ValueError
        A representation is partly NaN, or array positions are not unique within a section.

    Notes
    -----
    See :func:`squidpy.gr.spatial_neighbors_grid` for the same neighbourhood from coordinates.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> encoder = hw.tl.gene_encoder(adata, method="pca")
    >>> hw.pp.spatial_context(adata, keys="X_gene", n_rings=2)
    """
    out, table = working_copy(data, table_key, copy=copy)
    keys, names = _names(table, keys, key_added)
    values = [require_matrix(table.obsm[key], table.n_obs, name=f"adata.obsm[{key!r}]") for key in keys]
    rings = ring_graphs(table, n_rings=n_rings, library_key=library_key, spatial_key=spatial_key)
    alone = int(np.sum(np.diff(rings[0].indptr) == 0))
    if alone:
        warn(f"{alone} of {table.n_obs} spots have no neighbour; their context repeats their own values.")
    results = [context_features(value, rings) for value in values]
    for key, name, result in zip(keys, names, results, strict=True):
        table.obsm[name] = result
        record(table, name, "pp.spatial_context", {"keys": key, "n_rings": n_rings}, n_without_neighbours=alone)
    table.obsp[_keys.CONNECTIVITIES] = rings[0].astype(np.float64)
    return out if copy else None


def _names(
    table: AnnData, keys: str | Sequence[str], key_added: str | Sequence[str] | None
) -> tuple[list[str], list[str]]:
    default = (_keys.X_IMAGE, _keys.X_GENE)
    if keys == default and any(key in table.obsm for key in keys):
        keys = [key for key in keys if key in table.obsm]
    keys = [keys] if isinstance(keys, str) else list(keys)
    for key in keys:
        require_key(
            table.obsm,
            key,
            where="adata.obsm",
            argument="keys",
            run="hw.tl.image_encoder(...)` or `hw.tl.gene_encoder(...)",
        )
    if key_added is None:
        return keys, [f"{key}_context" for key in keys]
    names = [key_added] if isinstance(key_added, str) else list(key_added)
    if len(names) != len(keys):
        msg = f"`key_added` names {len(names)} results for {len(keys)} keys; give one for each."
        raise ValueError(msg)
    return keys, names
