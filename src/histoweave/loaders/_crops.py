"""Batches of crops, from memory or streamed from a lazy array."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from histoweave._obs import crops_available
from histoweave._settings import track
from histoweave._validate import require_key


def require_crops(table: AnnData, crops_key: str) -> tuple[Any, np.ndarray]:
    """Return the crops ``(n, height, width, 3)`` uint8 and which rows have any, shape ``(n,)``."""
    require_key(table.obsm, crops_key, where="adata.obsm", argument="crops_key", run="hw.pp.crops(...)")
    crops = table.obsm[crops_key]
    dtype = getattr(crops, "dtype", type(crops).__name__)
    if crops.ndim != 4 or crops.shape[3] != 3 or dtype != np.uint8:
        msg = (
            f"`adata.obsm[{crops_key!r}]` must hold RGB crops (n, height, width, 3) uint8, got shape {crops.shape} "
            f"{dtype}. Cut them with `hw.pp.crops(...)`."
        )
        raise ValueError(msg)
    return crops, crops_available(table, crops_key)


def crop_batches(
    crops: Any, rows: np.ndarray, *, batch_size: int = 256, description: str = "crops"
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield ``(row numbers, crops (n, height, width, 3) uint8)`` for the given rows, in order.

    Lazy crops are read chunk by chunk, so that no chunk is computed twice and only one is in memory.
    """
    chunks = getattr(crops, "chunks", None)
    edges = np.concatenate([[0], np.cumsum(chunks[0])]) if chunks else np.arange(0, len(crops) + batch_size, batch_size)
    spans = [(a, min(b, len(crops))) for a, b in pairwise(edges)]
    wanted = np.zeros(len(crops), dtype=bool)
    wanted[rows] = True
    for start, stop in track(spans, description, unit="batch"):
        here = start + np.flatnonzero(wanted[start:stop])
        if not len(here):
            continue
        block = np.asarray(crops[start:stop])
        for i in range(0, len(here), batch_size):
            part = here[i : i + batch_size]
            yield part, torch.from_numpy(np.ascontiguousarray(block[part - start]))
