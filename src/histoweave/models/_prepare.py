"""From whatever a section comes with to the light table a chain of models works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import CROP_PITCHES, array_pitch_um, um_per_pixel
from histoweave._record import recorded
from histoweave._resolve import get_table, has_image, replace_table, section_column, sections
from histoweave._validate import listing, require_labels, warn
from histoweave.pp._crops import crops
from histoweave.pp._expression import raw_counts
from histoweave.pp._graph import nearest_distance

if TYPE_CHECKING:
    from spatialdata import SpatialData

LAZY_FROM = 20_000  # rows; below this both scales of crops fit in a laptop's memory


def light_table(
    data: AnnData | SpatialData,
    *,
    crop_um: Mapping[str, float] | None,
    out_px: int | Mapping[str, int],
    image: bool,
    genes: bool,
    layer: str | None,
    library_key: str,
    spatial_key: str,
    table_key: str,
    crops_keys: Sequence[str] | None = None,
) -> tuple[AnnData, dict[str, float | None]]:
    """Return a table with counts in ``X``, crops in ``obsm`` and what neighbourhoods need; ``data`` is not changed.

    Crops that are there already are used when their recorded size is the wanted one and, where ``out_px`` names
    their sides, these are right too; others are cut. ``crops_keys`` names those that are needed, all by default.
    Also returned: the size of every kind of crop in um (``None`` where unknown), empty without images.
    """
    from histoweave.models.gene_autoencoder._genes import NAME_COLUMNS  # that room's classifier imports this file

    table = get_table(data, table_key)
    counts = raw_counts(table, layer)[0] if genes and table.n_vars and _has_matrix(table, layer) else None
    if counts is not None and counts.nnz == 0:
        counts = None
    obs = table.obs.copy(deep=False)
    obs[_keys.LIBRARY] = pd.Categorical(section_column(table, library_key))
    shape = (table.n_obs, table.n_vars) if counts is not None else (table.n_obs, 0)
    light = AnnData(
        counts if counts is not None else sp.csr_matrix(shape, dtype=np.float32),
        obs=obs,
        var=table.var[[c for c in NAME_COLUMNS if c in table.var]].copy() if counts is not None else None,
    )
    if spatial_key in table.obsm:
        light.obsm[_keys.SPATIAL] = np.asarray(table.obsm[spatial_key], dtype=float)
    light.uns = {"spatial": table.uns.get("spatial", {}), _keys.UNS: dict(table.uns.get(_keys.UNS, {}))}
    if not image:
        return light, {}
    sizes = dict(crop_um) if crop_um else default_sizes(data, light, table_key)
    sizes = sizes if crops_keys is None else {key: sizes.get(key) for key in crops_keys}
    return light, _add_crops(data, table, light, sizes, out_px, table_key)


def _has_matrix(table: AnnData, layer: str | None) -> bool:
    return table.X is not None or layer is not None or _keys.COUNTS in table.layers


def default_sizes(data: AnnData | SpatialData, light: AnnData, table_key: str = _keys.TABLE) -> dict[str, float | None]:
    """Return the sizes in um of the crops that are there, else multiples of the array's pitch.

    Parameters
    ----------
    data
        The object with the images.
    light
        Its table, or a light version with ``obs["library_id"]`` and the coordinates.
    table_key
        Table of a SpatialData object.
    """
    table = get_table(data, table_key)
    there = {key: recorded_um(table, key) for key in CROP_PITCHES if key in table.obsm}
    if there or _keys.SPATIAL not in light.obsm:
        return there
    pitches = []
    for name, rows in sections(light).items():
        pitch = array_pitch_um(light, name, rows)
        if pitch is None and has_image(data, name, table_key=table_key):  # no array: how far spots lie apart
            xy = light.obsm[_keys.SPATIAL][rows]
            pitch = um_per_pixel(light, name, rows).um_per_px * nearest_distance(xy)
        if pitch and np.isfinite(pitch):
            pitches.append(pitch)
    pitch = float(np.median(pitches)) if pitches else 100.0
    return {key: round(factor * pitch, 3) for key, factor in CROP_PITCHES.items()}


def recorded_um(table: AnnData, key: str) -> float | None:
    """Return the size of recorded crops in um, ``None`` where unknown."""
    sizes = recorded(table, key).get("size_um", {})
    return float(np.mean([float(v) for v in sizes.values()])) if sizes else None


def _add_crops(
    data: Any,
    table: AnnData,
    light: AnnData,
    sizes: Mapping[str, float | None],
    out_px: int | Mapping[str, int],
    table_key: str,
) -> dict[str, float | None]:
    missing, sides = {}, dict(out_px) if isinstance(out_px, Mapping) else {}
    for key, size in sizes.items():
        found = recorded_um(table, key)
        fits = size is None or found is None or abs(found / size - 1) < 0.02
        if key in table.obsm and fits and table.obsm[key].shape[1] == sides.get(key, table.obsm[key].shape[1]):
            light.obsm[key] = table.obsm[key]
            if f"{key}_available" in table.obs:
                light.obs[f"{key}_available"] = table.obs[f"{key}_available"]
        else:
            missing[key] = size
    pictured = any(has_image(data, name, table_key=table_key) for name in sections(light))
    if missing and (not pictured or _keys.SPATIAL not in light.obsm):
        if len(missing) < len(sizes) or any(key in table.obsm for key in missing):
            wanted = ", ".join(f"{k} of {v or '?'} um, {sides.get(k, out_px)} px" for k, v in missing.items())
            msg = (
                f"There is no image to cut crops from, and the table lacks {wanted}. Cut them with `hw.pp.crops(...)`."
            )
            raise KeyError(msg)
        return {}
    if missing and None in missing.values():
        msg = (
            f"The size of the crops {listing(missing)} the model was fitted on is not recorded, so they cannot be cut "
            "here. Pass a table with these crops in `adata.obsm`."
        )
        raise KeyError(msg)
    for px in sorted({sides.get(key, out_px) for key in missing}):
        crops(
            replace_table(data, light, table_key),
            size_um={key: size for key, size in missing.items() if sides.get(key, out_px) == px},
            out_px=px,
            lazy=table.n_obs > LAZY_FROM,
            table_key=table_key,
        )
    return dict(sizes)


def masked_labels(table: AnnData, labels_key: str) -> pd.Series:
    """Return the labels, checked for training, with a warning for classes of very few spots."""
    labels = require_labels(table, labels_key)
    sizes = labels.value_counts()
    rare = sizes[sizes < 5]
    if len(rare):
        warn(
            "Regions with fewer than 5 labelled spots are learned badly and cannot be checked: "
            + ", ".join(f"{name!r} ({n})" for name, n in rare.items())
            + ". Label more of them."
        )
    return labels
