"""Building the SpatialData object of a section: what every reader and converter shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import nearest_distance
from histoweave._image import to_rgb8
from histoweave._validate import warn

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData
    from xarray import DataArray

SPOT_ID = "spot_id"


def sanitise(name: str) -> str:
    """Turn any name into one that SpatialData accepts: letters, digits, ``_``, ``-`` and ``.``."""
    return re.sub(r"[^\w.\-]", "_", str(name)).lstrip("._") or "section"


def require_name(name: str, *, argument: str = "library_id") -> str:
    """Raise ``ValueError`` unless ``name`` can name elements of a SpatialData object."""
    if not isinstance(name, str) or name != sanitise(name):
        msg = (
            f"`{argument}={name!r}` cannot name a section: use letters, digits, '_', '-' and '.', and start "
            f"with a letter or a digit, for example {sanitise(name)!r}."
        )
        raise ValueError(msg)
    return name


def image_element(pixels: Any, library_id: str, scale: float = 1.0) -> DataArray:
    """Return an image element ``(c, y, x)`` uint8 in the frame of its section.

    ``scale`` is the number of pixels of ``pixels`` per full-resolution pixel.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale
    from xarray import DataArray

    array = DataArray(to_rgb8(pixels), dims=("y", "x", "c")).transpose("c", "y", "x")
    place = Identity() if scale == 1.0 else Scale([1.0 / scale, 1.0 / scale], axes=("x", "y"))
    return Image2DModel.parse(array, c_coords=["r", "g", "b"], transformations={library_id: place})


def circles(xy: np.ndarray, diameter: float | None, index: Any, library_id: str) -> GeoDataFrame:
    """Return the spots of a section as circles.

    Without a diameter they are drawn 0.55 of the distance between spots wide, the proportion of Visium.
    """
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    if diameter is None:
        distance = nearest_distance(xy)
        diameter = 0.55 * distance if np.isfinite(distance) and distance > 0 else 1.0
        warn(
            f"Section {library_id!r} has no usable `spot_diameter_fullres`: its circles are drawn {diameter:.1f} px "
            "wide from the distance between spots (1 px for a single spot). Results in um need the pixel size."
        )
    return ShapesModel.parse(xy, geometry=0, radius=diameter / 2, index=index, transformations={library_id: Identity()})


def assemble(
    table: AnnData,
    images: Mapping[str, Any],
    shapes: Mapping[str, GeoDataFrame],
    *,
    table_key: str = _keys.TABLE,
) -> SpatialData:
    """Join table, images and shapes; the region column of the table is ``obs["library_id"]``."""
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    if SPOT_ID not in table.obs:
        table.obs[SPOT_ID] = np.arange(table.n_obs)
    regions = [str(name) for name in dict.fromkeys(table.obs[_keys.LIBRARY])]
    table.uns.pop("spatialdata_attrs", None)
    table = TableModel.parse(
        table,
        region=regions if len(regions) > 1 else regions[0],
        region_key=_keys.LIBRARY,
        instance_key=SPOT_ID,
    )
    return SpatialData(images=dict(images), shapes=dict(shapes), tables={table_key: table})
