"""Two-dimensional layouts of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave import _keys
from histoweave._layout import AXES, lay_out
from histoweave._random import SeedLike, child_seeds
from histoweave._record import recorded
from histoweave._resolve import get_table
from histoweave._validate import require_choice, require_key, require_matrix
from histoweave.pl import _draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def embedding(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.X_IMAGE,
    method: str = "pca",
    color: str = _keys.REGION,
    palette: Mapping[str, Any] | None = None,
    size: float | None = None,
    legend: bool = True,
    random_state: SeedLike = 0,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw an embedding in two dimensions; nothing is written to the table.

    Parameters
    ----------
    data
        Table or SpatialData.
    key
        Array in ``obsm``, shape ``(n_obs, d)``. Rows of NaN (no such modality) are left out. With ``d`` = 2,
        as :func:`histoweave.tl.project` stores it, it is drawn as it is.
    method
        ``"pca"`` (scikit-learn), ``"tsne"`` (scikit-learn) or ``"umap"`` (neighbours and layout by Scanpy).
    color
        Column of ``obs``: numbers get a colour bar, all else one colour a class.
    palette
        ``{class name: colour}``, as in :func:`histoweave.pl.regions`.
    size
        Area of a dot in points squared; by default chosen from the number of dots.
    legend
        Draw the legend or the colour bar.
    random_state
        Seed of t-SNE and UMAP.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes.

    Raises
    ------
    KeyError
        Unknown ``key`` or ``color``.
    ValueError
        Unknown ``method``, an array with NaN inside rows, or fewer than three rows to lay out.

    Notes
    -----
    Distances between far groups mean little in t-SNE and UMAP, and sizes of groups mean nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> adata.obsm["X_gene"] = np.log1p(adata.layers["counts"].toarray())
    >>> ax = hw.pl.embedding(adata, key="X_gene")
    """
    require_choice(method, ("pca", "tsne", "umap"), argument="method")
    table = get_table(data, table_key)
    require_key(table.obsm, key, where="adata.obsm", argument="key", run="hw.tl.image_encoder(...)")
    require_key(table.obs, color, where="adata.obs", argument="color")
    values = require_matrix(table.obsm[key], table.n_obs, name=f"`adata.obsm[{key!r}]`")
    rows = np.flatnonzero(np.isfinite(values).all(axis=1))
    if len(rows) < 3:
        msg = f"`adata.obsm[{key!r}]` has {len(rows)} rows with values; at least 3 are needed."
        raise ValueError(msg)
    xy, names = _layout(values[rows], method, child_seeds(random_state, 1)[0], recorded(table, key))
    ax = _draw.new_axes(ax, 1, 1, panel=(4.8, 4.0))[0, 0]
    shuffled = np.random.default_rng(0).permutation(len(rows))  # or the last class would cover the others
    options = {"s": size or np.clip(9000 / len(rows), 3, 30), "linewidths": 0, "alpha": 0.85}
    options["rasterized"] = len(rows) > 3000
    _scatter(ax, table, color, palette, xy[shuffled], rows[shuffled], legend, options)
    ax.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[], title=f"{key}, {color}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _layout(
    values: np.ndarray, method: str, seed: int, stored: Mapping[str, Any]
) -> tuple[np.ndarray, tuple[str, str]]:
    """Coordinates to draw and the names of the axes; ``stored`` says what made values that are coordinates."""
    if values.shape[1] == 2:
        xy, method, shares = values, stored.get("params", {}).get("method"), stored.get("explained_variance_ratio")
        if stored.get("function") != "tl.project":
            return xy, ("dimension 1", "dimension 2")
    else:
        xy, shares = lay_out(values, method, seed)
    names = [f"{AXES[method]} {i + 1}" for i in range(2)]
    if shares is None:
        return xy, (names[0], names[1])
    first, second = (f"{name} ({100 * share:.0f} %)" for name, share in zip(names, shares, strict=True))
    return xy, (first, second)


def _scatter(
    ax: Axes, table: AnnData, color: str, palette: Mapping[str, Any] | None, xy: np.ndarray, rows: np.ndarray,
    legend: bool, options: dict[str, Any],
) -> None:  # fmt: skip
    if _draw.is_continuous(table, color):
        values = table.obs[color].to_numpy(dtype=float)[rows]
        missing = ~np.isfinite(values)
        ax.scatter(*xy[missing].T, color=_draw.MISSING, **options)
        dots = ax.scatter(*xy[~missing].T, c=values[~missing], cmap="viridis", **options)
        if legend:
            ax.figure.colorbar(dots, ax=ax, label=color).outline.set_visible(False)
        return
    names = _draw.class_names(table.obs[color])[rows]
    colors = _draw.class_colors(table, color, palette)
    known = np.array([name is not None for name in names])
    ax.scatter(*xy[~known].T, color=_draw.MISSING, **options)
    ax.scatter(*xy[known].T, color=[colors[name] for name in names[known]], **options)
    if legend:
        marks = {name: {"color": value} for name, value in colors.items() if name in set(names)}
        _draw.class_legend(ax, marks if known.all() else marks | {"no label": {"color": _draw.MISSING}})
