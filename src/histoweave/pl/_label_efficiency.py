"""Scores against the number of labelled spots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave._validate import require_choice, require_key
from histoweave.pl import _draw
from histoweave.pl._evaluation import _NULL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("fold", "mode", "seed", "fraction", "n_train", "n_smallest_class", "arm", "kind")
TITLES = {"spots": "random spots", "patches": "contiguous patches"}
DASHES = ("-", "--", ":", "-.")
RESAMPLES = 2000


def label_efficiency(
    results: pd.DataFrame,
    *,
    metric: str = "macro_f1",
    mode: str | None = None,
    arms: Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes | np.ndarray:
    """Draw scores against the number of labelled spots, nulls in grey.

    Lines are means over folds and seeds. Bands are 95 % percentile intervals of a bootstrap that draws folds and,
    within each, seeds; with few folds they say how far these differ rather than how sure a mean is.

    Parameters
    ----------
    results
        What ``hw.tl.label_efficiency`` returns.
    metric
        Column to draw.
    mode
        ``"spots"`` or ``"patches"``; by default a panel for each there is.
    arms
        Arms and nulls to draw, all by default.
    ax
        Axes to draw into, one a panel; by default a new figure.

    Returns
    -------
    The Axes, or an array of them when there are several panels. Labelled spots (mean over folds) are on a log scale;
    below their number stands that of the class that has fewest.

    Raises
    ------
    KeyError
        A column that is missing.
    TypeError
        ``results`` is not a DataFrame.
    ValueError
        No finite score, no such mode or arm, or scores of several findings.

    Examples
    --------
    >>> import pandas as pd
    >>> import histoweave as hw
    >>> results = pd.DataFrame({"fold": ["0", "1"] * 2, "mode": "spots", "seed": 0, "fraction": [0.1, 0.1, 1, 1],
    ...                         "n_train": [10, 12, 100, 110], "n_smallest_class": [1, 1, 9, 8], "arm": "fused",
    ...                         "kind": "model", "macro_f1": [0.4, 0.5, 0.7, 0.8]})
    >>> ax = hw.pl.label_efficiency(results)
    """
    if not isinstance(results, pd.DataFrame):
        msg = f"`results` must be the DataFrame of `hw.tl.label_efficiency`, got {type(results).__name__}."
        raise TypeError(msg)
    _draw.require_one_finding(results)
    run = "hw.tl.label_efficiency(...)"
    for column in (*COLUMNS, metric):
        argument = "results" if column in COLUMNS else "metric"
        require_key(results, column, where="results.columns", argument=argument, run=run)
    found = results[np.isfinite(results[metric].astype(float))]
    if found.empty:
        msg = f"`results[{metric!r}]` holds no finite score."
        raise ValueError(msg)
    there = tuple(found["arm"].unique())
    for arm in arms or ():
        require_choice(arm, there, argument="arms")
    modes = tuple(found["mode"].unique())
    if mode is not None:
        require_choice(mode, modes, argument="mode")
        modes = (mode,)
    styles = _styles(found[found["arm"].isin(arms or there)])
    axes = _draw.new_axes(ax, 1, len(modes), panel=(4.6, 3.4))[0]
    for panel, name in zip(axes, modes, strict=True):
        _curves(panel, found[found["mode"] == name], metric, styles)
        panel.set_title(TITLES.get(name, name), fontsize=10)
    axes[0].set_ylabel(metric.replace("_", " ").replace("f1", "F1"))
    drawn = {arm: line for panel in axes for line, arm in zip(*panel.get_legend_handles_labels(), strict=True)}
    drawn = {arm: drawn[arm] for arm in styles if arm in drawn}  # an arm may be in some panels only
    axes[-1].legend(
        drawn.values(), drawn, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.3
    )
    limits = np.array([panel.get_ylim() for panel in axes])
    for panel in axes:
        panel.set_ylim(limits.min(), limits.max())
    return axes[0] if len(axes) == 1 else axes


def _styles(results: pd.DataFrame) -> dict[str, dict[str, object]]:
    """Return how to draw every arm: models in colour, nulls in grey with a dash pattern each."""
    kinds = results.drop_duplicates("arm").set_index("arm")["kind"]
    models, nulls = kinds.index[kinds == "model"], kinds.index[kinds != "model"]
    styles = {arm: {"color": color, "marker": "o", "ms": 4} for arm, color in zip(models, cycle(_draw.PALETTE))}
    return styles | {arm: {"color": _NULL, "ls": dash, "zorder": 1} for arm, dash in zip(nulls, cycle(DASHES))}


def _curves(ax: Axes, results: pd.DataFrame, metric: str, styles: dict[str, dict[str, object]]) -> None:
    counts = results.groupby("fraction")[["n_train", "n_smallest_class"]].mean()
    for arm, style in styles.items():
        own = results[results["arm"] == arm]
        if own.empty:
            continue
        tables = [part.pivot_table(metric, "fold", "seed") for _, part in own.groupby("fraction")]
        x = counts.loc[sorted(own["fraction"].unique()), "n_train"]
        ax.plot(x, [np.nanmean(t) for t in tables], label=arm, lw=1.5, **style)
        bounds = np.array([interval(t.to_numpy(dtype=float)) for t in tables])
        ax.fill_between(x, *bounds.T, color=style["color"], alpha=0.15, lw=0)
    ax.set_xscale("log")
    names = [f"{n:.0f}\n({least:.0f})" for n, least in counts.round().itertuples(index=False)]
    ax.set_xticks(counts["n_train"], names)
    ax.set_xticks([], minor=True)
    ax.set_xlabel("labelled spots (of the class with fewest)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#EEEEEE")
    ax.set_axisbelow(True)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of ``(folds, seeds)``; folds are drawn, then seeds within."""
    generator = np.random.default_rng(0)
    n_folds, n_seeds = values.shape
    fold = generator.integers(n_folds, size=(RESAMPLES, n_folds, 1))
    seed = generator.integers(n_seeds, size=(RESAMPLES, n_folds, n_seeds))
    drawn = values[fold, seed].reshape(RESAMPLES, -1)
    known = np.isfinite(drawn)
    means = np.where(known, drawn, 0).sum(axis=1)[known.any(axis=1)] / known.sum(axis=1)[known.any(axis=1)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
