"""Put layout, counts and image of a simulated section into one table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image

from histoweave import _keys
from histoweave.datasets import _simulate_counts as counts
from histoweave.datasets._simulate_image import TEXTURES, draw_stains, paint, region_textures
from histoweave.datasets._simulate_knobs import Knobs
from histoweave.datasets._simulate_layout import PITCH_UM, draw_layout

LOWRES_PX = 600


def build_section(
    generator: np.random.Generator,
    knobs: Knobs,
    programmes: counts.Programmes,
    donor_batch: np.ndarray,
    *,
    library_id: str,
    donor: str,
) -> tuple[AnnData, dict[str, Any]]:
    """Build one section and its truth; each part has its own random stream."""
    for_layout, for_counts, for_labels, for_stains, for_image = generator.spawn(5)
    drawn = draw_layout(
        for_layout,
        n_rows=knobs.n_rows,
        n_cols=knobs.n_cols,
        n_regions=knobs.n_regions,
        um_per_px=knobs.um_per_px,
        array_grid=knobs.array_grid,
        layout=knobs.layout,
        tissue_fraction=knobs.tissue_fraction,
        margin_um=knobs.margin_um,
    )
    region = drawn.region_at(drawn.xy[:, 1], drawn.xy[:, 0])
    batch = counts.join_batch(donor_batch, counts.draw_batch(for_counts, knobs.n_genes), knobs.batch_effect)
    matrix = counts.draw_counts(
        for_counts,
        counts.profiles(programmes, knobs.gene_signal, batch),
        knobs.programmes[region],
        depth=knobs.depth * math.exp(batch[-1]),
        dispersion=knobs.dispersion,
        dropout=knobs.dropout,
    )
    names = np.array([f"region_{k + 1}" for k in range(knobs.n_regions)])
    label = pd.Categorical(names[region], categories=names)
    labelled = _labelled(for_labels, region, knobs.labelled_fraction)
    obs = pd.DataFrame(
        {
            _keys.LIBRARY: pd.Categorical([library_id] * len(label)),
            _keys.DONOR: pd.Categorical([donor] * len(label)),
            _keys.IN_TISSUE: 1,
            _keys.ARRAY_ROW: drawn.array_row,
            _keys.ARRAY_COL: drawn.array_col,
            _keys.REGION: pd.Categorical(np.where(labelled, label, None), categories=names),
            "region_truth": label,
        },
        index=[f"{library_id}_{r}x{c}" for r, c in zip(drawn.array_row, drawn.array_col, strict=True)],
    )
    marker_of = [f"programme_{k + 1}" if k >= 0 else "" for k in programmes.marker_of]
    var = pd.DataFrame({"marker_of": marker_of}, index=[f"GENE{g + 1:04d}" for g in range(knobs.n_genes)])
    table = AnnData(matrix, obs=obs, var=var, obsm={_keys.SPATIAL: drawn.xy}, layers={_keys.COUNTS: matrix.copy()})

    stains = draw_stains(for_stains, knobs.stain_shift)
    pixels = None
    if knobs.image:
        textures = region_textures(knobs.textures, knobs.image_signal)
        pixels = paint(for_image, drawn, textures, stains)
    table.uns["spatial"] = {library_id: _spatial(pixels, knobs)}
    truth = {
        "texture": dict(zip(names, np.array(list(TEXTURES))[knobs.textures], strict=True)),
        "programme": {name: f"programme_{k + 1}" for name, k in zip(names, knobs.programmes, strict=True)},
        "stains": stains,
    }
    return table, truth


def _labelled(generator: np.random.Generator, region: np.ndarray, fraction: float) -> np.ndarray:
    """Choose the labelled spots: a share of each region, rounded up."""
    labelled = np.zeros(len(region), dtype=bool)
    for k in np.unique(region):
        spots = np.flatnonzero(region == k)
        labelled[generator.permutation(spots)[: math.ceil(fraction * len(spots))]] = True
    return labelled


def _spatial(pixels: np.ndarray | None, knobs: Knobs) -> dict[str, Any]:
    """Return the entry of ``uns["spatial"]``, laid out as Space Ranger's."""
    factors = {
        "tissue_hires_scalef": 1.0,
        "spot_diameter_fullres": 55.0 / knobs.um_per_px,
        "fiducial_diameter_fullres": 85.0 / knobs.um_per_px,
        "microns_per_pixel": float(knobs.um_per_px),
    }
    entry = {
        "images": {},
        "scalefactors": factors,
        "metadata": {"platform": "simulated", "array_pitch_um": PITCH_UM, "array_grid": knobs.array_grid},
    }
    if pixels is not None:
        scale = min(1.0, LOWRES_PX / max(pixels.shape))
        size = [max(1, round(n * scale)) for n in pixels.shape[1::-1]]
        lowres = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
        entry["images"] = {"hires": pixels, "lowres": lowres}
        factors["tissue_lowres_scalef"] = scale
    return entry
