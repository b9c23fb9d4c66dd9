"""What the verbs that judge embeddings share: which embeddings, which rows, which folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._record import recorded
from histoweave._resolve import section_column
from histoweave._validate import listing, require_key, require_matrix
from histoweave.pp._split import iter_folds, leakage

RUN = "hw.tl.image_encoder(...)` or `hw.tl.gene_encoder(...)"
KNOWN = (_keys.X_IMAGE, _keys.X_GENE, _keys.X_FUSED)


def embedding_keys(table: AnnData, keys: str | Sequence[str] | None) -> list[str]:
    """Return the named embeddings, by default the package's own and their ``_context`` versions that exist."""
    if keys is None:
        keys = [name for key in KNOWN for name in (key, f"{key}_context") if name in table.obsm]
        if not keys:
            msg = f"No embedding in `adata.obsm` (available: {listing(table.obsm)}). Run `{RUN}`, or name it: `keys=`."
            raise KeyError(msg)
    keys = [keys] if isinstance(keys, str) else list(dict.fromkeys(keys))
    for key in keys:
        require_key(table.obsm, key, where="adata.obsm", argument="keys", run=RUN)
    return keys


def embedding(table: AnnData, key: str, *, argument: str = "key") -> tuple[np.ndarray, np.ndarray]:
    """Return ``obsm[key]`` ``(n_obs, d)`` and which rows have values."""
    require_key(table.obsm, key, where="adata.obsm", argument=argument, run=RUN)
    values = require_matrix(table.obsm[key], table.n_obs, name=f"`adata.obsm[{key!r}]`")
    measured = ~np.isnan(values.astype(float)).any(axis=1)
    if not measured.any():
        msg = f"`adata.obsm[{key!r}]` is NaN in every row: no row has this modality."
        raise ValueError(msg)
    return values, measured


def refuse_leak(
    table: AnnData, keys: Sequence[str], labelled: np.ndarray, *, allow_leakage: bool, donor_key: str, **where: str
) -> str:
    """Return why the folds, or embeddings on them, leak, empty when they do not; raise unless leaks are allowed."""
    rings = recorded(table, where["fold_key"]).get("params", {}).get("n_rings", 2)  # as `pp.split` judged them
    reason = leakage(table, n_rings=int(rings), donor_key=donor_key, **where)
    tested = np.any([fold.test for fold in iter_folds(table, **where)], axis=0) & labelled
    for key in keys if reason is None else ():
        seen = np.intersect1d(labels_seen(table, key), section_column(table, where["library_key"])[tested].astype(str))
        if len(seen):
            reason = (
                f"the encoder of {key!r} was trained with labels of {listing(seen, 3)}, which is tested on. Train one "
                "without labels, or one a fold with `hw.tl.compare_image_training`."
            )
    if reason and not allow_leakage:
        msg = f"The folds leak: {reason} To use them all the same, pass `allow_leakage=True`."
        raise ValueError(msg)
    return reason or ""


def labels_seen(table: AnnData, key: str) -> list[str]:
    """Return the sections whose labels the encoder of ``obsm[key]`` learned from, as far as that is recorded."""
    return [str(name) for name in recorded(table, key.removesuffix("_context")).get("labels_seen", [])]


def encoder_sections(table: AnnData, key: str) -> set[str] | None:
    """Return the sections that the encoder of ``obsm[key]`` was fitted on, ``None`` where that is not recorded."""
    found = recorded(table, key.removesuffix("_context")).get("sections_seen")
    return None if found is None else {str(name) for name in found}
