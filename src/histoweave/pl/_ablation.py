"""What each part contributes: a forest plot of arms with intervals, nulls in grey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave._validate import listing, require_choice, require_key
from histoweave.pl import _draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MODEL, _REFERENCE, _NULL = "#0072B2", "#D55E00", "#8C8C8C"
_SHOW = {"pooled": ("pooled", "low", "high"), "difference": ("difference", "difference_low", "difference_high")}


def ablation(results: pd.DataFrame, *, show: str = "pooled", ax: Axes | None = None) -> Axes:
    """Draw the arms of an ablation as a forest plot: a point an arm with its interval, nulls in grey.

    Points and bars are scores on the held-out predictions of all folds together, with their 95 % group bootstrap
    intervals; small dots behind them the folds, averaged over seeds. The grey band reaches up to the upper bound
    of the best null: an arm within it has not been shown to know anything.

    Parameters
    ----------
    results
        What ``hw.tl.ablation`` returns.
    show
        ``"pooled"``: the scores; ``"difference"``: differences to the reference arm, without dots and band, with
        the p-values of the test over folds.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes: the reference first, then models and nulls, each from the best down.

    Raises
    ------
    KeyError
        A column that is missing.
    TypeError
        ``results`` is not a DataFrame.
    ValueError
        No finite score, or another ``kind``.

    Examples
    --------
    >>> import pandas as pd
    >>> import histoweave as hw
    >>> results = pd.DataFrame({"fold": ["0", "0"], "arm": ["fused", "majority"], "kind": ["model", "null"],
    ...                         "reference": "fused", "metric": "macro_f1", "macro_f1": [0.8, 0.2],
    ...                         "pooled": [0.8, 0.2], "low": [0.7, 0.1], "high": [0.9, 0.3], "difference": [0.0, -0.6],
    ...                         "difference_low": [0.0, -0.7], "difference_high": [0.0, -0.5],
    ...                         "p_holm": [float("nan"), 0.01]})
    >>> ax = hw.pl.ablation(results)
    """
    require_choice(show, tuple(_SHOW), argument="show")
    if not isinstance(results, pd.DataFrame):
        msg = f"`results` must be the DataFrame of `hw.tl.ablation`, got {type(results).__name__}."
        raise TypeError(msg)
    for column in ("fold", "arm", "kind", "metric", "reference", "p_holm", *_SHOW["pooled"], *_SHOW["difference"]):
        require_key(results, column, where="results.columns", argument="results", run="hw.tl.ablation(...)")
    other = set(results["kind"]) - {"model", "null"}
    if other:
        msg = f"`results['kind']` must be 'model' or 'null', found {listing(sorted(map(str, other)))}."
        raise ValueError(msg)
    arms = _ordered(results.drop_duplicates("arm").set_index("arm"))
    if arms.empty:
        msg = "`results['pooled']` holds no finite score."
        raise ValueError(msg)
    ax = _draw.new_axes(ax, 1, 1, panel=(7.0, 0.9 + 0.36 * len(arms)))[0, 0]
    metric = str(results["metric"].iloc[0])
    if show == "pooled":
        _folds_and_nulls(ax, results, arms, metric)
    else:
        ax.axvline(0, color="#666666", lw=1, zorder=0)
    _points(ax, arms, *_SHOW[show], with_p=show == "difference")
    label = metric.replace("_", " ").replace("f1", "F1")
    ax.set(
        ylim=(len(arms) - 0.4, -0.6),
        xlabel=label if show == "pooled" else f"{label}, difference to {results['reference'].iloc[0]}",
    )
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    return ax


def _ordered(arms: pd.DataFrame) -> pd.DataFrame:
    """Return the arms that have a score, in the order in which they are drawn."""
    arms = arms[np.isfinite(arms["pooled"].astype(float))]
    arms = arms.assign(reference=arms["reference"] == arms.index)
    return arms.sort_values(["kind", "reference", "pooled"], ascending=[True, False, False], kind="stable")


def _color(arm: pd.Series) -> str:
    return _NULL if arm["kind"] == "null" else _REFERENCE if arm["reference"] else _MODEL


def _folds_and_nulls(ax: Axes, results: pd.DataFrame, arms: pd.DataFrame, metric: str) -> None:
    """Draw the folds as small dots, and the band of what a null may reach."""
    require_key(results, metric, where="results.columns", argument="results", run="hw.tl.ablation(...)")
    folds = results.groupby(["arm", "fold"], observed=True)[metric].mean()
    for place, (name, arm) in enumerate(arms.iterrows()):
        values = folds[name]
        ax.plot(values, np.full(len(values), place), ls="none", marker="o", ms=4, color=_color(arm), alpha=0.3, mew=0)
    nulls = arms[arms["kind"] == "null"]
    if len(nulls):
        best = nulls.loc[nulls["pooled"].idxmax()]
        top = best["high"] if np.isfinite(best["high"]) else best["pooled"]
        ax.axvspan(0, top, color="#F0F0F0", lw=0, zorder=0)
        ax.axvline(best["pooled"], color=_NULL, lw=1, ls=":", zorder=0)


def _points(ax: Axes, arms: pd.DataFrame, value: str, low: str, high: str, *, with_p: bool) -> None:
    for place, (_, arm) in enumerate(arms.iterrows()):
        color, sign = _color(arm), "+" if with_p else ""
        if np.isfinite(arm[low]):
            ax.plot([arm[low], arm[high]], [place, place], color=color, lw=2, solid_capstyle="butt")
        ax.plot(arm[value], place, marker="s", ms=7, color=color, mew=0)
        text = f"{arm[value]:{sign}.2f}"
        if np.isfinite(arm[low]):
            text += f" ({arm[low]:{sign}.2f} to {arm[high]:{sign}.2f})"
        if with_p and np.isfinite(arm["p_holm"]):
            text += f", p = {arm['p_holm']:.2g}"
        ax.annotate(text, (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
                    textcoords="offset points", va="center", fontsize=9, color=color)  # fmt: skip
    ax.set_yticks(range(len(arms)), arms.index)
    for label, (_, arm) in zip(ax.get_yticklabels(), arms.iterrows(), strict=True):
        label.set_color(_color(arm) if arm["kind"] == "null" or arm["reference"] else "black")
