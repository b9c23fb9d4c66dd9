"""One spot explained: its crops under their maps, its genes, what each modality adds, its probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._maps import spread
from histoweave._resolve import get_table
from histoweave._validate import require_key, require_number
from histoweave.pl import _draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

FOR, AGAINST = "#0072B2", "#D55E00"


def explain_spot(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.EXPLAIN_SPOT,
    n_genes: int = 10,
    alpha: float = 0.6,
    cmap: str = "viridis",
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> np.ndarray:
    """Draw why one spot got its region.

    Parameters
    ----------
    data
        Table or SpatialData on which :func:`histoweave.tl.explain_spot` was run.
    key
        Name of its result in ``uns``.
    n_genes
        Genes to draw, those that move the answer most.
    alpha
        Opacity of a map where it is highest; nothing is drawn where it is 0 or below.
    cmap
        Colours of the maps.
    table_key
        Name of the table in a SpatialData object.
    ax
        As many axes as there are kinds of crops, and three more; by default a new figure.

    Returns
    -------
    An array of Axes ``(1, n_crops + 3)``: each crop under its map, all maps on one scale; genes; modalities;
    probabilities of the regions. Genes and modalities are in natural logarithms of the region's probability.

    Raises
    ------
    KeyError
        There is no such result.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=10, n_cols=10)
    >>> clf = hw.models.RegionClassifier(crop_um={"crops": 110}).fit(adata)
    >>> found = hw.tl.explain_spot(adata, clf, spot=adata.obs_names[0])
    >>> hw.pl.explain_spot(adata).shape
    (1, 4)
    """
    require_number(n_genes, argument="n_genes", at_least=1, integer=True)
    require_number(alpha, argument="alpha", above=0, at_most=1)
    table = get_table(data, table_key)
    require_key(table.uns, key, where="adata.uns", argument="key", run="hw.tl.explain_spot(...)")
    found = table.uns[key]
    scales = list(found["crops"])
    axes = _draw.new_axes(ax, 1, len(scales) + 3, panel=(3.2, 3.4))
    top = max([float(np.max(found["maps"][name])) for name in scales], default=0.0)
    for panel, name in zip(axes[0], scales, strict=False):
        panel.imshow(_under_map(found["crops"][name], found["maps"][name], top, cmap, alpha))
        panel.set(xticks=[], yticks=[])
        size = found.get("crop_um", {}).get(name)
        panel.set_title(name + (f", {float(size):.0f} µm" if size is not None else ""), fontsize=10)
    genes, modalities, regions = axes[0, len(scales) :]
    largest = found["genes"].reindex(found["genes"]["contribution"].abs().sort_values(ascending=False).index)[:n_genes]
    shown = largest.sort_values("contribution", ascending=False)
    _bars(genes, shown["gene"], shown["contribution"], "log probability lost without the gene")
    added = found["modalities"]
    _bars(modalities, added["modality"], added["log_contribution"], "added to the log probability")
    probability = found["probability"].sort_values("probability", ascending=False)
    _bars(regions, probability["region"], probability["probability"], "probability")
    regions.set_xlim(0, 1)
    for tick in regions.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() == found["region"] else "normal")
    if ax is None:  # else the figure is the user's
        axes[0, 0].figure.suptitle(f"{found['spot']}: {found['region']}", fontsize=11)
    return axes


def _under_map(crop: np.ndarray, values: np.ndarray, top: float, cmap: str, alpha: float) -> np.ndarray:
    from matplotlib import colormaps

    share = np.clip(spread(values[None].astype(np.float32), crop.shape[:2])[0], 0, None) / (top if top > 0 else 1)
    weight = alpha * np.clip(share, 0, 1)[..., None]
    return (crop * (1 - weight) + 255 * colormaps[cmap](share)[..., :3] * weight).round().astype(np.uint8)


def _bars(ax: Axes, names: pd.Series, lengths: pd.Series, label: str) -> None:
    places, values = np.arange(len(names)), lengths.to_numpy(dtype=float)
    ax.barh(places, values, color=np.where(values >= 0, FOR, AGAINST), height=0.7)
    ax.locator_params(axis="x", nbins=3)
    ax.xaxis.set_major_formatter("{x:g}")  # no power of ten beside the label
    ax.axvline(0, color="#444444", lw=0.8)
    ax.set_yticks(places, names, fontsize=8)
    ax.set(ylim=(max(len(names), 1) - 0.4, -0.6))
    ax.set_xlabel(label, fontsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
