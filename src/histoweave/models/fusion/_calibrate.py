"""From predictions out of fold to calibrated combinations: pools, abstention thresholds and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from histoweave._validate import warn
from histoweave.metrics import classification
from histoweave.models.fusion._pool import LogPool

Subset = tuple[str, ...]
ROWS_PER_HEAD = 5  # fewer rows out of fold say nothing about how far to trust a head


def fit_pools(
    out_of_fold: Mapping[str, np.ndarray],
    modalities: Sequence[str],
    members_of: Callable[[Subset], list[str]],
    codes: np.ndarray,
    names: Sequence[str],
    coverage: float,
) -> tuple[dict[Subset, LogPool], dict[str, float], pd.DataFrame]:
    """Fit the combination, the threshold and the scores of every subset of modalities.

    Parameters
    ----------
    out_of_fold
        Head to probabilities ``(n, k)``, NaN for rows that could not be held out.
    modalities
        Names of the modalities.
    members_of
        The heads that a subset of modalities pools; subsets of which a head is missing are left out.
    codes
        Class number of every row.
    names
        Class names.
    coverage
        Share of rows that should get an answer.
    """
    pools, thresholds, scores = {}, {}, []
    classes = np.asarray(names, dtype=object)
    for chosen in (c for r in range(1, len(modalities) + 1) for c in combinations(modalities, r)):
        members = members_of(chosen)
        if not all(m in out_of_fold for m in members):
            continue
        p = np.stack([out_of_fold[m] for m in members])
        rows = np.flatnonzero(~np.isnan(p).any(axis=(0, 2)))
        name = "+".join(chosen)
        if len(rows) < ROWS_PER_HEAD * len(members) or len(np.unique(codes[rows])) < 2:
            pools[chosen], thresholds[name] = LogPool.equal(len(members), len(names)), 0.0
            warn(
                f"Too few labels to hold any out ({len(rows)} rows could be predicted by a model that had not seen "
                f"their group): probabilities from {name} are not calibrated and the classifier never abstains. "
                "Label more spots, of every region in several places."
            )
            continue
        pools[chosen] = LogPool().fit(p[:, rows], codes[rows])
        pooled = pools[chosen].combine(p[:, rows])
        thresholds[name] = float(np.quantile(pooled.max(axis=1), 1 - coverage))
        numbers = classification(classes[codes[rows]], classes[pooled.argmax(axis=1)], pooled, classes=names)
        scores.append({"modalities": name} | {k: v for k, v in numbers.items() if isinstance(v, int | float)})
    if not pools:
        msg = "No modality has labelled rows of two classes. Check that crops or counts exist for labelled spots."
        raise ValueError(msg)
    return pools, thresholds, pd.DataFrame(scores)
