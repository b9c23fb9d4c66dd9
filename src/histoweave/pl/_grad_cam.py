"""What a network looks at: maps over crops, and over the section they were cut from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave import _keys
from histoweave._maps import spread
from histoweave._random import SeedLike, rng
from histoweave._record import recorded
from histoweave._resolve import get_table, sections
from histoweave._validate import listing, require_key, require_number
from histoweave.pl import _draw
from histoweave.pl._crops import chosen_rows
from histoweave.pl._mosaic import draw_mosaic, left_edge, name_lines, size_bar

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

CANVAS_PX = 1000
RUN = "hw.tl.grad_cam(...)"


def grad_cam(
    data: AnnData | SpatialData,
    *,
    key: str | Sequence[str] = _keys.GRAD_CAM,
    groupby: str | None = None,
    rows: Iterable[str] | None = None,
    n: int = 4,
    alpha: float = 0.7,
    cmap: str = "viridis",
    palette: Mapping[str, Any] | None = None,
    random_state: SeedLike = 0,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw crops beside the same crops under their maps, one line a class.

    Parameters
    ----------
    data
        Table or SpatialData with the maps of :func:`histoweave.tl.grad_cam` and the crops they explain.
    key
        Maps in ``obsm``; those of several models, classes or layers stand side by side.
    groupby
        Column of ``obs`` with the classes of the lines. Default: the class that the first map explains.
    rows
        Names of the rows to draw. Default: ``n`` of each class, chosen at random.
    n
        Crops a class.
    alpha
        Opacity where a map is highest; nothing is drawn where it is 0.
    cmap
        Colours of the map.
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
    The Axes; one unit is a pixel of a crop. Each map is scaled by its own highest value: compare places, not
    strengths.

    Raises
    ------
    KeyError
        There are no such maps, crops, rows or column.
    ValueError
        No row has a map.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> hw.pp.crops(adata, out_px=32)
    >>> encoder = hw.models.ImageEncoder("simclr", backbone="tiny", batch_size=64, n_components=8, max_epochs=1)
    >>> hw.tl.grad_cam(adata, model=encoder.fit(adata))
    >>> ax = hw.pl.grad_cam(adata, n=3)
    """
    require_number(n, argument="n", at_least=1, integer=True)
    require_number(alpha, argument="alpha", above=0, at_most=1)
    table = get_table(data, table_key)
    keys = [key] if isinstance(key, str) else list(key)
    maps = {name: _maps(table, name) for name in keys}
    crops_key = recorded(table, keys[0]).get("params", {}).get("crops_key", _keys.CROPS)
    require_key(table.obsm, crops_key, where="adata.obsm", argument="crops_key", run="hw.pp.crops(...)")
    crops = table.obsm[crops_key]
    known = np.all([np.isfinite(m).all(axis=(1, 2)) for m in maps.values()], axis=0)
    if not known.any():
        msg = f"No row has maps in {listing([f'obsm[{name!r}]' for name in keys])}. Run `{RUN}` on the rows to draw."
        raise ValueError(msg)
    groupby = keys[0] + _keys.EXPLAINED_CLASS if groupby is None else groupby
    require_key(table.obs, groupby, where="adata.obs", argument="groupby")
    groups = _groups(table, rows, known, groupby, n, random_state)
    lines = []
    for _, members in groups:
        pictures = np.asarray(crops[members])
        shown = [pictures, *(_overlay(pictures, m[members], cmap, alpha) for m in maps.values())]
        lines.append([picture for pair in zip(*shown, strict=True) for picture in pair])
    group, (height, width) = 1 + len(keys), crops.shape[1:3]
    ax = draw_mosaic(lines, group=group, ax=ax)
    name_lines(ax, [name for name, _ in groups], _draw.class_colors(table, groupby, palette), (height, width))
    size_bar(ax, recorded(table, crops_key).get("size_um", {}), width)
    if len(keys) > 1:
        middle = [left_edge(place, width, group) + width / 2 for place in range(group)]
        ax.xaxis.tick_top()
        ax.set_xticks(middle, ["crop", *keys], rotation=35, ha="left", fontsize=8)
    return ax


def grad_cam_section(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.GRAD_CAM,
    library_id: str | None = None,
    image: bool | str = True,
    alpha: float = 0.7,
    cmap: str = "viridis",
    scale_bar: bool = True,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw the maps of a section where their crops were cut, over its image.

    Parameters
    ----------
    data
        Table or SpatialData with ``obsm["spatial"]`` and the maps of :func:`histoweave.tl.grad_cam`. Explain one named
        class there (``target="tumour"``): maps of different classes do not belong on one picture.
    key
        Maps in ``obsm``.
    library_id
        The section; needed where there are several.
    image
        As in :func:`histoweave.pl.regions`.
    alpha
        Opacity where the map is highest.
    cmap
        Colours of the map.
    scale_bar
        Draw it, where the size of a pixel is known.
    library_key
        Column of ``obs`` with the section names.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes, in full-resolution pixels. Where crops overlap, their maps are averaged; one scale holds for the
    section, up to the 99th percentile.

    Raises
    ------
    KeyError
        There are no such maps or section, or the size of the crops was not recorded.
    ValueError
        No row of the section has a map, or there are several sections and none was chosen.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> hw.pp.crops(adata, out_px=32)
    >>> encoder = hw.models.ImageEncoder("simclr", backbone="tiny", batch_size=64, n_components=8, max_epochs=1)
    >>> hw.tl.grad_cam(adata, model=encoder.fit(adata), target="region_1")
    >>> ax = hw.pl.grad_cam_section(adata)
    """
    require_number(alpha, argument="alpha", above=0, at_most=1)
    table = get_table(data, table_key)
    maps, found = _maps(table, key), sections(table, library_key)
    if library_id is None and len(found) > 1:
        msg = f"The table holds several sections; choose one with `library_id=`: {listing(found)}."
        raise ValueError(msg)
    library_id = next(iter(found)) if library_id is None else library_id
    require_key(found, library_id, where="the sections of the table", argument="library_id")
    rows = found[library_id][np.isfinite(maps[found[library_id]]).all(axis=(1, 2))]
    if not len(rows):
        msg = f"No row of section {library_id!r} has a map in `adata.obsm[{key!r}]`. Run `{RUN}` on its rows."
        raise ValueError(msg)
    crops_key = recorded(table, key).get("params", {}).get("crops_key", _keys.CROPS)
    sizes = recorded(table, crops_key).get("size_px", {})
    require_key(sizes, library_id, where=f"adata.uns['histoweave'][{crops_key!r}]['size_px']", argument="library_id",
                run="hw.pp.crops(...)")  # fmt: skip
    xy, side = _draw.coordinates(table, rows), float(sizes[library_id])
    values, box = stitch(np.clip(maps[rows], 0, None), xy, side)
    below = _draw.thumbnail(data, library_id, box=box, image=image, table_key=table_key)
    height = 4.0 * float(np.clip((box[3] - box[1]) / (box[2] - box[0]), 0.3, 2)) + 0.35
    ax = _draw.new_axes(ax, 1, 1, panel=(4.9, height))[0, 0]
    if below is not None:
        below.draw(ax)
    _draw_stitched(ax, values, box, cmap, alpha)
    _draw.frame(ax, box)
    if scale_bar:
        _draw.scale_bar(ax, _draw.pixel_size(table, library_id, rows))
    classes = table.obs[key + _keys.EXPLAINED_CLASS].iloc[rows].unique() if key + "_class" in table.obs else []
    ax.set_title(f"evidence for {classes[0]}" if len(classes) == 1 else "evidence for the explained class", fontsize=11)
    return ax


def stitch(maps: np.ndarray, xy: np.ndarray, side: float) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return the mean of maps ``(n, h, w)`` around ``xy`` on one canvas (NaN where there is none), and its box.

    ``side`` is the side of a crop in full-resolution pixels, the box (left, top, right, bottom) is in these as well.
    """
    low, high = xy.min(axis=0) - side / 2, xy.max(axis=0) + side / 2
    step = max(float((high - low).max()) / CANVAS_PX, side / 64)  # finer than a map is not needed
    cells = max(1, round(side / step))
    step = side / cells
    total, count = np.zeros((2, *(np.ceil((high - low) / step).astype(int) + 1)[::-1]))
    corners = np.round((xy - side / 2 - low) / step).astype(int)
    for (x, y), one in zip(corners, spread(maps.astype(np.float32), (cells, cells)), strict=True):
        total[y : y + cells, x : x + cells] += one
        count[y : y + cells, x : x + cells] += 1
    right, bottom = low + np.array(total.shape[::-1]) * step
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), (low[0], low[1], float(right), float(bottom))


def _draw_stitched(
    ax: Axes, values: np.ndarray, box: tuple[float, float, float, float], cmap: str, alpha: float
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    top = float(np.nanpercentile(values, 99)) or float(np.nanmax(values)) or 1.0
    scale = ScalarMappable(Normalize(0, top, clip=True), colormaps[cmap])
    colors = scale.to_rgba(np.nan_to_num(values))
    colors[..., 3] = alpha * np.clip(np.nan_to_num(values) / top, 0, 1)
    ax.imshow(colors, extent=(box[0], box[2], box[3], box[1]), interpolation="antialiased", zorder=1)
    bar = ax.figure.colorbar(scale, ax=ax, fraction=0.045, pad=0.02, label="logit")
    bar.outline.set_visible(False)


def _overlay(crops: np.ndarray, maps: np.ndarray, cmap: str, alpha: float) -> np.ndarray:
    """Blend crops with their maps, each scaled by its highest value."""
    from matplotlib import colormaps

    maps = np.clip(spread(maps.astype(np.float32), crops.shape[1:3]), 0, None)
    top = maps.max(axis=(1, 2), keepdims=True)
    share = maps / np.where(top > 0, top, 1)
    weight = alpha * share[..., None]
    return (crops * (1 - weight) + 255 * colormaps[cmap](share)[..., :3] * weight).round().astype(np.uint8)


def _maps(table: AnnData, key: str) -> np.ndarray:
    require_key(table.obsm, key, where="adata.obsm", argument="key", run=RUN)
    maps = np.asarray(table.obsm[key])
    if maps.ndim != 3 or maps.dtype.kind != "f":
        msg = f"`adata.obsm[{key!r}]` must hold maps (n_obs, h, w), got {maps.shape} {maps.dtype}. Run `{RUN}`."
        raise ValueError(msg)
    return maps


def _groups(
    table: AnnData, rows: Iterable[str] | None, known: np.ndarray, groupby: str, n: int, random_state: SeedLike
) -> list[tuple[str, np.ndarray]]:
    """Return the rows of every line: those named, or some of each class."""
    if rows is None:
        places = np.flatnonzero(known)
        return [(name, places[chosen]) for name, chosen in chosen_rows(table[known], groupby, n, rng(random_state))]
    names = [rows] if isinstance(rows, str) else list(rows)
    numbers = table.obs_names.get_indexer(names)
    if (numbers < 0).any() or not known[numbers].all() or not names:
        missing = [name for name, i in zip(names, numbers, strict=True) if i < 0 or not known[i]]
        msg = f"`rows` names rows without maps: {listing(missing, 4)}. Run `{RUN}` on them."
        raise KeyError(msg)
    classes = _draw.class_names(table.obs[groupby])[numbers]
    return [(str(name), numbers[classes == name]) for name in dict.fromkeys(classes)]
