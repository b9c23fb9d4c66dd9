"""One spot's answer beside what it rests on: places in the image, genes, modalities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._device import resolve_device
from histoweave._record import record
from histoweave._resolve import replace_table, section_column, working_copy
from histoweave._validate import listing, require_choice, require_number
from histoweave.models import RegionClassifier
from histoweave.models._base import require_fitted
from histoweave.models.explanation._contribution import answers, spot_contributions
from histoweave.models.explanation._spot import Spot

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

METHODS = ("grad_cam", "occlusion")
PREDICTED = "predicted"
LINEAR = "image:linear"


def explain_spot(
    data: AnnData | SpatialData,
    model: RegionClassifier,
    *,
    spot: str,
    target: str = PREDICTED,
    image_method: str | None = None,
    n_cells: int = 8,
    n_genes: int = 20,
    key_added: str = _keys.EXPLAIN_SPOT,
    device: str = "auto",
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> dict[str, Any]:
    """Explain the region of one spot: its probabilities, what image and genes add, where in the image, which genes.

    Parameters
    ----------
    data
        AnnData or SpatialData object with the spot's whole section.
    model
        A fitted :class:`histoweave.models.RegionClassifier`.
    spot
        Name of the row.
    target
        The region to explain, ``"predicted"`` or a name.
    image_method
        ``"occlusion"``: how much the region's log probability, of the whole classifier, falls when a cell of a crop is
        hidden in its mean colour. ``"grad_cam"``: of the region's logit in the classifier's linear head of the image,
        for an encoder with a network. Default: Grad-CAM where it can be had.
    n_cells
        Cells of a crop a side, for occlusion.
    n_genes
        Genes to keep at either end: those that speak most for the region, and those that speak most against it.
    key_added
        Name of the result in ``uns``.
    device
        As :data:`histoweave.settings`.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    A dictionary, also written to ``uns[key_added]`` with its record in ``uns["histoweave"]``: ``spot``, ``section``,
    ``region``; ``probability``, a DataFrame of ``region`` and ``probability``; ``modalities``, a DataFrame of
    ``modality``, ``contribution`` and ``log_contribution`` (Shapley values, see :func:`modality_contribution`);
    ``genes``, a DataFrame of ``gene``, ``contribution`` (how much the log probability falls when the gene is put at its
    mean over the section) and ``value`` (log-normalised, less that mean), best first; ``maps`` and ``crops``,
    dictionaries of arrays by ``obsm`` key of the crops, and ``crop_um``, their sides in um where known. What the spot
    or the model lacks is empty.

    Raises
    ------
    KeyError
        There is no such spot.
    ValueError
        The spot has nothing to be classified by, the model does not know the region, or ``"grad_cam"`` without a
        network or a linear head.

    Notes
    -----
    Contributions of genes and cells do not add up: each says what is lost without it alone. The neighbourhood's mean
    embedding stays as it is, so a spot that its neighbours decide has small contributions. Hidden cells are hidden at
    one scale while the others still show them.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=10, n_cols=10)
    >>> clf = hw.models.RegionClassifier().fit(adata)
    >>> found = hw.tl.explain_spot(adata, clf, spot=adata.obs_names[0])
    >>> sorted(found)
    ['crop_um', 'crops', 'genes', 'maps', 'modalities', 'probability', 'region', 'section', 'spot']
    """
    if not isinstance(model, RegionClassifier):
        msg = f"`model` must be a `hw.models.RegionClassifier`, got {type(model).__name__}."
        raise TypeError(msg)
    require_fitted(model, "classes")
    require_choice(target, [PREDICTED, *model.classes], argument="target")
    require_choice(image_method, (*METHODS, None), argument="image_method")
    require_number(n_cells, argument="n_cells", at_least=2, integer=True)
    require_number(n_genes, argument="n_genes", at_least=1, integer=True)
    _, table = working_copy(data, table_key)
    if spot not in table.obs_names:
        msg = f"`spot={spot!r}` is not a row of the table; rows: {listing(table.obs_names, 4)}."
        raise KeyError(msg)
    section = section_column(table, library_key)
    here = section == section[table.obs_names.get_loc(spot)]  # what the spot is compared with
    keys = {"layer": layer, "library_key": library_key, "spatial_key": spatial_key, "table_key": table_key}
    light, features = model._encode(replace_table(data, table[here].copy(), table_key), None, **keys)
    row = int(light.obs_names.get_loc(spot))
    features = {name: block for name, block in features.items() if not np.isnan(block[row]).any()}
    if not features:
        msg = f"Spot {spot!r} has neither image nor counts that the model could classify it by."
        raise ValueError(msg)
    probability, decided = answers(model._fusion, {name: block[[row]] for name, block in features.items()})
    players = tuple(sorted(features))
    region = decided[players][0] if target == PREDICTED else target
    one = Spot(model, light, features, row, model.classes.index(region))
    number = np.array([one.region])
    shares = [spot_contributions(probability, number, players, log=log)[0] for log in (False, True)]
    method = _method(model, image_method) if "image" in features else None
    scales = list(model._encoders["image"].crops_keys) if method else []
    if method == "grad_cam":
        maps = {key: one.grad_cam(key, resolve_device(device)) for key in scales}
    else:
        maps = {key: one.hidden_cells(key, n_cells) for key in scales}
    genes = one.hidden_genes() if "gene" in features else pd.DataFrame(columns=["gene", "contribution", "value"])
    ends = genes if len(genes) <= 2 * n_genes else pd.concat([genes.head(n_genes), genes.tail(n_genes)])
    result = {
        "spot": spot,
        "section": str(section[here][0]),
        "region": region,
        "probability": pd.DataFrame({"region": model.classes, "probability": probability[players][0]}),
        "modalities": pd.DataFrame(
            {"modality": list(players), "contribution": shares[0], "log_contribution": shares[1]}
        ),
        "genes": ends.reset_index(drop=True),
        "maps": {key: values.astype(np.float32) for key, values in maps.items()},
        "crops": {key: np.asarray(light.obsm[key][row]) for key in scales},
        "crop_um": {key: float(model._sizes[key]) for key in scales if model._sizes[key] is not None},
    }
    table.uns[key_added] = result
    params = {"spot": spot, "target": target, "image_method": method, "n_cells": n_cells, "n_genes": n_genes}
    record(table, key_added, "tl.explain_spot", params, sections_seen=model.sections_seen, packages=("torch",))
    return result


def _method(model: RegionClassifier, asked: str | None) -> str:
    """Return how to look at the image."""
    can = model._encoders["image"].has_network and LINEAR in model._fusion._members
    if asked == "grad_cam" and not can:
        msg = (
            "`image_method='grad_cam'` needs an image encoder with a network and a linear head on the image alone "
            "(`heads` of the fusion). Use `image_method='occlusion'`."
        )
        raise ValueError(msg)
    return asked or ("grad_cam" if can else "occlusion")
