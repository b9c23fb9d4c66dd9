"""Image crops around every spot, into ``obsm``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import Calibration, describe, um_per_pixel
from histoweave._obs import in_tissue
from histoweave._record import record
from histoweave._resolve import SectionImage, has_image, section_image, sections, working_copy
from histoweave._validate import listing, require_key, require_number, require_sections, warn
from histoweave.pp._windows import Windows, cut_lazily, cut_now

if TYPE_CHECKING:
    from spatialdata import SpatialData

COARSE_PX = 8  #: a window of fewer pixels of the image says little about tissue
OUTSIDE_SHARE = 0.05


def crops(
    data: AnnData | SpatialData,
    *,
    size_um: float | Mapping[str, float] = 110.0,
    size_px: float | Mapping[str, float] | None = None,
    out_px: int | None = 64,
    key_added: str = _keys.CROPS,
    image: str | None = None,
    lazy: bool = False,
    um_per_px: float | Mapping[str, float] | None = None,
    chunk: int = 256,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Cut a square window of the image around every spot and bring it to one size.

    A window is centred on ``obsm[spatial_key]`` and cut from the finest image of the section. Where the
    window has another number of pixels than ``out_px`` it is resampled with antialiasing (a triangle filter
    as wide as the step, exact at fractions of a pixel); where it has the same number it is moved by at most
    half a pixel and copied. What lies outside the image is white, as the empty slide is, and counted.

    Parameters
    ----------
    data
        A table with ``obsm[spatial_key]``, or a SpatialData object with such a table and images.
    size_um
        Side of the window in micrometres. Several scales in one call: ``{"crops": 110, "crops_context":
        300}``.
    size_px
        Side of the window in full-resolution pixels instead, one number or a mapping; takes the place of
        ``size_um``.
    out_px
        Side of a crop in pixels. ``None`` keeps the pixels of the image, where all sections have the same
        size.
    key_added
        Where the crops go, unless the size is a mapping.
    image
        Name of the image to use (``"full"``, ``"hires"``, ...). By default the finest of each section.
    lazy
        Write a Dask array that reads the image when it is computed, ``chunk`` crops at a time. Only the
        windows being computed and a cache of at most 256 MB are in memory.
    um_per_px
        Micrometres per full-resolution pixel where the data do not tell, one number or one for each section.
    chunk
        Crops in a chunk of a lazy array.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        Full-resolution pixel coordinates (x, y) in ``obsm``.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed copy. Writes for each key:

    ``obsm[key]``
        ``(n_obs, out_px, out_px, 3)`` uint8, a NumPy or a Dask array.
    ``obs[f"{key}_padded"]``
        Fraction of the window outside the image, 0..1.
    ``obs[f"{key}_available"]``
        Only where some section has no image: False for its rows, whose crops are zero.
    ``uns["histoweave"][key]``
        Sizes, micrometres per pixel and their source, image and enlargement of each section, padded spots.

    Raises
    ------
    ValueError
        Coordinates are missing values, more than 5 % of a section's spots in tissue lie outside its image,
        the size of a pixel is not known, or ``out_px=None`` gives sections of different sizes.
    KeyError
        No section has an image, or none of the name ``image``.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata, size_um={"crops": 110, "crops_context": 300}, out_px=64)
    >>> adata.obsm["crops"].shape[1:]
    (64, 64, 3)
    """
    sizes, unit = _sizes(size_um, size_px, key_added)
    if out_px is not None:
        require_number(out_px, argument="out_px", at_least=1, integer=True)
    require_number(chunk, argument="chunk", at_least=1, integer=True)
    out, table = working_copy(data, table_key, copy=copy)
    xy = coordinates(table, spatial_key)
    needs_um = unit == "um" or um_per_px is not None
    rows_of = sections(table, library_key)
    require_sections(um_per_px, rows_of, argument="um_per_px")
    found = [
        _section(data, table, name, rows, xy, image, table_key).calibrated(table, needs_um, um_per_px, spatial_key)
        for name, rows in rows_of.items()
    ]
    _report(found, table.n_obs)
    usable = [s for s in found if s.image is not None]
    windows = {key: _windows(usable, size, unit, out_px, key) for key, size in sizes.items()}
    images, rows = [s.image.array for s in usable], [s.rows for s in usable]
    cut = partial(cut_lazily, chunk=chunk) if lazy else cut_now
    values = {key: cut(images, rows, windows[key], table.n_obs) for key in sizes}
    params = {"image": image, "lazy": lazy, "chunk": chunk if lazy else None}
    for key, size in sizes.items():
        _write(table, key, values[key], windows[key], usable, size, unit, params)
    return out if copy else None


def coordinates(table: AnnData, spatial_key: str = _keys.SPATIAL) -> np.ndarray:
    """Return the full-resolution pixel coordinates ``(n_obs, 2)``, finite."""
    require_key(table.obsm, spatial_key, where="adata.obsm", argument="spatial_key", run="hw.io.read_visium(...)")
    xy = np.asarray(table.obsm[spatial_key], dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2:
        msg = f"`adata.obsm[{spatial_key!r}]` must have shape ({table.n_obs}, 2) as (x, y), got {xy.shape}."
        raise ValueError(msg)
    bad = ~np.isfinite(xy).all(axis=1)
    if bad.any():
        where = f"adata.obsm[{spatial_key!r}]"
        msg = (
            f"`{where}` has missing or infinite coordinates in {int(bad.sum())} rows (first: "
            f"{table.obs_names[bad.argmax()]!r}). Remove them: `adata[np.isfinite({where}).all(axis=1)].copy()`."
        )
        raise ValueError(msg)
    return xy


@dataclass(frozen=True)
class _Section:
    name: str
    rows: np.ndarray
    centres: np.ndarray | None = None  # in pixels of the image
    image: SectionImage | None = None
    calibration: Calibration | None = None
    outside: int = 0

    def side(self, size: float, unit: str) -> float:
        """Return the side of the window in full-resolution pixels."""
        return size if unit == "px" else size / self.calibration.um_per_px

    def calibrated(self, table: AnnData, needs_um: bool, um_per_px: Any, spatial_key: str) -> _Section:
        """Return the section with the size of its pixels, where it has an image and the size is needed."""
        if self.image is None or not needs_um:
            return self
        calibration = um_per_pixel(table, self.name, self.rows, um_per_px=um_per_px, spatial_key=spatial_key)
        return replace(self, calibration=calibration)


def _sizes(size_um: Any, size_px: Any, key_added: str) -> tuple[dict[str, float], str]:
    size, unit = (size_um, "um") if size_px is None else (size_px, "px")
    sizes = dict(size) if isinstance(size, Mapping) else {key_added: size}
    if not sizes:
        msg = f"`size_{unit}` is an empty mapping; give at least one key and size."
        raise ValueError(msg)
    for value in sizes.values():
        require_number(value, argument=f"size_{unit}", above=0)
    return {str(key): float(value) for key, value in sizes.items()}, unit


def _section(
    data: Any, table: AnnData, name: str, rows: np.ndarray, xy: np.ndarray, image: str | None, table_key: str
) -> _Section:
    if not has_image(data, name, table_key=table_key):
        return _Section(name, rows)
    try:
        picture = section_image(data, name, image=image, table_key=table_key)
    except FileNotFoundError as error:
        msg = (
            f"{error} If it has moved, correct `uns['spatial'][{name!r}]['metadata']['source_image_path']`, or "
            "pass `image='hires'` for the stored image."
        )
        raise FileNotFoundError(msg) from error
    centres = picture.to_pixels(xy[rows])
    height, width = picture.array.shape[:2]
    off = ((centres < 0) | (centres >= (width, height))).any(axis=1)
    outside, in_tissue = int(off.sum()), _in_tissue(table, rows)
    if off[in_tissue].sum() > OUTSIDE_SHARE * in_tissue.sum():
        low, high = centres.min(axis=0), centres.max(axis=0)
        msg = (
            f"Section {name!r}: {outside} of {len(rows)} spots lie outside its image {picture.name!r} ({width} x "
            f"{height} pixels; spots from x {low[0]:.0f}, y {low[1]:.0f} to x {high[0]:.0f}, y {high[1]:.0f}). "
            "Likely causes: x and y are swapped, the scale factor belongs to another image, or the coordinates "
            "are not full-resolution pixels. Run `hw.pp.check_alignment(...)` for the cause and the fix."
        )
        raise ValueError(msg)
    return _Section(name, rows, centres, picture, outside=outside)


def _in_tissue(table: AnnData, rows: np.ndarray) -> np.ndarray:
    """Return which spots should lie on the image: arrays may reach beyond it where there is no tissue."""
    inside = in_tissue(table)[rows]
    return inside if inside.any() else np.ones(len(rows), bool)


def _report(found: list[_Section], n_obs: int) -> None:
    """Say what is not quite as asked: sections without image, spots outside, sources that disagree."""
    missing = [s for s in found if s.image is None]
    if len(missing) == len(found):
        msg = (
            f"No section has an image (sections: {listing([s.name for s in found])}). Read one with "
            "`hw.io.read_visium` or `hw.io.read_st`, or work with genes only."
        )
        raise KeyError(msg)
    if missing:
        count = sum(len(s.rows) for s in missing)
        warn(
            f"{count} of {n_obs} rows belong to sections without an image ({listing([s.name for s in missing])}): "
            "their crops are zero and marked as not available."
        )
    outside = {s.name: s.outside for s in found if s.outside}
    if outside:
        warn(f"Spots outside their image: {outside}. What lies outside is white; see the `_padded` column.")
    disagreeing = [s for s in found if s.calibration is not None and s.calibration.disagreements()]
    if disagreeing:
        first = disagreeing[0].calibration
        warn(
            f"The sources of the pixel size disagree in {listing([s.name for s in disagreeing])}; "
            f"{disagreeing[0].name!r}: {describe(first)}; {first.source} is used. Pass `um_per_px=` to choose; "
            "`hw.pp.check_alignment` tells more."
        )


def _windows(found: list[_Section], size: float, unit: str, out_px: int | None, key: str) -> list[Windows]:
    windows = []
    for s in found:
        side = s.side(size, unit)
        windows.append(Windows.around(s.centres, side * s.image.scale[0], side * s.image.scale[1], out_px))
    sides = {s.name: w.out for s, w in zip(found, windows, strict=True)}
    if len(set(sides.values())) > 1:
        msg = (
            f"`out_px=None` gives {key!r} crops of different sizes ({sides}), which do not fit one array. "
            "Pass `out_px=`, e.g. 64."
        )
        raise ValueError(msg)
    coarse = {s.name: round(w.width, 1) for s, w in zip(found, windows, strict=True) if w.width < COARSE_PX}
    if coarse:
        warn(
            f"The image is coarse: a {size:g} {unit} window is only so many pixels wide: {coarse}. The crops in "
            f"{key!r} are enlarged and show little; read the section with its full-resolution image."
        )
    return windows


def _write(
    table: AnnData,
    key: str,
    values: Any,
    windows: list[Windows],
    found: list[_Section],
    size: float,
    unit: str,
    params: dict[str, Any],
) -> None:
    padded = np.zeros(table.n_obs, np.float32)
    available = np.zeros(table.n_obs, bool)
    for s, w in zip(found, windows, strict=True):
        padded[s.rows], available[s.rows] = w.padded(s.image.array.shape), True
    table.obsm[key] = values
    table.obs[f"{key}_padded"] = padded
    if not available.all():
        table.obs[f"{key}_available"] = available
    elif f"{key}_available" in table.obs:  # left by an earlier run
        del table.obs[f"{key}_available"]
    calibrations = {s.name: s.calibration for s in found if s.calibration is not None}
    record(
        table,
        key,
        "pp.crops",
        params | {f"size_{unit}": size, "out_px": windows[0].out},
        size_um={n: size if unit == "um" else size * c.um_per_px for n, c in calibrations.items()},
        size_px={s.name: s.side(size, unit) for s in found},
        um_per_px={n: c.um_per_px for n, c in calibrations.items()},
        um_per_px_source={n: c.source for n, c in calibrations.items()},
        image={s.name: s.image.name for s in found},
        enlargement={s.name: w.out / w.width for s, w in zip(found, windows, strict=True)},
        n_padded={s.name: int((padded[s.rows] > 0).sum()) for s in found},
    )
