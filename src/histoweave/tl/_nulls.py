"""What can be predicted without looking at tissue: every score is shown beside these."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from histoweave import _keys
from histoweave.models._inner_groups import tissue_blocks
from histoweave.models._sections import SectionScaler
from histoweave.models.fusion._heads import ForestHead, LinearHead

N_NEIGHBOURS = 6

Null = Callable[[AnnData, np.ndarray, np.ndarray, np.ndarray, int, int], np.ndarray | None]


def predict_nulls(
    table: AnnData, y: np.ndarray, train: np.ndarray, test: np.ndarray, n_classes: int, seed: int
) -> dict[str, np.ndarray]:
    """Return class probabilities ``(n_test, k)`` of every null that the table allows.

    Parameters
    ----------
    table
        Table with ``obs["library_id"]``, and coordinates and counts where it has them.
    y
        Class numbers ``(n,)``, -1 where unlabelled.
    train, test
        Masks of the labelled training rows and the rows to predict.
    n_classes
        Number of classes.
    seed
        Seed.

    Returns
    -------
    ``majority``: the commonest training label. ``depth``: total counts and genes seen, per section
    standardised, by logistic regression. ``coordinates``: position within the section's extent, by a forest.
    ``neighbour vote``: the nearest labelled training spots of the same section, the majority in a new one.
    """
    found = {name: null(table, y, train, test, n_classes, seed) for name, null in NULLS.items()}
    return {name: p for name, p in found.items() if p is not None}


def _majority(
    table: AnnData, y: np.ndarray, train: np.ndarray, test: np.ndarray, n_classes: int, seed: int
) -> np.ndarray:
    share = np.bincount(y[train], minlength=n_classes) / train.sum()
    return np.tile(share, (int(test.sum()), 1))


def _depth(
    table: AnnData, y: np.ndarray, train: np.ndarray, test: np.ndarray, n_classes: int, seed: int
) -> np.ndarray | None:
    if table.n_vars == 0:
        return None
    total = np.asarray(table.X.sum(axis=1)).ravel()
    seen = np.asarray((table.X > 0).sum(axis=1)).ravel()
    X = np.log1p(np.stack([total, seen], axis=1))
    rows_of = table.obs.reset_index(drop=True).groupby(_keys.LIBRARY, observed=True).indices
    X = SectionScaler().fit(X[train]).transform(X, rows_of)
    return LinearHead(C=1.0).fit(X[train], y[train], n_classes, seed).predict_proba(X[test])


def _coordinates(
    table: AnnData, y: np.ndarray, train: np.ndarray, test: np.ndarray, n_classes: int, seed: int
) -> np.ndarray | None:
    if _keys.SPATIAL not in table.obsm:
        return None
    xy = pd.DataFrame(table.obsm[_keys.SPATIAL][:, :2])
    groups = xy.groupby(table.obs[_keys.LIBRARY].to_numpy())
    low, high = groups.transform("min"), groups.transform("max")
    X = ((xy - low) / (high - low).replace(0, 1)).to_numpy()
    return ForestHead(min_leaf=5).fit(X[train], y[train], n_classes, seed).predict_proba(X[test])


def _neighbour_vote(
    table: AnnData, y: np.ndarray, train: np.ndarray, test: np.ndarray, n_classes: int, seed: int
) -> np.ndarray | None:
    if _keys.SPATIAL not in table.obsm:
        return None
    xy = np.asarray(table.obsm[_keys.SPATIAL])[:, :2]
    section = table.obs[_keys.LIBRARY].astype(str).to_numpy()
    p = np.zeros((len(y), n_classes))
    p[test] = _majority(table, y, train, test, n_classes, seed)
    for name in np.unique(section[test]):
        known, asked = np.flatnonzero(train & (section == name)), np.flatnonzero(test & (section == name))
        if not len(known):
            continue
        _, nearest = cKDTree(xy[known]).query(xy[asked], k=min(N_NEIGHBOURS, len(known)))
        votes = y[known][nearest.reshape(len(asked), -1)]
        p[asked] = (votes[:, :, None] == np.arange(n_classes)).mean(axis=1)
    return p[test]


NULLS: dict[str, Null] = {
    "majority": _majority, "depth": _depth, "coordinates": _coordinates, "neighbour vote": _neighbour_vote,
}  # fmt: skip


def permute_blocks(
    y: np.ndarray, section: np.ndarray, xy: np.ndarray | None, generator: np.random.Generator
) -> np.ndarray:
    """Return the labels with the blocks of tissue of every section in another order, the counts of classes kept.

    The labelled spots of a section are lined up block after block, within a block along a curve that keeps
    neighbours together; the labels are then laid along the same line with their blocks shuffled. What remains are
    patches as large as the regions' own, in places that have nothing to do with the tissue.

    Parameters
    ----------
    y
        Class numbers ``(n,)``, -1 where unlabelled; these stay where they are.
    section
        Section of every row.
    xy
        Coordinates ``(n, 2)``; without them every row is a block of its own.
    generator
        What the order is drawn by.
    """
    out, blocks = y.copy(), tissue_blocks(section, xy)
    for name in dict.fromkeys(section):
        rows = np.flatnonzero((section == name) & (y >= 0))
        _, block = np.unique(blocks[rows].astype(str), return_inverse=True)
        along = np.zeros(len(rows)) if xy is None else _curve(xy[rows])
        line = rows[np.lexsort((along, block))]
        place = generator.permutation(block.max(initial=-1) + 1)
        shuffled = rows[np.lexsort((along, place[block]))]
        out[line] = y[shuffled]
    return out


def _curve(xy: np.ndarray) -> np.ndarray:
    """Return the place of every point along a Morton curve, which goes through one quarter after another."""
    xy = xy[:, :2]
    cell = ((xy - xy.min(axis=0)) / max(np.ptp(xy, axis=0).max(), 1e-9) * 1023).astype(np.int64)
    bits = range(10)
    return sum(((cell[:, 0] >> b) & 1) << (2 * b) | ((cell[:, 1] >> b) & 1) << (2 * b + 1) for b in bits)
