"""How far probabilities can be believed, and how well they rank: reliability and ROC curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys, metrics
from histoweave._resolve import get_table
from histoweave._validate import listing, require_mask
from histoweave.pl import _draw
from histoweave.pl._scored import labels_and_probability, require_any, stored_probability

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

_MODEL = "#0072B2"


def reliability(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    probability_key: str | None = None,
    n_bins: int = 15,
    strategy: str = "uniform",
    mask_key: str | None = None,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw stated confidence against the accuracy it came with.

    Points on the diagonal are calibrated, points below it overconfident. Bars are 95 % Wilson intervals; the
    grey histogram at the bottom shows where the confidences lie. Rows a model was trained on flatter it: name
    the held-out rows with ``mask_key``.

    Parameters
    ----------
    data
        Table or SpatialData.
    labels_key
        Column of ``obs`` with the true regions; unlabelled rows are left out.
    probability_key
        DataFrame in ``obsm`` with one column a class; by default ``labels_key + "_probability"``. Rows of NaN
        (not predicted) are left out.
    n_bins, strategy
        As in :func:`histoweave.metrics.reliability_curve`.
    mask_key
        Boolean column of ``obs``: only its true rows are counted.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes; the title gives the expected calibration error.

    Raises
    ------
    KeyError
        A column or the probabilities are missing.
    TypeError
        The probabilities are not a DataFrame with class names as columns.
    ValueError
        No row has both, or what :func:`histoweave.metrics.reliability_curve` raises.

    Examples
    --------
    >>> import pandas as pd
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> adata.obsm["region_probability"] = pd.get_dummies(adata.obs["region"]) * 1.0
    >>> ax = hw.pl.reliability(adata)
    """
    table = get_table(data, table_key)
    truth, frame = labels_and_probability(table, labels_key, probability_key, mask_key)
    options = {"n_bins": n_bins, "strategy": strategy}
    curve = metrics.reliability_curve(truth, frame, **options)
    error = metrics.expected_calibration_error(truth, frame, **options)
    ax = _draw.new_axes(ax, 1, 1, panel=(4.0, 4.0))[0, 0]
    _reliability(ax, curve, frame.to_numpy().max(axis=1))
    ax.set_title(f"{len(truth)} spots, expected calibration error {error:.3f}", fontsize=10)
    return ax


def _reliability(ax: Axes, curve: pd.DataFrame, confidence: np.ndarray) -> None:
    share, edges = np.histogram(confidence, bins=np.linspace(0, 1, 21))
    ax.bar(edges[:-1], 0.25 * share / share.max(), width=0.05, align="edge", color="#D9D9D9",
           edgecolor="white", label="confidences")  # fmt: skip
    ax.plot([0, 1], [0, 1], color="#666666", lw=1, ls="--", label="calibrated")
    bars = np.abs(curve[["lower", "upper"]].to_numpy().T - curve["accuracy"].to_numpy())
    ax.errorbar(curve["confidence"], curve["accuracy"], yerr=bars, color=_MODEL, marker="o", ms=5, lw=1.5,
                elinewidth=1, capsize=2, label="observed", clip_on=False, zorder=3)  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="stated confidence", ylabel="accuracy")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="upper left", framealpha=0.8, edgecolor="none")


def roc(
    data: AnnData | SpatialData,
    *,
    labels_key: str = _keys.REGION,
    probability_key: str | None = None,
    mask_key: str | None = None,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw the ROC curve of every region against the rest, or of every finding.

    Rows a model was trained on flatter it: name the held-out rows with ``mask_key``.

    Parameters
    ----------
    data
        Table or SpatialData.
    labels_key
        Column of ``obs`` with the true regions, unlabelled rows are left out; or key of ``obsm`` with findings
        ``(n_obs, k)``: 1 where a spot has one, 0 where not, missing where nobody looked.
    probability_key
        DataFrame in ``obsm`` with one column a class or finding; by default ``labels_key + "_probability"``. Rows of
        NaN (not predicted) are left out.
    mask_key
        Boolean column of ``obs``: only its true rows are counted.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes. The legend gives the area under each curve and the number of rows of the class, the title the mean area.
    Classes without rows, classes without other rows beside them, and findings without probabilities have no curve.

    Raises
    ------
    KeyError
        A column or the probabilities are missing.
    TypeError
        The probabilities are not a DataFrame with class names as columns.
    ValueError
        No row has both, no class has a curve, or what :func:`histoweave.metrics.roc_curves` raises.

    Examples
    --------
    >>> import pandas as pd
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> adata.obsm["region_probability"] = pd.get_dummies(adata.obs["region"]) * 1.0
    >>> ax = hw.pl.roc(adata)
    """
    table = get_table(data, table_key)
    if labels_key in table.obsm and labels_key not in table.obs:
        truth, frame = _findings(table, labels_key, probability_key, mask_key)
        colors = dict(zip(truth, _draw.distinct_colors(truth.shape[1]), strict=False))
        support = truth.sum()
    else:
        truth, frame = labels_and_probability(table, labels_key, probability_key, mask_key)
        colors = _draw.class_colors(table, labels_key)
        support = pd.Series(truth).value_counts()
    curves = metrics.roc_curves(truth, frame)
    ax = _draw.new_axes(ax, 1, 1, panel=(4.6, 4.6))[0, 0]
    ax.plot([0, 1], [0, 1], color="#666666", lw=1, ls="--")
    areas = []
    for name, curve in curves.groupby("class", observed=True):
        false, true = curve["false_positive_rate"], curve["true_positive_rate"]
        areas.append(np.trapezoid(true, false))
        label = f"{name}  {areas[-1]:.2f}  (n = {support[name]:.0f})"
        ax.plot(false, true, color=colors[name], lw=1.8, label=label, clip_on=False)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="false positive rate", ylabel="true positive rate")
    ax.set_title(f"{len(frame)} spots, mean area under the curve {np.mean(areas):.2f}", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, loc="lower right", framealpha=0.8, edgecolor="none")
    return ax


def _findings(
    table: AnnData, labels_key: str, probability_key: str | None, mask_key: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return findings and their probabilities in the rows that the mask lets count and that were predicted.

    Findings that the model was not fitted on are left out, and so are others that nobody looked for.
    """
    frame = stored_probability(table, labels_key, probability_key)
    truth = pd.DataFrame(table.obsm[labels_key], index=table.obs_names).rename(columns=str)
    told = [name for name in frame if name in truth]
    if not told:
        msg = (
            f"The probabilities of `adata.obsm[{probability_key or labels_key + _keys.PROBABILITY!r}]` are of "
            f"{listing(frame.columns)}, none of which is a finding in `adata.obsm[{labels_key!r}]`: "
            f"{listing(truth.columns)}."
        )
        raise ValueError(msg)
    truth, frame = truth[told], frame[told]
    rows = require_mask(table, mask_key) & frame.notna().any(axis=1).to_numpy() & truth.notna().any(axis=1).to_numpy()
    require_any(rows, f"a finding in `adata.obsm[{labels_key!r}]` and probabilities")
    return truth[rows], frame[rows]
