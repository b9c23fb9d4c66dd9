"""How good the predictions are: confusion matrix, scores beside their nulls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys, metrics
from histoweave._resolve import get_table
from histoweave._validate import listing, require_choice, require_key, require_labels, require_mask
from histoweave.pl import _draw
from histoweave.pl._scored import CLASSIFY, require_any

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

ERRORS = ("log_loss", "brier", "ece")  # of which less is better
_MODEL, _NULL = "#0072B2", "#8C8C8C"


def confusion(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    predicted_key: str | None = None,
    normalize: str | None = "true",
    mask_key: str | None = None,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often each labelled region was predicted to be each region.

    Rows without a label or without a prediction are left out. Rows a model was trained on flatter it: name
    the held-out rows with ``mask_key``.

    Parameters
    ----------
    data
        Table or SpatialData.
    labels_key
        Column of ``obs`` with the true regions.
    predicted_key
        Column of ``obs`` with the predicted regions; by default ``labels_key + "_predicted"``.
    normalize
        ``"true"``: shares of each true region (rows sum to 1); ``None``: counts.
    mask_key
        Boolean column of ``obs``: only its true rows are counted.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes; true regions (with their number of spots) down, predicted ones across.

    Raises
    ------
    KeyError
        A column that is missing.
    ValueError
        No row has both a label and a prediction, or ``mask_key`` is not boolean.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> adata.obs["region_predicted"] = adata.obs["region"]
    >>> ax = hw.pl.confusion(adata)
    """
    require_choice(normalize, ("true", None), argument="normalize")
    table = get_table(data, table_key)
    predicted_key = predicted_key or labels_key + _keys.PREDICTED
    require_key(
        table.obs,
        predicted_key,
        where="adata.obs",
        argument="predicted_key",
        run=CLASSIFY,
    )
    truth = require_labels(table, labels_key, min_classes=1).to_numpy()
    guess = _draw.class_names(table.obs[predicted_key])
    rows = pd.notna(truth) & pd.notna(guess) & require_mask(table, mask_key)
    require_any(rows, f"a label in `adata.obs[{labels_key!r}]` and a prediction")
    truth, guess = truth[rows], guess[rows]
    names = [n for n in _draw.class_colors(table, labels_key) if n in set(truth) | set(guess)]
    names += sorted((set(truth) | set(guess)) - set(names))
    counts = pd.crosstab(truth, guess).reindex(index=names, columns=names, fill_value=0).to_numpy()
    scores = metrics.classification(truth, guess)
    side = 1.9 + 0.55 * len(names)
    ax = _draw.new_axes(ax, 1, 1, panel=(side + 0.6, side))[0, 0]
    _matrix(ax, counts, names, normalize)
    ax.set_title(
        f"{len(truth)} spots, accuracy {scores['accuracy']:.2f}, macro-F1 {scores['macro_f1']:.2f}",
        fontsize=10,
    )
    return ax


def _matrix(ax: Axes, counts: np.ndarray, names: Sequence[str], normalize: str | None) -> None:
    support = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    shown = share if normalize else counts
    top = 1.0 if normalize else max(counts.max(), 1)
    ax.imshow(shown, cmap="Blues", vmin=0, vmax=top)
    ax.set_facecolor("#F0F0F0")  # a class without labelled spots has no shares
    for (row, column), value in np.ndenumerate(shown):
        text = "" if np.isnan(value) else f"{value:.2f}" if normalize else f"{value:d}"
        color = "white" if value > 0.55 * top else "#333333" if value else "#AAAAAA"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    ticks = range(len(names))
    ax.set_xticks(ticks, names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(ticks, [f"{name}  (n = {n})" for name, n in zip(names, support.ravel(), strict=True)])
    ax.set(xlabel="predicted", ylabel="labelled")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def scores(results: pd.DataFrame, *, metric: str = "macro_f1", ax: Axes | None = None) -> Axes:
    """Draw cross-validated scores, a dot a fold and a line at the mean, with the nulls in grey below.

    Parameters
    ----------
    results
        What ``hw.tl.cross_validate`` returns: one row a fold and arm, with the columns ``arm``, ``kind``
        (``"model"`` or ``"null"``) and the scores.
    metric
        Column to draw.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes; arms from the best mean down, the dotted line at the best null. Of errors (``log_loss``, ``brier``,
    ``ece``) the smallest is best.

    Raises
    ------
    KeyError
        A column that is missing.
    TypeError
        ``results`` is not a DataFrame.
    ValueError
        No finite score, another ``kind``, or scores of several findings.

    Examples
    --------
    >>> import pandas as pd
    >>> import histoweave as hw
    >>> results = pd.DataFrame({"fold": [0, 1, 0, 1], "arm": ["fused", "fused", "majority", "majority"],
    ...                         "kind": ["model", "model", "null", "null"], "macro_f1": [0.8, 0.7, 0.2, 0.1]})
    >>> ax = hw.pl.scores(results)
    """
    if not isinstance(results, pd.DataFrame):
        msg = f"`results` must be the DataFrame of `hw.tl.cross_validate`, got {type(results).__name__}."
        raise TypeError(msg)
    _draw.require_one_finding(results)
    for column, argument in (("arm", "results"), ("kind", "results"), (metric, "metric")):
        require_key(results, column, where="results.columns", argument=argument, run="hw.tl.cross_validate(...)")
    other = set(results["kind"]) - {"model", "null"}
    if other:
        msg = f"`results['kind']` must be 'model' or 'null', found {listing(sorted(map(str, other)))}."
        raise ValueError(msg)
    known = results[np.isfinite(results[metric].astype(float))]
    if known.empty:
        msg = f"`results[{metric!r}]` holds no finite score."
        raise ValueError(msg)
    means = known.groupby(["kind", "arm"], observed=True)[metric].mean().reset_index()
    order = means.sort_values(["kind", metric], ascending=[True, metric in ERRORS], ignore_index=True)
    ax = _draw.new_axes(ax, 1, 1, panel=(6.0, 0.9 + 0.36 * len(order)))[0, 0]
    for place, (kind, arm, mean) in enumerate(order.itertuples(index=False)):
        color = _MODEL if kind == "model" else _NULL
        values = known.loc[(known["arm"] == arm) & (known["kind"] == kind), metric]
        ax.plot(values, np.full(len(values), place), ls="none", marker="o", ms=6, color=color, alpha=0.45, mew=0)
        ax.plot([mean, mean], [place - 0.3, place + 0.3], color=color, lw=2.5, solid_capstyle="butt")
        ax.annotate(f"{mean:.2f}", (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
                    textcoords="offset points", va="center", fontsize=9, color=color)  # fmt: skip
    nulls = order.loc[order["kind"] == "null", metric]
    if len(nulls):
        ax.axvline(nulls.min() if metric in ERRORS else nulls.max(), color=_NULL, lw=1, ls=":", zorder=0)
    ax.set_yticks(range(len(order)), order["arm"])
    for label, kind in zip(ax.get_yticklabels(), order["kind"], strict=True):
        label.set_color("black" if kind == "model" else _NULL)
    ax.set(ylim=(len(order) - 0.4, -0.6), xlabel=metric.replace("_", " ").replace("f1", "F1"))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    return ax
