"""The one place where ``AnnData | SpatialData`` becomes a table, its sections and their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._image import open_image, to_rgb8
from histoweave._validate import listing, require_key

if TYPE_CHECKING:
    import dask.array as da
    from spatialdata import SpatialData

Data = "AnnData | SpatialData"


def is_spatialdata(data: Any) -> bool:
    """Tell whether ``data`` is a SpatialData object, without importing spatialdata for a plain table."""
    return any(
        cls.__module__.startswith("spatialdata.") and cls.__name__ == "SpatialData" for cls in type(data).__mro__
    )


def get_table(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> AnnData:
    """Return the table of ``data``: the object itself, or ``sdata.tables[table_key]``.

    Raises
    ------
    TypeError
        ``data`` is neither an AnnData nor a SpatialData object.
    KeyError
        The SpatialData object has no table of that name.
    ValueError
        The table has no row, or its row names are not unique.
    """
    if isinstance(data, AnnData):
        table = data
    elif is_spatialdata(data):
        require_key(data.tables, table_key, where="sdata.tables", argument="table_key")
        table = data.tables[table_key]
    else:
        msg = f"Expected an AnnData or a SpatialData object, got {type(data).__name__}."
        raise TypeError(msg)
    if table.n_obs == 0:
        msg = "The table has no rows: the section is empty, or every spot was filtered out."
        raise ValueError(msg)
    if not table.obs_names.is_unique:
        twice = table.obs_names[table.obs_names.duplicated()].unique()
        msg = (
            f"{len(twice)} row names occur more than once ({listing(twice, 3)}). Concatenate sections with "
            "`hw.io.concat`, or run `adata.obs_names_make_unique()`."
        )
        raise ValueError(msg)
    return table


def working_copy(
    data: AnnData | SpatialData, table_key: str = _keys.TABLE, *, copy: bool = False
) -> tuple[AnnData | SpatialData, AnnData]:
    """Return ``(out, table)``: the object to write to and its table; a copy of the table when ``copy``.

    Images and shapes of a SpatialData object are shared with the copy, never duplicated.
    """
    table = get_table(data, table_key)
    if not copy:
        if table.is_view:
            table._init_as_actual(table.copy())  # what AnnData itself does on the first write to a view
        return data, table
    table = table.copy()
    if isinstance(data, AnnData):
        return table, table
    from spatialdata import SpatialData

    tables = dict(data.tables) | {table_key: table}
    out = SpatialData(
        images=dict(data.images),
        labels=dict(data.labels),
        points=dict(data.points),
        shapes=dict(data.shapes),
        tables=tables,
        attrs=dict(data.attrs),
    )
    return out, out.tables[table_key]


def replace_table(data: AnnData | SpatialData, table: AnnData, table_key: str = _keys.TABLE) -> AnnData | SpatialData:
    """Return an object with another table and the images of ``data``, for work that must not touch ``data``.

    The table may have fewer sections: what it says of its regions is brought in line.
    """
    if isinstance(data, AnnData):
        return table
    from spatialdata import SpatialData

    attrs = table.uns.get("spatialdata_attrs", {})
    if attrs.get("region_key") in table.obs:
        column = table.obs[attrs["region_key"]].astype(str)
        table.obs[attrs["region_key"]] = pd.Categorical(column)
        table.uns = dict(table.uns) | {"spatialdata_attrs": {**attrs, "region": list(dict.fromkeys(column))}}
    annotated = {"labels": dict(data.labels), "shapes": dict(data.shapes)}
    return SpatialData(images=dict(data.images), tables={table_key: table}, **annotated)


def section_column(table: AnnData, library_key: str = _keys.LIBRARY) -> np.ndarray:
    """Return the section name of every row, shape ``(n_obs,)``.

    Taken from ``obs[library_key]``, which has to be there unless it is the default; else from the region column of a
    SpatialData table; else the only entry of ``uns["spatial"]``; else all rows are one section called ``"section"``.
    """
    if library_key != _keys.LIBRARY:
        require_key(table.obs, library_key, where="adata.obs", argument="library_key")
    for key in (library_key, table.uns.get("spatialdata_attrs", {}).get("region_key")):
        if key not in table.obs:
            continue
        column = table.obs[key]
        if column.isna().any():
            msg = (
                f"`adata.obs[{key!r}]` is missing for {int(column.isna().sum())} rows. "
                "Every row belongs to one section: fill the column."
            )
            raise ValueError(msg)
        return column.astype(str).to_numpy()
    libraries = list(table.uns.get("spatial", {}))
    if len(libraries) > 1:
        msg = (
            f"`adata.uns['spatial']` holds several sections ({listing(libraries)}) but `adata.obs[{library_key!r}]` is "
            "missing, so rows cannot be told apart. Add that column, or name another with `library_key=`."
        )
        raise KeyError(msg)
    return np.full(table.n_obs, libraries[0] if libraries else "section", dtype=object)


def sections(table: AnnData, library_key: str = _keys.LIBRARY) -> dict[str, np.ndarray]:
    """Return ``{section name: row numbers}`` in order of first appearance."""
    column = section_column(table, library_key)
    return {str(name): np.flatnonzero(column == name) for name in dict.fromkeys(column)}


@dataclass(frozen=True)
class SectionImage:
    """The image of one section and how it lies on the full-resolution pixel frame of ``obsm["spatial"]``.

    Attributes
    ----------
    array
        Pixels ``(height, width, 3)`` uint8, in memory or a lazy Dask array.
    scale
        Pixels of ``array`` per full-resolution pixel, ``(x, y)``.
    offset
        Where the full-resolution origin lies in ``array``, in its pixels, ``(x, y)``.
    name
        ``"full"``, ``"hires"``, ``"lowres"`` or the name of the image element.
    """

    array: np.ndarray | da.Array
    scale: tuple[float, float]
    offset: tuple[float, float]
    name: str

    def to_pixels(self, xy: np.ndarray) -> np.ndarray:
        """Convert full-resolution coordinates ``(n, 2)`` to pixels of ``array``."""
        return np.asarray(xy, dtype=float) * self.scale + self.offset


def section_image(
    data: AnnData | SpatialData,
    library_id: str,
    *,
    image: str | None = None,
    table_key: str = _keys.TABLE,
) -> SectionImage:
    """Return the image of a section, the finest one unless ``image`` names another.

    Raises
    ------
    KeyError
        The section has no image, or none of that name; the message lists what there is.
    ValueError
        The image is rotated or sheared against the spots, or its scale factor is missing or not positive.
    """
    if is_spatialdata(data):
        found = _spatialdata_images(data, library_id)
        if found:
            return _choose(found, library_id, image)()
    return _choose(_anndata_images(get_table(data, table_key), library_id), library_id, image)()


def has_image(data: AnnData | SpatialData, library_id: str, *, table_key: str = _keys.TABLE) -> bool:
    """Tell whether a section has any image, without opening it."""
    if is_spatialdata(data) and _spatialdata_images(data, library_id):
        return True
    return bool(_anndata_images(get_table(data, table_key), library_id))


def _choose(found: dict[str, Any], library_id: str, image: str | None) -> Any:
    if not found:
        msg = (
            f"Section {library_id!r} has no image in `uns['spatial']` or `sdata.images`. Read it with "
            "`hw.io.read_visium` or `hw.io.read_st`, or work with genes only."
        )
        raise KeyError(msg)
    if image is None:
        return next(iter(found.values()))
    for name, opener in found.items():
        if image in (name, name.removeprefix(f"{library_id}_").removesuffix("_image")):
            return opener
    msg = f"`image={image!r}` is not an image of section {library_id!r}; available: {listing(found)}."
    raise KeyError(msg)


def _anndata_images(table: AnnData, library_id: str) -> dict[str, Any]:
    """Openers of a section's images in ``uns["spatial"]``, the finest first."""
    entry = table.uns.get("spatial", {}).get(library_id, {})
    factors = entry.get("scalefactors", {})
    openers: dict[str, Any] = {}
    source = entry.get("metadata", {}).get("source_image_path")
    if source:
        openers["full"] = lambda: SectionImage(to_rgb8(open_image(source)), (1.0, 1.0), (0.0, 0.0), "full")
    images = entry.get("images", {})
    for name in sorted(images, key=lambda n: -np.prod(np.shape(images[n]))):
        openers[name] = lambda name=name: _scaled(images[name], factors, name, library_id)
    return openers


def _scaled(pixels: Any, factors: dict[str, Any], name: str, library_id: str) -> SectionImage:
    key = f"tissue_{name}_scalef"
    factor = factors.get(key, 1.0 if name == "full" else None)
    if factor is None or not np.isfinite(factor) or factor <= 0:
        msg = (
            f"Section {library_id!r}: scale factor `uns['spatial'][{library_id!r}]['scalefactors'][{key!r}]` "
            f"is {'missing' if factor is None else factor}; it must be positive. Found: {listing(factors)}. "
            "Copy it from `spatial/scalefactors_json.json`."
        )
        raise ValueError(msg)
    return SectionImage(to_rgb8(pixels), (float(factor),) * 2, (0.0, 0.0), name)


def _spatialdata_images(data: SpatialData, library_id: str) -> dict[str, Any]:
    """Openers of the image elements that lie in a section's frame, the finest first."""
    from spatialdata.transformations import get_transformation

    frames = data.coordinate_systems
    frame = library_id if library_id in frames else "global" if "global" in frames else None
    found: list[tuple[float, str, Any]] = []
    # of sections "A1" and "A1_b", the image "A1_b_hires" is the second's
    others = [o for table in data.tables.values() for o in _names_of(table) if o != library_id]

    def of_section(name: str) -> bool:
        theirs = [o for o in others if _named_after(name, o)]
        if not _named_after(name, library_id):  # a picture named after nobody may be anybody's
            return len(data.images) == 1 and not theirs
        return not any(_named_after(o, library_id) for o in theirs)

    for name, element in data.images.items():
        transforms = get_transformation(element, get_all=True)
        if frame not in transforms or (frame == "global" and not of_section(name)):
            continue
        matrix = transforms[frame].to_affine_matrix(("x", "y"), ("x", "y"))
        found.append((matrix[0, 0], name, lambda m=matrix, e=element, n=name: _placed(e, m, n)))
    return {name: opener for _, name, opener in sorted(found, key=lambda item: item[:2])}


def _names_of(table: AnnData) -> list[str]:
    """Return the names of a table's sections, as far as it tells; it need not be the table that is worked on."""
    try:
        return list(dict.fromkeys(section_column(table)))
    except (KeyError, ValueError):
        return []


def _named_after(name: str, library_id: str) -> bool:
    """Tell whether a name is the section's, or begins with it as a whole."""
    return name == library_id or name.startswith(f"{library_id}_")


def _placed(element: Any, matrix: np.ndarray, name: str) -> SectionImage:
    import xarray as xr

    if not isinstance(element, xr.DataArray):  # a multiscale image: the finest level, which the matrix refers to
        element = next(iter(element["scale0"].values()))
    if abs(matrix[0, 1]) + abs(matrix[1, 0]) > 1e-9 or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        msg = (
            f"Image {name!r} is rotated, flipped or sheared against the spots (affine {matrix[:2].tolist()}). Resample "
            "it onto the spots' frame with `spatialdata.rasterize` first."
        )
        raise ValueError(msg)
    scale = (1.0 / matrix[0, 0], 1.0 / matrix[1, 1])
    offset = (-matrix[0, 2] * scale[0], -matrix[1, 2] * scale[1])
    return SectionImage(to_rgb8(element.transpose("y", "x", "c").data), scale, offset, name)
