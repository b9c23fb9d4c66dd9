"""Geometry of a split: blocks of tissue, how far features reach, dealing groups to folds."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import require_number
from histoweave.pp._graph import metadata, nearest_distance


def um_per_pixel(table: AnnData, library_id: str, xy: np.ndarray) -> float | None:
    """Return um per full-resolution pixel: as recorded, else from the array's pitch, else ``None``."""
    factors = table.uns.get("spatial", {}).get(library_id, {}).get("scalefactors", {})
    pitch_um = metadata(table, library_id).get("array_pitch_um")
    measured = pitch_um / nearest_distance(xy) if pitch_um and len(xy) > 1 else np.nan
    for value in (factors.get("microns_per_pixel"), measured):
        if value is not None and np.isfinite(value) and value > 0:
            return float(value)
    return None


def crop_width_px(table: AnnData, library_id: str, um_per_px: float | None, default: float) -> float:
    """Return the width of the widest recorded crop in full-resolution pixels, ``default`` without crops."""
    widths = []
    for entry in table.uns.get(_keys.UNS, {}).values():
        if entry.get("function") != "pp.crops":
            continue
        params = entry.get("params", {})
        if params.get("size_px") is not None:
            widths.append(float(params["size_px"]))
        elif params.get("size_um") is not None:
            known = um_per_px or entry.get("um_per_px", {}).get(library_id.replace("/", "_"))
            if known is None:
                msg = (
                    f"Section {library_id!r}: um per pixel is unknown, so the width of the crops cannot be "
                    "compared with distances. Pass `um_per_px=`."
                )
                raise ValueError(msg)
            widths.append(float(params["size_um"]) / known)
    return max(widths, default=default)


def reach_px(
    table: AnnData, library_id: str, xy: np.ndarray, n_rings: int, um_per_px: float | None
) -> tuple[float, float]:
    """Return how far a spot's features reach and the default buffer, in full-resolution pixels.

    Reach: half a crop plus the neighbourhood rings. Default buffer: a whole crop plus the rings, so that no
    neighbour of a training spot shares pixels with the crop of a test spot.
    """
    known = [
        int(entry["params"]["n_rings"])
        for entry in table.uns.get(_keys.UNS, {}).values()
        if entry.get("function") == "pp.spatial_context"
    ]
    pitch = nearest_distance(xy) if len(xy) > 1 else 0.0
    rings = max([n_rings, *known]) * pitch
    scale = um_per_px or um_per_pixel(table, library_id, xy)
    crop = crop_width_px(table, library_id, scale, default=pitch)
    return crop / 2 + rings, crop + rings


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
        name: np.sqrt(len(xy) / n_folds) * nearest_distance(xy) if len(xy) > 1 else 1.0
        for name, xy in points.items()
    }
    for name, side in sides.items():
        require_number(float(side), argument=f"distance between the spots of section {name!r}", above=0)
    for factor in (1, 0.85, 0.7, 0.6, 0.5):
        if (
            sum(len(np.unique(cut_blocks(xy, sides[name] * factor))) for name, xy in points.items())
            >= n_folds
        ):
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
