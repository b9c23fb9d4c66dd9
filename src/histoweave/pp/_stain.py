"""Bring the sections' stain to one look: fitted per section on tissue pixels, applied pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave import _keys
from histoweave._obs import crops_available
from histoweave._random import SeedLike, child_seeds
from histoweave._record import plain, record, recorded, versions
from histoweave._resolve import sections, working_copy
from histoweave._settings import track
from histoweave._validate import listing, require_choice, require_key, require_number, warn
from histoweave.pp._stain_methods import METHODS, apply_stain, fit_stain, mean_reference, sample_pixels

if TYPE_CHECKING:
    import dask.array as da
    from anndata import AnnData
    from spatialdata import SpatialData

BATCH = 256  # crops between two steps of the progress bar


def stain_normalize(
    data: AnnData | SpatialData,
    *,
    method: str = "macenko",
    crops_key: str = _keys.CROPS,
    key_added: str | None = None,
    reference: str | Mapping[str, Any] | None = None,
    n_crops: int = 200,
    random_state: SeedLike = 0,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Bring the crops of all sections to one stain.

    What is fitted is fitted once per section, on the tissue pixels of a random sample of its crops, and then
    holds for every pixel of the section: a fit for each crop would erase the differences between them.

    Parameters
    ----------
    data
        AnnData or SpatialData object with crops (see ``hw.pp.crops``).
    method
        ``"macenko"``: two stain vectors and their strength, separated in optical density.
        ``"reinhard"``: mean and spread of the channels of the Ruderman colour space.
        ``"section"``: mean and spread of each colour channel in optical density; for any stain, as nothing
        has to be separated.
    crops_key
        Crops in ``obsm``, ``(n_obs, height, width, 3)`` uint8, in memory or lazy (then the result is lazy).
    key_added
        ``obsm`` key of the result. Default: ``crops_key`` is replaced.
    reference
        What to normalise to: ``"pooled"`` (default; the mean over the sections), the name of a section, or a
        stored reference (``adata.uns["histoweave"]["crops"]["stain"]["reference"]`` of another table).
    n_crops
        Number of crops to sample from each section.
    random_state
        Seed of the sample.
    library_key
        Column of ``obs`` that names the section.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed object if ``copy=True``. Writes to the table:

    - ``obsm[key_added]``: the normalised crops, uint8; rows without an image are copied. Glass takes
      the colour of the reference's glass.
    - ``uns["histoweave"][key_added]``: the record of the crops with an entry ``"stain"``: arguments, the
      reference and what was fitted on each section, as arrays.

    Raises
    ------
    ValueError
        A section has too little tissue or no two stains to fit, the crops are not RGB uint8, or the stored
        reference is of another method.
    KeyError
        There are no crops.

    Notes
    -----
    Macenko et al. 2009, ISBI 1107 (with the strength of each stain scaled to the reference's, as published);
    Reinhard et al. 2001, IEEE CG&A 21(5):34. Both are fitted by
    :func:`squidpy.experimental.im.fit_stain_reference`.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_sections(2)
    >>> hw.pp.crops(adata, size_um=110, out_px=64)
    >>> hw.pp.stain_normalize(adata, method="reinhard")
    """
    require_choice(method, METHODS, argument="method")
    require_number(n_crops, argument="n_crops", at_least=1, integer=True)
    out, table = working_copy(data, table_key, copy=copy)
    require_key(table.obsm, crops_key, where="adata.obsm", argument="crops_key", run="hw.pp.crops(...)")
    crops = table.obsm[crops_key]
    _require_rgb8(crops, crops_key)
    libraries = _with_crops(table, crops_key, library_key)
    _require_reference(reference, method, libraries)
    seeds = child_seeds(random_state, len(libraries))
    fitted = {
        name: fit_stain(
            sample_pixels(crops, rows, n_crops=n_crops, random_state=seed), method, name=f"section {name!r}"
        )
        for (name, rows), seed in zip(track(libraries.items(), "stain", unit="section"), seeds, strict=True)
    }
    target = reference
    if reference is None or reference == "pooled":
        target = mean_reference(list(fitted.values()))
        if len(fitted) == 1:
            warn("There is one section and no `reference`: its own stain is the reference, so nothing changes.")
    elif isinstance(reference, str):
        target = fitted[reference]

    origin = reference if isinstance(reference, str) else "pooled" if reference is None else "stored"
    code = np.full(table.n_obs, -1)
    for i, rows in enumerate(libraries.values()):
        code[rows] = i
    result = _apply(crops, code, list(fitted.values()), target)

    name = key_added or crops_key
    stain = {
        "method": method, "crops_key": crops_key, "n_crops": n_crops, "reference": target, "sections": fitted,
        "reference_from": origin, "random_state": random_state, "versions": versions("squidpy"),
    }  # fmt: skip
    base = recorded(table, crops_key) or {"function": "pp.stain_normalize", "params": {}}
    table.obsm[name] = result
    if f"{crops_key}_available" in table.obs:
        table.obs[f"{name}_available"] = table.obs[f"{crops_key}_available"]
    record(table, name, **{**base, "stain": plain(stain)})
    return out if copy else None


def _with_crops(table: AnnData, crops_key: str, library_key: str) -> dict[str, np.ndarray]:
    """Rows of each section that have a crop; sections without an image are left as they are."""
    libraries = sections(table, library_key)
    available = crops_available(table, crops_key)
    libraries = {name: rows[available[rows]] for name, rows in libraries.items() if available[rows].any()}
    if not libraries:
        msg = f"`adata.obs['{crops_key}_available']` says that no row has a crop: no section has an image."
        raise ValueError(msg)
    return libraries


def _require_rgb8(crops: Any, crops_key: str) -> None:
    shape, dtype = getattr(crops, "shape", ()), getattr(crops, "dtype", None)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
        msg = (
            f"`adata.obsm[{crops_key!r}]` must hold crops (n_obs, height, width, 3) of uint8, found shape "
            f"{shape}, dtype {dtype}. Make them with `hw.pp.crops(...)`."
        )
        raise ValueError(msg)


def _require_reference(
    reference: str | Mapping[str, Any] | None, method: str, libraries: Mapping[str, np.ndarray]
) -> None:
    if isinstance(reference, Mapping):
        if reference.get("method") != method:
            msg = f"The stored `reference` is of method {reference.get('method')!r}, but `method={method!r}`."
            raise ValueError(msg)
    elif reference is not None and reference != "pooled" and reference not in libraries:
        msg = f"`reference={reference!r}` is neither 'pooled' nor a section: {listing(libraries)}."
        raise ValueError(msg)


def _apply(
    crops: np.ndarray | da.Array, code: np.ndarray, fitted: list[dict[str, Any]], target: Mapping[str, Any]
) -> np.ndarray | da.Array:
    """Map every section from its own stain to the target; a lazy array stays lazy."""
    if hasattr(crops, "dask"):
        import dask.array as da

        crops = crops.rechunk({3: 3})
        codes = da.from_array(code.reshape(-1, 1, 1, 1), chunks=(crops.chunks[0], 1, 1, 1))
        return da.map_blocks(_apply_block, crops, codes, fitted=fitted, target=target, dtype=np.uint8)
    crops = np.asarray(crops)
    result = np.empty(crops.shape, dtype=np.uint8)
    for start in track(range(0, len(crops), BATCH), "stain", unit="batch"):
        part = slice(start, start + BATCH)
        result[part] = _apply_block(crops[part], code[part], fitted=fitted, target=target)
    return result


def _apply_block(
    crops: np.ndarray, codes: np.ndarray, *, fitted: list[dict[str, Any]], target: Mapping[str, Any]
) -> np.ndarray:
    result = crops.copy()
    codes = codes.ravel()
    for code in np.unique(codes[codes >= 0]):
        rows = codes == code
        result[rows] = apply_stain(crops[rows], fitted[code], target)
    return result
