"""Between SpatialData and the classic AnnData of Scanpy and squidpy, in both directions, without loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._image import open_image
from histoweave._resolve import get_table, is_spatialdata, section_column, section_image, sections
from histoweave._validate import listing, require_key, warn
from histoweave.io._elements import SPOT_ID, assemble, circles, image_element, require_name

if TYPE_CHECKING:
    from spatialdata import SpatialData


def to_anndata(sdata: SpatialData, *, images: Sequence[str] | None = None, table_key: str = _keys.TABLE) -> AnnData:
    """Return the table of a SpatialData object with its images in ``uns["spatial"]``.

    Parameters
    ----------
    sdata
        Sections as read by :func:`read_visium` or :func:`read_st`.
    images
        Which images to load into memory: any of ``"full"``, ``"hires"``, ``"lowres"``. By default hires and
        lowres, and the full-resolution image of a section that has neither.
    table_key
        Name of the table.

    Returns
    -------
    AnnData
        A copy of the table; for each section ``uns["spatial"][library_id]["images"][name]`` is ``(height,
        width, 3)`` uint8 and ``["scalefactors"]["tissue_{name}_scalef"]`` its pixels per full-resolution
        pixel.

    Raises
    ------
    KeyError
        There is no such table, or a section has none of the images asked for.
    ValueError
        An image is rotated, stretched or shifted against the spots, which this form cannot express.

    Notes
    -----
    Shapes are not kept: :func:`from_anndata` draws them again from ``obsm["spatial"]`` and
    ``spot_diameter_fullres``.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.io.read_visium("outs/")  # doctest: +SKIP
    >>> adata = hw.io.to_anndata(sdata)  # doctest: +SKIP
    """
    if not is_spatialdata(sdata):
        msg = f"`sdata` must be a SpatialData object, got {type(sdata).__name__}."
        raise TypeError(msg)
    table = get_table(sdata, table_key)
    spatial = {name: dict(entry) for name, entry in table.uns.get("spatial", {}).items()}
    for lib in sections(table):
        entry = spatial.setdefault(lib, {})
        entry["scalefactors"] = dict(entry.get("scalefactors", {}))
        entry["metadata"] = dict(entry.get("metadata", {}))
        entry["images"] = {}
        for name in _wanted(sdata, lib, images):
            found = section_image(sdata, lib, image=name, table_key=table_key)
            if any(found.offset) or not np.isclose(*found.scale):
                msg = (
                    f"Image {name!r} of section {lib!r} is shifted or stretched against the spots (scale "
                    f"{found.scale}, offset {found.offset}), which `uns['spatial']` cannot express. Keep the "
                    "SpatialData object."
                )
                raise ValueError(msg)
            entry["images"][name] = np.asarray(found.array)
            # the stored factor is exact, one taken back from a transformation is rounded
            key = f"tissue_{name}_scalef"
            if not np.isclose(entry["scalefactors"].get(key, np.nan), found.scale[0], rtol=1e-9):
                entry["scalefactors"][key] = found.scale[0]
    out = table.copy()
    out.uns.pop("spatialdata_attrs", None)
    out.uns["spatial"] = spatial
    return out


def _wanted(sdata: SpatialData, lib: str, images: Sequence[str] | None) -> list[str]:
    present = [name for name in ("full", "hires", "lowres") if f"{lib}_{name}_image" in sdata.images]
    if images is None:
        return [name for name in present if name != "full"] or present
    asked = [images] if isinstance(images, str) else list(images)
    chosen = [name for name in asked if name in present]
    if asked and not chosen:
        msg = f"`images={images!r}`: section {lib!r} has none of them; available: {listing(present)}."
        raise KeyError(msg)
    return chosen


def from_anndata(adata: AnnData, *, library_key: str = _keys.LIBRARY, table_key: str = _keys.TABLE) -> SpatialData:
    """Return a SpatialData object from a classic AnnData with ``obsm["spatial"]`` and ``uns["spatial"]``.

    Parameters
    ----------
    adata
        One or several sections, as :func:`squidpy.read.visium`, :func:`scanpy.read_visium` or
        :func:`to_anndata` make them. Not changed.
    library_key
        Column of ``obs`` that names the section of each row; not needed for a single section.
    table_key
        Name of the table.

    Returns
    -------
    SpatialData
        As from :func:`read_visium`. A full-resolution image named in ``metadata["source_image_path"]`` is
        opened lazily.

    Raises
    ------
    KeyError
        ``obsm["spatial"]`` is missing, or several sections cannot be told apart.
    ValueError
        A section has a name that SpatialData refuses, or coordinates are missing.

    Notes
    -----
    An image without a positive scale factor cannot be placed: it is left out with a warning. Sections without
    images are kept.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.io.from_anndata(adata)  # doctest: +SKIP
    """
    if not isinstance(adata, AnnData):
        msg = f"`adata` must be an AnnData object, got {type(adata).__name__}."
        raise TypeError(msg)
    table = get_table(adata)
    require_key(table.obsm, _keys.SPATIAL, where="adata.obsm", argument="spatial", run="hw.io.read_visium(...)")
    xy = np.asarray(table.obsm[_keys.SPATIAL], dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        msg = f"`adata.obsm['spatial']` must be (n_obs, 2) without missing values, got shape {xy.shape}."
        raise ValueError(msg)
    names = section_column(table, library_key)
    for name in set(names):
        require_name(str(name), argument=library_key)
    table = table.copy()
    table.obs[_keys.LIBRARY] = pd.Categorical(names)
    if SPOT_ID not in table.obs or table.obs.duplicated([_keys.LIBRARY, SPOT_ID]).any():
        table.obs[SPOT_ID] = np.arange(table.n_obs)
    images: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    spatial: dict[str, Any] = {}
    for lib, rows in sections(table).items():
        entry = dict(table.uns.get("spatial", {}).get(lib, {}))
        images |= _section_images(entry, lib)
        spatial[lib] = {k: v for k, v in entry.items() if k != "images"}
        diameter = _usable(entry.get("scalefactors", {}).get("spot_diameter_fullres"))
        shapes[lib] = circles(xy[rows], diameter, table.obs[SPOT_ID].to_numpy()[rows], lib)
    table.uns["spatial"] = spatial
    return assemble(table, images, shapes, table_key=table_key)


def _usable(factor: Any) -> float | None:
    return float(factor) if factor is not None and np.isfinite(factor) and factor > 0 else None


def _section_images(entry: dict[str, Any], lib: str) -> dict[str, Any]:
    factors = entry.get("scalefactors", {})
    images: dict[str, Any] = {}
    source = entry.get("metadata", {}).get("source_image_path")
    if source and "full" not in entry.get("images", {}):
        if Path(source).is_file():
            images[f"{lib}_full_image"] = image_element(open_image(source), lib)
        else:
            warn(f"Section {lib!r}: the full-resolution image {source!r} is no longer there and was left out.")
    for name, pixels in entry.get("images", {}).items():
        scale = _usable(factors.get(f"tissue_{name}_scalef", 1.0 if name == "full" else None))
        if scale is None:
            warn(
                f"Section {lib!r}: image {name!r} was left out, because `tissue_{name}_scalef` is missing or "
                "not positive."
            )
        else:
            images[f"{lib}_{name}_image"] = image_element(pixels, lib, scale)
    return images
