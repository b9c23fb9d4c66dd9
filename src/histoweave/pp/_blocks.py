"""Geometry of a split: blocks of tissue, how far features reach, dealing groups to folds."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import CROP_PITCHES, nearest_distance
from histoweave._validate import require_number
from histoweave.pp._graph import ring_reach


def reach_px(table: AnnData, library_id: str, rows: np.ndarray, xy: np.ndarray, n_rings: int) -> tuple[float, float]:
    """Return how far a spot's features reach and the default buffer, in full-resolution pixels.

    ``rows`` are those of the section, ``xy`` their coordinates. Reach: half of the widest recorded crop (one array
    pitch where there is none) plus the neighbourhood rings, see :func:`histoweave.pp._graph.ring_reach`. Default
    buffer: the whole crop (the widest that is cut by default where none is recorded) plus the rings, so that no
    neighbour of a training spot shares pixels with the crop of a test spot.
    """
    records = table.uns.get(_keys.UNS, {}).values()
    rings = [e["params"]["n_rings"] for e in records if e.get("function") == "pp.spatial_context"]
    crops = [e.get("size_px", {}) for e in records if e.get("function") == "pp.crops"]
    name = library_id.replace("/", "_")
    pitch = float(np.nan_to_num(nearest_distance(xy)))
    crop = max((float(sizes[name]) for sizes in crops if name in sizes), default=None)
    ring = ring_reach(table, rows, xy, max([n_rings, *map(int, rings)]))
    if crop is None:
        return pitch / 2 + ring, max(CROP_PITCHES.values()) * pitch + ring
    return crop / 2 + ring, crop + ring


def cut_blocks(xy: np.ndarray, side: float) -> np.ndarray:
    """Return the block number of every point: squares of ``side`` on a grid centred on the points."""
    low, extent = xy.min(axis=0), np.ptp(xy, axis=0)
    n = np.maximum(np.ceil(extent / side), 1)
    origin = low - (n * side - extent) / 2
    cell = np.clip((xy - origin) // side, 0, n - 1).astype(int)
    return cell[:, 1] * int(n[0]) + cell[:, 0]


def default_sides(points: dict[str, np.ndarray], n_folds: int) -> dict[str, float]:
    """Return per section the largest block side, in its pixels, that yields a block for each fold.

    Starts at blocks of one fold's share of a section: large blocks lose the fewest spots to the buffer.
    """
    sides = {
        name: np.sqrt(len(xy) / n_folds) * nearest_distance(xy) if len(xy) > 1 else 1.0 for name, xy in points.items()
    }
    for name, side in sides.items():
        require_number(float(side), argument=f"distance between the spots of section {name!r}", above=0)
    for factor in (1, 0.85, 0.7, 0.6, 0.5):
        if sum(len(np.unique(cut_blocks(xy, sides[name] * factor))) for name, xy in points.items()) >= n_folds:
            break
    return {name: float(side * factor) for name, side in sides.items()}


def deal(groups: np.ndarray, classes: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deal whole groups to folds so that folds are alike in size and in class counts.

    Greedy: the largest group first, each to the fold where the sum of squared class shares grows least.

    Parameters
    ----------
    groups
        Group of every row.
    classes
        Class number of every row, -1 for unlabelled; every class weighs the same, however rare.
    n_folds
        Number of folds, at most the number of groups.
    rng
        Breaks ties.

    Returns
    -------
    Fold number of every row.
    """
    names, index = np.unique(groups, return_inverse=True)
    shares = np.zeros((len(names), classes.max(initial=-1) + 2))
    np.add.at(shares, (index, classes), 1)  # -1 lands in the last column, which then counts all rows
    shares[:, -1] = np.bincount(index)
    shares /= np.maximum(shares.sum(axis=0), 1)
    order = rng.permutation(len(names))
    order = order[np.argsort(-shares[order].sum(axis=1), kind="stable")]
    load = np.zeros((n_folds, shares.shape[1]))
    fold = np.empty(len(names), dtype=int)
    for group in order:
        fold[group] = np.argmin(load @ shares[group])
        load[fold[group]] += shares[group]
    return fold[index]
