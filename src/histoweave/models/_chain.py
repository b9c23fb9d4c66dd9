"""From a light table to the features a classifier sees: embeddings of what is there, and their surroundings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import listing, warn
from histoweave.models.image_encoder._model import FEATURES
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs


def embed_all(encoders: Mapping[str, Any], light: AnnData, crops_keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the embedding of every fitted modality that the table has; rows of NaN lack it.

    Counts with too few of the model's genes are left out, with a warning, where there is an image.
    """
    found = {}
    if "image" in encoders and (FEATURES in light.obsm or all(key in light.obsm for key in crops_keys)):
        found["image"] = encoders["image"].embed(light)
    if "gene" in encoders and light.n_vars:
        share = encoders["gene"].overlap(light)
        if share < encoders["gene"].min_share and "image" in found:
            warn(f"The table has only {share:.0%} of the model's genes; its counts are left out.")
        else:
            found["gene"] = encoders["gene"].embed(light)
    if not found:
        msg = (
            f"The section has nothing that this model was fitted on ({listing(encoders)}): it needs an image or "
            "crops, or raw counts of genes with the same names."
        )
        raise ValueError(msg)
    return found


def with_context(light: AnnData, found: Mapping[str, np.ndarray], n_rings: int) -> dict[str, np.ndarray]:
    """Put the mean embedding of each ring of neighbours beside every spot's own, where spots have positions."""
    if not n_rings or _keys.SPATIAL not in light.obsm:
        return dict(found)
    rings = ring_graphs(light, n_rings=n_rings)
    return {name: context_features(values, rings) for name, values in found.items()}
