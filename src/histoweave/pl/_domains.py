"""Domains on the tissue, and how two partitions overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoweave import _keys, metrics
from histoweave._resolve import get_table
from histoweave._validate import require_choice, require_key
from histoweave.pl import _draw
from histoweave.pl._regions import regions

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def domains(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.DOMAIN,
    labels_key: str = _keys.REGION,
    table_key: str = _keys.TABLE,
    **kwargs: Any,
) -> Axes | np.ndarray:
    """Draw domains over the histology, beside the labels where there are any.

    Their title names their number and, where labels exist, the adjusted Rand index over the labelled spots.

    Parameters
    ----------
    data
        Table or SpatialData with ``obsm["spatial"]`` and domains.
    key
        Column of ``obs`` with the domains.
    labels_key
        Column of ``obs`` with the labels; left out where it does not exist or is empty.
    table_key
        Name of the table in a SpatialData object.
    kwargs
        Passed to :func:`regions`: ``library_id``, ``image``, ``size``, ``palette``, ``ax``, ...

    Returns
    -------
    The Axes, or an array of Axes ``(n_sections, 2)`` with labels beside them.

    Raises
    ------
    KeyError
        There are no domains.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> encoder = hw.tl.gene_encoder(adata, n_components=20)
    >>> hw.tl.domains(adata, n_domains=4)
    >>> axes = hw.pl.domains(adata)
    """
    table = get_table(data, table_key)
    require_key(table.obs, key, where="adata.obs", argument="key", run="hw.tl.domains(...)")
    labelled = labels_key in table.obs and pd.notna(_draw.class_names(table.obs[labels_key])).any()
    columns = [labels_key, key] if labelled else [key]
    axes = regions(data, color=columns, labels_key=labels_key, table_key=table_key, **kwargs)
    title = f"{key}, {table.obs[key].nunique()} in all"
    if labelled:
        truth, found = _both(table, labels_key, key)
        if len(truth) > 1:
            title += f"; ARI {metrics.clustering(truth, found)['adjusted_rand']:.2f}"
    np.atleast_2d(axes)[0, -1].set_title(title, fontsize=11)
    return axes


def overlap(
    data: AnnData | SpatialData,
    *,
    first: str = _keys.REGION,
    second: str = _keys.DOMAIN,
    kind: str = "alluvial",
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw how two partitions of the same spots overlap.

    Spots without a value in either column are left out.

    Parameters
    ----------
    data
        Table or SpatialData.
    first, second
        Columns of ``obs``, such as labels and domains, or the domains of two runs.
    kind
        ``"alluvial"``: bands from the parts of the first, left, to those of the second, right, as wide as the number
        of spots they share. ``"table"``: these numbers, coloured by their share of each part of the first.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes; parts of the second are in the order that crosses the fewest bands (by their mean position).

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        No spot has a value in both columns.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=8, n_cols=8)
    >>> adata.obs["half"] = adata.obs["array_row"] > 3
    >>> ax = hw.pl.overlap(adata, second="half")
    """
    require_choice(kind, ("alluvial", "table"), argument="kind")
    table = get_table(data, table_key)
    for argument, key in (("first", first), ("second", second)):
        run = "hw.tl.domains(...)" if key == _keys.DOMAIN else None
        require_key(table.obs, key, where="adata.obs", argument=argument, run=run)
    left, right = _both(table, first, second)
    if not len(left):
        msg = f"No spot has a value in both `adata.obs[{first!r}]` and `adata.obs[{second!r}]`."
        raise ValueError(msg)
    counts = pd.crosstab(left, right)
    counts = counts.loc[[name for name in _draw.class_colors(table, first) if name in counts.index]]
    place = (counts.to_numpy() * np.arange(len(counts))[:, None]).sum(axis=0) / counts.sum(axis=0)
    counts = counts[place.sort_values(kind="stable").index]
    height = 1.2 + 0.55 * max(counts.shape)
    ax = _draw.new_axes(ax, 1, 1, panel=(5.2, height))[0, 0]
    if kind == "table":
        _table(ax, counts)
        ax.set(xlabel=second, ylabel=first)
    else:
        _alluvial(ax, counts, _draw.class_colors(table, first), _draw.class_colors(table, second))
        for x, name in ((0, first), (1, second)):
            ax.text(x, -0.06, name, ha="center", va="bottom", fontsize=10)
    scores = metrics.clustering(left, right)
    ax.set_title(f"{len(left)} spots, ARI {scores['adjusted_rand']:.2f}, NMI {scores['nmi']:.2f}", fontsize=10)
    return ax


def _both(table: AnnData, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    left, right = (_draw.class_names(table.obs[key]) for key in (first, second))
    rows = pd.notna(left) & pd.notna(right)
    return left[rows], right[rows]


def _table(ax: Axes, counts: pd.DataFrame) -> None:
    share = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(counts.to_numpy()):
        dark = share[row, column] > 0.55
        ax.text(column, row, f"{value:d}", ha="center", va="center", fontsize=9, color="white" if dark else "#333333")
    ax.set_xticks(range(counts.shape[1]), counts.columns)
    ax.set_yticks(range(len(counts)), [f"{name}  (n = {n})" for name, n in counts.sum(axis=1).items()])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _alluvial(ax: Axes, counts: pd.DataFrame, left: dict[str, Any], right: dict[str, Any]) -> None:
    """Bands between two stacked columns; heights are shares of all spots, with gaps between the parts."""
    share = counts.to_numpy() / counts.to_numpy().sum()
    gap, width = 0.02, 0.04
    tops = [np.concatenate([[0], np.cumsum(part + gap)[:-1]]) for part in (share.sum(axis=1), share.sum(axis=0))]
    for x, names, part, top, colors in (
        (0, counts.index, share.sum(axis=1), tops[0], left),
        (1, counts.columns, share.sum(axis=0), tops[1], right),
    ):
        ax.bar(x, part, width, bottom=top, color=[colors[name] for name in names], zorder=2)
        for name, start, size in zip(names, top, part, strict=True):
            ax.text(x + (width if x else -width), start + size / 2, name, fontsize=9, va="center",
                    ha="left" if x else "right")  # fmt: skip
    t = np.linspace(0, 1, 40)
    bend = t**2 * (3 - 2 * t)
    for (row, column), size in np.ndenumerate(share):
        if size:
            low = tops[0][row] + share[row, :column].sum()
            rise = (tops[1][column] + share[:row, column].sum() - low) * bend
            ax.fill_between(t, low + rise, low + rise + size, color=left[counts.index[row]], alpha=0.45, lw=0, zorder=1)
    ax.set(xlim=(-0.6, 1.6), ylim=(max(top[-1] + gap for top in tops) + 0.02, -0.12))
    ax.axis("off")
