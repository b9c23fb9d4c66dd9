"""How much each modality adds to the answer: over the section, and region by region."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._resolve import get_table, sections
from histoweave._validate import listing, require_choice, require_key
from histoweave.pl import _draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

RUN = "hw.tl.modality_contribution(...)"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # of the modalities, in order
UNITS = {"probability": "probability", "log_probability": "log probability"}


def modality_contribution(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.CONTRIBUTION,
    metric: str = "probability",
    library_id: str | None = None,
    image: bool | str = True,
    size: float | None = None,
    alpha: float = 0.9,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> np.ndarray:
    """Draw what each modality adds to the predicted region's probability, spot by spot, and bars for every region.

    Parameters
    ----------
    data
        Table or SpatialData on which :func:`histoweave.tl.modality_contribution` was run.
    key
        Name of its results.
    metric
        Of the bars: ``"probability"``, ``"log_probability"``, and with held-out labels ``"recall"`` or ``"f1"``. The
        maps show the logarithm with ``"log_probability"``, the probability otherwise.
    library_id
        The section of the maps; needed where there are several.
    image
        As in :func:`histoweave.pl.regions`.
    size
        Spot diameter in full-resolution pixels; by default as in :func:`histoweave.pl.regions`.
    alpha
        Opacity of the spots.
    library_key
        Column of ``obs`` with the section names.
    table_key
        Name of the table in a SpatialData object.
    ax
        As many axes as there are modalities, and one for the bars; by default a new figure.

    Returns
    -------
    An array of Axes ``(1, n_modalities + 1)``: a map each, on one scale around 0, and the bars. A bar's
    length is the mean over the region's spots, or the region's score.

    Raises
    ------
    KeyError
        There is no such result or section.
    ValueError
        The metric was not computed, or there are several sections and none was chosen.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section(n_rows=10, n_cols=10, n_genes=100)
    >>> clf = hw.models.RegionClassifier().fit(adata)
    >>> found = hw.tl.modality_contribution(adata, clf)
    >>> hw.pl.modality_contribution(adata).shape
    (1, 3)
    """
    table = get_table(data, table_key)
    require_key(table.uns, key, where="adata.uns", argument="key", run=RUN)
    result, stored = table.uns[key], key + (_keys.LOG if metric == "log_probability" else "")
    require_choice(metric, [m for m in dict.fromkeys(result["metric"]) if m not in ("accuracy", "macro_f1")],
                   argument="metric")  # fmt: skip
    require_key(table.obsm, stored, where="adata.obsm", argument="key", run=RUN)
    found = sections(table, library_key)
    if library_id is None and len(found) > 1:
        msg = f"The table holds several sections; choose one with `library_id=`: {listing(found)}."
        raise ValueError(msg)
    library_id = next(iter(found)) if library_id is None else library_id
    require_key(found, library_id, where="the sections of the table", argument="library_id")
    rows, values = found[library_id], table.obsm[stored]
    xy = _draw.coordinates(table, rows)
    diameter = _draw.spot_size(table, library_id, xy, size)
    box = (*(xy.min(axis=0) - 1.5 * diameter), *(xy.max(axis=0) + 1.5 * diameter))
    below = _draw.thumbnail(data, library_id, box=box, image=image, table_key=table_key)
    height = 4.0 * float(np.clip((box[3] - box[1]) / (box[2] - box[0]), 0.3, 2)) + 0.35
    axes = _draw.new_axes(ax, 1, values.shape[1] + 1, panel=(4.4, height))
    shown = values.iloc[rows]
    largest = np.nanpercentile(np.abs(shown), 99) if shown.notna().any(axis=None) else 1.0
    for panel, name in zip(axes[0, :-1], values.columns, strict=True):
        if below is not None:
            below.draw(panel)
        _map(panel, xy, diameter, shown[name].to_numpy(), largest or 1.0, alpha)
        _draw.frame(panel, box)
        panel.set_title(f"{name}: adds to the {UNITS.get(metric, 'probability')}", fontsize=11)
    _draw.scale_bar(axes[0, 0], _draw.pixel_size(table, library_id, rows))
    _bars(axes[0, -1], result[result["metric"] == metric], list(values.columns), UNITS.get(metric, metric))
    return axes


def _map(ax: Axes, xy: np.ndarray, diameter: float, values: np.ndarray, largest: float, alpha: float) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(-largest, largest), colormaps["RdBu_r"].with_extremes(bad=_draw.MISSING))
    _draw.draw_spots(ax, xy, diameter, scale.to_rgba(np.ma.masked_invalid(values), alpha=alpha))
    ax.figure.colorbar(scale, ax=ax, fraction=0.045, pad=0.02).outline.set_visible(False)


def _bars(ax: Axes, result: pd.DataFrame, modalities: list[str], label: str) -> None:
    regions = list(dict.fromkeys(result["region"]))
    thickness = 0.8 / len(modalities)
    for number, (name, color) in enumerate(zip(modalities, COLORS * len(modalities), strict=False)):
        lengths = result[result["modality"] == name].set_index("region")["contribution"].reindex(regions)
        places = np.arange(len(regions)) + (number - (len(modalities) - 1) / 2) * thickness
        ax.barh(places, lengths, height=thickness, color=color, label=name)
    ax.axvline(0, color="#444444", lw=0.8)
    ax.set_yticks(range(len(regions)), regions, fontsize=9)
    ax.set(ylim=(len(regions) - 0.4, -0.6), xlabel=f"contribution to the {label}")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(modalities))
