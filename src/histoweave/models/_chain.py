"""From a light table to the features a classifier sees: embeddings of what is there, and their surroundings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._random import child_seeds
from histoweave._validate import listing, require_choice, warn
from histoweave.models._base import require_fitted
from histoweave.models.gene_autoencoder import ENCODERS
from histoweave.models.image_encoder import ImageEncoder
from histoweave.models.image_encoder._model import FEATURES
from histoweave.models.image_encoder._pretexts import PRETEXTS, UNTRAINED
from histoweave.pp._context import context_features
from histoweave.pp._graph import ring_graphs


def image_source(image: str | Mapping[str, float] | os.PathLike[str] | ImageEncoder | None) -> Any:
    """Return a method as it is, and a fitted encoder for one that is given or saved in a folder."""
    if isinstance(image, os.PathLike) or (isinstance(image, str) and Path(image).is_dir()):
        return ImageEncoder.load(image)
    if isinstance(image, ImageEncoder):
        require_fitted(image, "sections_seen")
    elif not isinstance(image, Mapping):
        require_choice(image, (*UNTRAINED, *PRETEXTS, None), argument="image")
    return image


def require_pixels_only(encoder: ImageEncoder) -> None:
    """Raise unless an encoder can be trained within the chain: without labels and without expression."""
    if encoder.needs or encoder.training.probe:
        what = f"{encoder.method!r} needs {' and '.join(sorted(encoder.needs))}" if encoder.needs else ""
        what = what or "`probe` needs labels"
        msg = f"{what}: fit such an `ImageEncoder` on training rows yourself, and pass it as `image=`."
        raise ValueError(msg)


def new_encoders(
    light: AnnData,
    sizes: Mapping[str, float | None],
    *,
    image: str | Mapping[str, float] | ImageEncoder | None,
    genes: str | None,
    image_options: Mapping[str, Any],
    gene_options: Mapping[str, Any],
    random_state: int,
) -> dict[str, Any]:
    """Return encoders for the modalities that the table has, not fitted but for one that was given.

    Parameters
    ----------
    light
        Its counts, if any, are in ``X``.
    sizes
        Its kinds of crops.
    image, genes, image_options, gene_options, random_state
        As for :class:`histoweave.models.RegionClassifier`.
    """
    image_seed, gene_seed = child_seeds(random_state, 2)
    encoders: dict[str, Any] = {}
    if sizes and isinstance(image, ImageEncoder):
        encoders["image"] = deepcopy(image)
    elif sizes:
        options = {"method": image, "crops_keys": tuple(sizes), "random_state": image_seed}
        encoders["image"] = ImageEncoder(**options | image_options)
    if light.n_vars:
        encoders["gene"] = ENCODERS[genes](**{"random_state": gene_seed} | gene_options)
    if not encoders:
        msg = "The table has neither images, crops nor counts that this model may use, see `image=` and `genes=`."
        raise ValueError(msg)
    return encoders


def fit_all(encoders: Mapping[str, Any], light: AnnData) -> dict[str, np.ndarray]:
    """Fit the encoders that are not, and return the embeddings of the table.

    Features that depend on the crops alone, and not on what is learned here, are kept in the table.
    """
    image = encoders.get("image")
    if image is not None and (image.sections_seen or not image.pretexts):
        light.obsm[FEATURES] = image.features(light)
    return {
        name: (e.embed if getattr(e, "sections_seen", None) else e.fit_embed)(light) for name, e in encoders.items()
    }


def embed_all(encoders: Mapping[str, Any], light: AnnData, crops_keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the embedding of every fitted modality that the table has; rows of NaN lack it.

    Counts with too few of the model's genes are left out, with a warning, where there is an image. What is found in
    the crops before standardisation stays in ``obsm[FEATURES]``: one pass over the pixels serves all who need it.
    """
    found = {}
    if "image" in encoders and (FEATURES in light.obsm or all(key in light.obsm for key in crops_keys)):
        light.obsm[FEATURES] = encoders["image"].features(light)
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
