"""The genes that regions rest on, beside what differential expression says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from histoweave import _keys
from histoweave._resolve import get_table
from histoweave._validate import require_choice, require_key, require_number
from histoweave.pl import _draw

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_RUN = "hw.tl.gene_importance(...)"
_BAR = "#0072B2"


def gene_importance(
    data: AnnData | SpatialData,
    *,
    key: str = "gene_importance",
    section: str = "all",
    n_genes: int = 10,
    palette: Mapping[str, Any] | None = None,
    table_key: str = _keys.TABLE,
    ax: Any = None,
) -> np.ndarray:
    """Draw the most important genes of every region as bars, with their rank by differential expression beside them.

    Parameters
    ----------
    data
        Table or SpatialData on which :func:`histoweave.tl.gene_importance` was run.
    key
        Name of its result in ``uns``.
    section
        One of its sections, ``"all"`` for all together.
    n_genes
        Genes a region.
    palette
        ``{region: colour}``; one colour by default.
    table_key
        Name of the table in a SpatialData object.
    ax
        As many axes as there are regions; by default a new figure.

    Returns
    -------
    An array of Axes ``(1, n_regions)``, best gene on top. The number at the right of a bar is the gene's rank by
    differential expression (1 differs most); the title has the stability between seeds, where several were run.

    Raises
    ------
    KeyError
        There is no such result.
    ValueError
        It has no such section, or ``ax`` holds another number of axes.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_regions=3)
    >>> clf = hw.models.GeneClassifier(hw.models.GenePCA(10).fit(adata)).fit(adata)
    >>> importance = hw.tl.gene_importance(adata, model=clf)
    >>> hw.pl.gene_importance(adata, n_genes=5).shape
    (1, 3)
    """
    require_number(n_genes, argument="n_genes", at_least=1, integer=True)
    table = get_table(data, table_key)
    require_key(table.uns, key, where="adata.uns", argument="key", run=_RUN)
    result = table.uns[key]
    require_choice(section, list(dict.fromkeys(result["section"])), argument="section")
    here = result[result["section"] == section]
    regions = list(dict.fromkeys(here["region"]))
    axes = _draw.new_axes(ax, 1, len(regions), panel=(3.0, 0.8 + 0.26 * n_genes))
    for region, axis in zip(regions, axes[0], strict=True):
        color = (palette or {}).get(region, _BAR)
        _bars(axis, here[here["region"] == region].nsmallest(n_genes, "rank"), region, color)
    return axes


def _bars(ax: Axes, top: pd.DataFrame, region: str, color: Any) -> None:
    places = np.arange(len(top))
    ax.barh(places, top["importance"], color=color, height=0.7)
    for place, rank in zip(places, top["de_rank"], strict=True):
        if np.isfinite(rank):
            ax.annotate(f"{rank:.0f}", (1, place), xycoords=("axes fraction", "data"), xytext=(4, 0),
                        textcoords="offset points", va="center", fontsize=8, color="#666666")  # fmt: skip
    stability = top["stability"].iloc[0]
    ax.set_title(region + (f" (stability {stability:.2f})" if np.isfinite(stability) else ""), fontsize=10)
    ax.set_yticks(places, top["gene"], fontsize=8)
    ax.set(ylim=(len(top) - 0.4, -0.6), xlabel="importance; right: rank by expression")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
