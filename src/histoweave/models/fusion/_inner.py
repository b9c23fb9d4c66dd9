"""Predictions out of fold inside the training rows: the only evidence a pool, a threshold or a choice may use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial import cKDTree
from sklearn.model_selection import StratifiedGroupKFold

from histoweave.models.fusion._attention import AttentionHead
from histoweave.models.fusion._heads import ForestHead, Head, LinearHead

#: Regularisation strengths a linear head is chosen from, by log loss out of fold.
LINEAR_C = (0.003, 0.03, 0.3)
#: Steps of training that cross-attention is chosen from, in the same way.
ATTENTION_STEPS = (40, 120)


def inner_folds(y: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row: groups are never split, classes balanced where they can be; -1 without folds."""
    fold = np.full(len(y), -1)
    n_folds = min(n_folds, len(np.unique(groups)), np.bincount(y).max())  # what the splitter can deal
    if n_folds < 2:
        return fold
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class smaller than the number of folds is expected here and dealt with below
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for i, (_, test) in enumerate(splitter.split(np.zeros(len(y)), y, groups)):
            fold[test] = i
    return fold


def candidates(kinds: tuple[str, ...], widths: Sequence[int]) -> Iterator[tuple[str, list[Head]]]:
    """Yield ``(kind, settings to choose from)`` for blocks of these widths side by side."""
    settings = {
        "linear": lambda: [LinearHead(c) for c in LINEAR_C],
        "forest": lambda: [ForestHead()],
        "attention": lambda: [AttentionHead(widths, n) for n in ATTENTION_STEPS],
    }
    for kind in kinds:
        yield kind, settings[kind]()


def fit_head(
    kind_settings: Sequence[Head],
    X: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    fold: np.ndarray,
    seed: int,
    positions: np.ndarray | None = None,
) -> tuple[Head, np.ndarray]:
    """Choose a setting on the inner folds, refit it on all rows, return ``(head, probabilities out of fold)``.

    Probabilities are NaN for rows of no fold, and for rows whose class their fold's training rows lack.
    """
    masks = [fold == i for i in np.unique(fold[fold >= 0])]
    folds = [(apart(test, positions), np.flatnonzero(test)) for test in masks]
    folds = [(train, test) for train, test in folds if len(np.unique(y[train])) > 1]
    best, best_loss, best_p = kind_settings[0], np.inf, np.full((len(y), n_classes), np.nan)
    for head in kind_settings if folds else []:
        p = np.full((len(y), n_classes), np.nan)
        light = head.light()
        for train, test in folds:
            known = test[np.isin(y[test], y[train])]
            if len(known):
                p[known] = light.fit(X[train], y[train], n_classes, seed).predict_proba(X[known])
        loss = balanced_log_loss(p, y)
        if loss < best_loss:
            best, best_loss, best_p = head, loss, p
    return best.fit(X, y, n_classes, seed), best_p


def apart(test: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """Return the rows to train on for a mask of rows to test on: not those whose features draw on the same tissue.

    Positions are in units of how far features reach, so rows nearer than 1 are left out, yet never more than the
    nearer half: on a small section something must be left to learn from.
    """
    train = np.flatnonzero(~test)
    if positions is None or not len(train):
        return train
    distance, _ = cKDTree(positions[test]).query(positions[train])
    return train[distance >= min(1.0, np.median(distance))]


def balanced_log_loss(p: np.ndarray, y: np.ndarray) -> float:
    """Return the log loss of the rows that are not NaN, every class counting the same."""
    rows = np.flatnonzero(~np.isnan(p[:, 0]))
    if not len(rows):
        return np.inf
    weight = 1.0 / np.bincount(y[rows], minlength=p.shape[1])[y[rows]]
    return float(-(weight * np.log(np.clip(p[rows, y[rows]], 1e-6, None))).sum() / weight.sum())
