"""How good embeddings are: their diagnostics at a glance, and the crops that they find alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._obs import crops_available
from histoweave._random import SeedLike, rng
from histoweave._resolve import get_table, section_column
from histoweave._validate import require_choice, require_key, require_matrix, require_number
from histoweave.metrics._neighbours import METRICS, nearest
from histoweave.pl import _draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_COLUMNS = ("embedding", "aspect", "metric", "value", "floor", "ceiling")


def embedding_quality(results: pd.DataFrame, *, metrics: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Draw the diagnostics of embeddings as a table, an embedding a row and a metric a column.

    A cell shows the value; its colour, how far it lies from the floor (white: worth nothing) to the ceiling (blue:
    the best possible). So the darker the better, also for metrics where less is better. Metrics without a ceiling
    are grey.

    Parameters
    ----------
    results
        What ``hw.tl.embedding_quality`` returns.
    metrics
        Metrics to draw, in order. Default: all.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        A column or a metric is missing.
    TypeError
        ``results`` is not a DataFrame.
    ValueError
        There is nothing to draw.

    Examples
    --------
    >>> import pandas as pd
    >>> import histoweave as hw
    >>> results = pd.DataFrame({"embedding": ["X_image", "X_gene"], "aspect": "regions", "metric": "knn_purity",
    ...                         "value": [0.7, 0.9], "floor": 0.3, "ceiling": 1.0})
    >>> ax = hw.pl.embedding_quality(results)
    """
    if not isinstance(results, pd.DataFrame):
        msg = f"`results` must be the DataFrame of `hw.tl.embedding_quality`, got {type(results).__name__}."
        raise TypeError(msg)
    run = "hw.tl.embedding_quality(...)"
    for column in _COLUMNS:
        require_key(results, column, where="results.columns", argument="results", run=run)
    aspects = results.drop_duplicates("metric").set_index("metric")["aspect"]
    for name in metrics or ():
        require_key(aspects, name, where="results['metric']", argument="metrics")
    names = list(aspects.index) if metrics is None else list(metrics)
    if not names:
        msg = "`results` holds no score; nothing to draw."
        raise ValueError(msg)
    keys = list(dict.fromkeys(results["embedding"]))
    cells = {
        column: results.pivot(index="embedding", columns="metric", values=column).reindex(index=keys, columns=names)
        for column in ("value", "floor", "ceiling")
    }
    value, floor, ceiling = (frame.to_numpy(dtype=float) for frame in cells.values())
    share = np.clip((value - floor) / (ceiling - floor), 0, 1)
    ax = _draw.new_axes(ax, 1, 1, panel=(1.6 + 0.72 * len(names), 1.3 + 0.42 * len(keys)))[0, 0]
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_facecolor("#F0F0F0")
    for (row, column), number in np.ndenumerate(value):
        text = "" if np.isnan(number) else f"{number:.0f}" if abs(number) >= 100 else f"{number:.2f}"
        color = "white" if share[row, column] > 0.55 else "#333333"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    ax.set_xticks(range(len(names)), [n.replace("_", " ") for n in names], rotation=40, ha="right",
                  rotation_mode="anchor")  # fmt: skip
    ax.set_yticks(range(len(keys)), keys)
    _aspects(ax, [aspects[name] for name in names])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _aspects(ax: Axes, aspects: Sequence[str]) -> None:
    """Name what neighbouring columns are about above them, and part them."""
    start = 0
    for stop in range(1, len(aspects) + 1):
        if stop == len(aspects) or aspects[stop] != aspects[start]:
            ax.text((start + stop - 1) / 2, -0.6, aspects[start], ha="center", va="bottom", fontsize=9, weight="bold")
            if stop < len(aspects):
                ax.axvline(stop - 0.5, color="white", lw=4)
            start = stop


def retrieval(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.X_IMAGE,
    crops_key: str = _keys.CROPS,
    labels_key: str = _keys.REGION,
    rows: Sequence[str] | None = None,
    n: int = 6,
    k: int = 6,
    metric: str = "cosine",
    palette: Mapping[str, Any] | None = None,
    random_state: SeedLike = 0,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw crops beside the crops of other sections that an embedding finds most alike.

    A query is on the left, its nearest crops follow, nearest first; frames have the colour of the region. With one
    section, all other rows can be found.

    Parameters
    ----------
    data
        Table or SpatialData.
    key
        Embedding in ``obsm``. Rows of NaN are neither asked nor found.
    crops_key
        Crops in ``obsm``, in memory or lazy: only those drawn are read.
    labels_key
        Column of ``obs`` whose classes colour the frames; grey without a label.
    rows
        Names of the queries. Default: ``n`` at random, labelled ones where there are any.
    n
        Number of queries drawn at random.
    k
        Crops to find for each.
    metric
        ``"cosine"`` or ``"euclidean"``.
    palette
        ``{class name: colour}``, as in :func:`histoweave.pl.regions`.
    random_state
        Seed of the choice.
    library_key
        Column of ``obs`` that names the section.
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
        The embedding, crops, labels or a row are missing.
    ValueError
        A query has no embedding, or no row has one.

    Examples
    --------
    >>> import histoweave as hw
    >>> sections = hw.datasets.simulate_sections(2, n_rows=8, n_cols=8)
    >>> hw.pp.crops(sections)
    >>> encoder = hw.tl.image_encoder(sections)
    >>> ax = hw.pl.retrieval(sections)
    """
    require_choice(metric, METRICS, argument="metric")
    require_number(n, argument="n", at_least=1, integer=True)
    require_number(k, argument="k", at_least=1, integer=True)
    table = get_table(data, table_key)
    require_key(table.obsm, key, where="adata.obsm", argument="key", run="hw.tl.image_encoder(...)")
    require_key(table.obsm, crops_key, where="adata.obsm", argument="crops_key", run="hw.pp.crops(...)")
    require_key(table.obs, labels_key, where="adata.obs", argument="labels_key", run="hw.io.read_labels(...)")
    X = require_matrix(table.obsm[key], table.n_obs, name=f"`adata.obsm[{key!r}]`").astype(float)
    usable = np.isfinite(X).all(axis=1) & crops_available(table, crops_key)
    names = _draw.class_names(table.obs[labels_key])
    asked = _queries(table, usable, names, rows, n, random_state, key)
    section = section_column(table, library_key)
    if len(set(section[usable])) < 2:
        section = np.arange(table.n_obs)
    there = np.flatnonzero(usable)
    index, _ = nearest(X[asked], X[there], k, metric=metric, groups=section[asked], others=section[there])
    shown = np.column_stack([asked, np.where(index >= 0, there[index], -1)])
    return _mosaic(table.obsm[crops_key], shown, names, _draw.class_colors(table, labels_key, palette), ax)


def _queries(
    table: AnnData, usable: np.ndarray, names: np.ndarray, rows: Sequence[str] | None, n: int, seed: SeedLike, key: str
) -> np.ndarray:
    if rows is not None:
        rows = [rows] if isinstance(rows, str) else list(rows)
        for row in rows:
            require_key(pd.Series(0, index=table.obs_names), row, where="adata.obs_names", argument="rows")
        asked = table.obs_names.get_indexer(rows)
        if not usable[asked].all():
            msg = f"`rows` names {int((~usable[asked]).sum())} rows without a crop or values in `adata.obsm[{key!r}]`."
            raise ValueError(msg)
        return asked
    pool = np.flatnonzero(usable & pd.notna(names)) if (usable & pd.notna(names)).any() else np.flatnonzero(usable)
    if not len(pool):
        msg = f"No row has a crop and values in `adata.obsm[{key!r}]`."
        raise ValueError(msg)
    return np.sort(rng(seed).choice(pool, min(n, len(pool)), replace=False))


def _mosaic(crops: Any, shown: np.ndarray, names: np.ndarray, colors: Mapping[str, Any], ax: Axes | None) -> Axes:
    """Draw a grid of crops with frames; the first column stands apart. Row numbers of -1 stay empty."""
    from matplotlib.patches import Rectangle

    height, width = crops.shape[1:3]
    gap, lines, columns = width // 6 + 2, *shown.shape
    ax = _draw.new_axes(ax, 1, 1, panel=(0.8 * columns, 0.8 * lines * height / width + 0.5))[0, 0]
    for (line, place), row in np.ndenumerate(shown):
        if row < 0:
            continue
        left, top = place * (width + gap) + (gap if place else 0), line * (height + gap)
        ax.imshow(np.asarray(crops[int(row)]), extent=(left, left + width, top + height, top))
        color = _draw.MISSING if names[row] is None else colors[names[row]]
        ax.add_patch(Rectangle((left, top), width, height, fill=False, lw=3, edgecolor=color))
    ax.set(xlim=(-gap / 2, columns * (width + gap) + gap), ylim=(lines * (height + gap), -gap / 2), aspect="equal")
    ax.set_xticks([width / 2, gap + (columns * (width + gap) + width) / 2], ["query", "nearest crops"])
    ax.set_yticks([])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    drawn = [name for name in colors if name in set(names[shown[shown >= 0]])]
    if drawn:
        _draw.class_legend(ax, {name: {"color": colors[name]} for name in drawn})
    return ax
