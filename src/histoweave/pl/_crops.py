"""A grid of image crops, a row a region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._obs import crops_available
from histoweave._random import SeedLike, rng
from histoweave._record import recorded
from histoweave._resolve import get_table
from histoweave._validate import require_key, require_number
from histoweave.pl import _draw
from histoweave.pl._mosaic import draw_mosaic, name_lines, size_bar

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def crops(
    data: AnnData | SpatialData,
    *,
    crops_key: str = _keys.CROPS,
    groupby: str | None = _keys.REGION,
    n: int = 8,
    palette: Mapping[str, Any] | None = None,
    random_state: SeedLike = 0,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw randomly chosen crops, one row a class.

    Parameters
    ----------
    data
        Table or SpatialData.
    crops_key
        Crops in ``obsm``, shape ``(n_obs, height, width, 3)``, in memory or lazy: only those drawn are read.
    groupby
        Column of ``obs`` with the classes; rows without one are left out. ``None``: any, ``n`` rows of ``n``.
    n
        Crops a class; a class with fewer shows them all.
    palette
        ``{class name: colour}`` of the names, as in :func:`histoweave.pl.regions`.
    random_state
        Seed of the choice.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes; one unit is a pixel of a crop. The scale bar below has the width of a crop,
    where ``pp.crops`` recorded its size in um.

    Raises
    ------
    KeyError
        There are no crops or no such column.
    ValueError
        The array does not hold RGB crops, or no row has a class.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.crops(adata, size_um=100, out_px=48)
    >>> ax = hw.pl.crops(adata, n=6)
    """
    require_number(n, argument="n", at_least=1, integer=True)
    table = get_table(data, table_key)
    require_key(table.obsm, crops_key, where="adata.obsm", argument="crops_key", run="hw.pp.crops(...)")
    stack = table.obsm[crops_key]
    if np.ndim(stack) != 4 or stack.shape[3] != 3 or stack.dtype != np.uint8:
        found = f"{getattr(stack, 'dtype', type(stack).__name__)} {np.shape(stack)}"
        msg = f"`adata.obsm[{crops_key!r}]` must hold uint8 crops (n_obs, height, width, 3), got {found}."
        raise ValueError(msg)
    available = np.flatnonzero(crops_available(table, crops_key))
    groups = [(name, available[r]) for name, r in chosen_rows(table[available], groupby, n, rng(random_state))]
    lines = [list(np.asarray(stack[rows])) for _, rows in groups]
    ax = draw_mosaic(lines, n_columns=n, ax=ax)
    if groupby is not None:
        name_lines(ax, [name for name, _ in groups], _draw.class_colors(table, groupby, palette), stack.shape[1:3])
    size_bar(ax, recorded(table, crops_key).get("size_um", {}), stack.shape[2])
    return ax


def chosen_rows(
    table: AnnData, groupby: str | None, n: int, generator: np.random.Generator
) -> list[tuple[str, np.ndarray]]:
    """Return up to ``n`` random rows of every class, by its name."""
    if groupby is None:
        rows = np.sort(generator.choice(table.n_obs, min(n * n, table.n_obs), replace=False))
        return [("", rows[start : start + n]) for start in range(0, len(rows), n)]
    require_key(table.obs, groupby, where="adata.obs", argument="groupby")
    names = _draw.class_names(table.obs[groupby])
    if pd.isna(names).all():
        msg = f"`adata.obs[{groupby!r}]` holds no class. Pass `groupby=None` to draw any crops."
        raise ValueError(msg)
    groups = []
    for name in _draw.class_colors(table, groupby):
        rows = np.flatnonzero(names == name)
        if len(rows):
            groups.append((name, np.sort(generator.choice(rows, min(n, len(rows)), replace=False))))
    return groups
