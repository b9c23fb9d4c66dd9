"""Logistic regression on an embedding, its strength chosen on inner folds that keep tissue together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from threadpoolctl import threadpool_limits

from histoweave._random import child_seeds
from histoweave.metrics import classification
from histoweave.models._inner_groups import inner_groups
from histoweave.models.fusion._heads import LinearHead
from histoweave.models.fusion._inner import fit_head, inner_folds

STRENGTHS = (0.03, 0.001, 0.005, 0.2, 1.0)  # the first where there are too few labels to choose by
N_INNER = 5


def fit_linear(
    table: AnnData,
    X: np.ndarray,
    labels: np.ndarray,
    *,
    n_rings: int,
    random_state: int,
    library_key: str,
    donor_key: str,
    spatial_key: str,
) -> tuple[LinearHead, list[dict[str, Any]]]:
    """Fit on the labelled rows; return the head, and its strength and scores on the inner folds.

    Parameters
    ----------
    table
        What tells donors, sections and coordinates.
    X
        Embedding ``(n_obs, d)``, not NaN where there is a label.
    labels
        Class names ``(n_obs,)``, ``None`` where there is none.
    n_rings
        Rings of neighbours that the embedding draws on.
    random_state, library_key, donor_key, spatial_key
        As for :class:`histoweave.models.ImageClassifier`.
    """
    labelled = pd.notna(labels)
    rows = np.flatnonzero(labelled)
    names, y = np.unique(labels[rows].astype(str), return_inverse=True)
    keys = {"library_key": library_key, "donor_key": donor_key, "spatial_key": spatial_key}
    groups = inner_groups(table, labelled, n_rings=n_rings, **keys)
    positions = None if groups.positions is None else groups.positions[rows]
    fold_seed, seed = child_seeds(random_state, 2)
    fold = inner_folds(y, groups.of_row[rows], N_INNER, fold_seed)
    with threadpool_limits(1):  # fits this small only lose by threads
        head, p = fit_head([LinearHead(c) for c in STRENGTHS], X[rows], y, len(names), fold, seed, positions)
    scored = ~np.isnan(p[:, 0])
    truth, guess = names[y[scored]], names[p[scored].argmax(axis=1)]
    scores = classification(truth, guess, p[scored], classes=list(names)) if scored.any() else {"n": 0.0}
    return head, [{"C": head.C, "inner_groups": groups.kind, **scores}]
