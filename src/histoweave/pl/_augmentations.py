"""Crops beside the random views that training makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._validate import require_key
from histoweave.pl._mosaic import draw_mosaic, name_lines

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def augmentations(
    data: AnnData | SpatialData,
    *,
    key: str = "augmentations",
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw crops, one a line, each followed by random views of it.

    Parameters
    ----------
    data
        Table or SpatialData with the views of :func:`histoweave.tl.augmentations`.
    key
        Their name in ``uns``.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes; one unit is a pixel of a crop.

    Raises
    ------
    KeyError
        There are no such views.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> hw.pp.crops(adata, out_px=32)
    >>> hw.tl.augmentations(adata, preset="light")
    >>> ax = hw.pl.augmentations(adata)
    """
    table = get_table(data, table_key)
    require_key(table.uns, key, where="adata.uns", argument="key", run="hw.tl.augmentations(...)")
    views, names = np.asarray(table.uns[key]["views"]), [str(name) for name in table.uns[key]["names"]]
    ax = draw_mosaic(list(views), ax=ax)
    name_lines(ax, names, {}, views.shape[2:4])
    width = views.shape[3]
    ax.xaxis.tick_top()
    ax.set_xticks([width / 2], ["crop"])
    return ax
