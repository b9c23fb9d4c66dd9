"""How much tissue each crop shows, and how sharp it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._obs import crops_available
from histoweave._record import record
from histoweave._resolve import has_image, sections, working_copy
from histoweave._validate import listing, require_key, require_number, warn
from histoweave.pp._tissue import (
    FALLBACK_OD,
    coarse_image,
    optical_density,
    require_crops,
    thumbnail,
    tissue_threshold,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

BATCH = 256
NOISE = (2 / 255) ** 2  #: variance of a flat crop's grey values; keeps its sharpness near 0


def image_qc(
    data: AnnData | SpatialData,
    *,
    crops_key: str = _keys.CROPS,
    threshold: float | None = None,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Measure the tissue fraction and the sharpness of every crop.

    A pixel is tissue when its optical density, the mean over the channels of ``-log10((value + 1) / 256)``,
    is above a threshold. The threshold of a section divides its whole image in two (Otsu's method on a
    thumbnail), since crops alone may show no empty slide. Pixels that are black in every channel were masked
    out and are no tissue.

    Sharpness is the variance of the Laplacian of the grey values over their variance: what share of the
    contrast is as fine as a pixel. It does not depend on how strong the stain is; compare it between crops of
    one size and scale only.

    Parameters
    ----------
    data
        A table with crops, or a SpatialData object with one.
    crops_key
        Crops in ``obsm``, in memory or lazy; lazy ones are read once, a chunk at a time.
    threshold
        Optical density above which a pixel is tissue, instead of the one found in the image.
    library_key
        Column of ``obs`` that names the section.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed copy. Writes

    ``obs[f"{crops_key}_tissue"]``
        Fraction of tissue pixels, 0..1. NaN for rows of a section without image.
    ``obs[f"{crops_key}_sharpness"]``
        Sharpness, 0 and above. NaN for rows of a section without image.
    ``uns["histoweave"][f"{crops_key}_qc"]``
        The threshold of each section.

    Raises
    ------
    KeyError
        There are no crops of that name.
    ValueError
        They are not ``(n_obs, height, width, 3)`` uint8.

    References
    ----------
    Otsu, IEEE Trans. Syst. Man Cybern. 9, 1979. Pech-Pacheco et al., ICPR 2000 (variance of the Laplacian).

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata)
    >>> hw.pp.image_qc(adata)
    >>> bool((adata.obs["crops_tissue"] > 0.5).mean() > 0.5)
    True
    """
    out, table = working_copy(data, table_key, copy=copy)
    require_key(table.obsm, crops_key, where="adata.obsm", argument="crops_key", run="hw.pp.crops(...)")
    crops = table.obsm[crops_key]
    require_crops(crops, crops_key)
    rows = sections(table, library_key)
    if threshold is not None:
        require_number(threshold, argument="threshold", above=0)
        thresholds = dict.fromkeys(rows, float(threshold))
    else:
        thresholds = _thresholds(out, list(rows), table_key)
    limit = np.empty(table.n_obs, np.float32)
    for name, index in rows.items():
        limit[index] = thresholds[name]
    measured = _measure(crops, limit)
    measured[~crops_available(table, crops_key)] = np.nan
    table.obs[f"{crops_key}_tissue"] = measured[:, 0]
    table.obs[f"{crops_key}_sharpness"] = measured[:, 1]
    params = {"crops_key": crops_key, "threshold": threshold}
    record(table, f"{crops_key}_qc", "pp.image_qc", params, tissue_threshold=thresholds)
    return out if copy else None


def _thresholds(data: AnnData | SpatialData, names: list[str], table_key: str) -> dict[str, float]:
    found = {}
    for name in names:
        if has_image(data, name, table_key=table_key):
            found[name] = tissue_threshold(thumbnail(coarse_image(data, name, table_key=table_key)))
    unknown = [name for name in names if found.get(name) is None]
    if unknown:
        warn(
            f"Tissue cannot be told from slide in the images of {listing(unknown)} (none, or of one colour): an "
            f"optical density of {FALLBACK_OD} is taken as the limit. Pass `threshold=` to choose."
        )
    return {name: FALLBACK_OD if found.get(name) is None else found[name] for name in names}


def _measure(crops: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return tissue fraction and sharpness ``(n, 2)``, one chunk of crops in memory at a time and thread."""
    import dask.array as da

    if isinstance(crops, np.ndarray):
        crops = da.from_array(crops, chunks=(BATCH, -1, -1, -1), name=False)
    crops = crops.rechunk({1: -1, 2: -1, 3: -1})
    limits = da.from_array(limit, chunks=(crops.chunks[0],))[:, None, None, None]
    measured = da.map_blocks(
        _measure_block,
        crops,
        limits,
        dtype=np.float32,
        chunks=(crops.chunks[0], (2,)),
        drop_axis=[2, 3],
        meta=np.empty((0, 0), np.float32),
    )
    return np.array(measured.compute(), dtype=np.float32)


def _measure_block(crops: np.ndarray, limit: np.ndarray) -> np.ndarray:
    tissue = (optical_density(crops) > limit[..., 0]).mean(axis=(1, 2))
    return np.stack([tissue, _sharpness(crops)], axis=1).astype(np.float32)


def _sharpness(crops: np.ndarray) -> np.ndarray:
    grey = crops @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    if min(grey.shape[1:]) < 3:  # too small for a Laplacian
        return np.full(len(grey), np.nan, np.float32)
    sides = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    laplacian = 4 * grey[:, 1:-1, 1:-1] - sides
    return laplacian.var(axis=(1, 2)) / (grey.var(axis=(1, 2)) + NOISE)
