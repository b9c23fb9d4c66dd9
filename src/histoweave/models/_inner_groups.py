"""What inner folds keep together, and how far apart their two sides must lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._obs import known_donors
from histoweave._resolve import section_column, sections
from histoweave._validate import listing, require_key, warn
from histoweave.pp._blocks import cut_blocks, reach_px
from histoweave.pp._folds import require_finite

BLOCKS_PER_SECTION = 16
APART = 1e9  # between sections, in units of reach: they share no tissue


class InnerGroups(NamedTuple):
    """The groups of the rows, their kind, and where rows lie if only distance keeps them apart.

    Parameters
    ----------
    of_row
        Group of every row ``(n_obs,)``.
    kind
        ``"donor"``, ``"section"``, ``"block"`` or ``"row"``.
    positions
        ``(n_obs, 3)`` in units of how far features reach, for blocks only.
    """

    of_row: np.ndarray
    kind: str
    positions: np.ndarray | None


def inner_groups(
    table: AnnData,
    labelled: np.ndarray,
    *,
    n_rings: int = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
) -> InnerGroups:
    """Return what inner folds of a table keep together, see :func:`kept_together`.

    Parameters
    ----------
    table
        With sections, and donors and coordinates where they are known.
    labelled
        Mask of the labelled rows.
    n_rings
        Rings of neighbours that features draw on beyond what the table records.
    library_key, donor_key, spatial_key
        Where they are.
    """
    spots = pd.DataFrame({_keys.LIBRARY: section_column(table, library_key)})
    if donor_key in table.obs:
        spots[_keys.DONOR] = table.obs[donor_key].to_numpy()
    xy = np.asarray(table.obsm[spatial_key], dtype=float)[:, :2] if spatial_key in table.obsm else None
    groups, kind = kept_together(spots, xy, labelled)
    keys = {"library_key": library_key, "spatial_key": spatial_key}
    return InnerGroups(groups, kind, reach_positions(table, n_rings=n_rings, **keys) if kind == "block" else None)


def require_donors(table: AnnData, donor_key: str) -> None:
    """Raise unless the table has the donors that were named; the column of the default name need not be there."""
    if donor_key != _keys.DONOR:
        require_key(table.obs, donor_key, where="adata.obs", argument="donor_key")


def tell_labels_seen(learned: Iterable[str], section: np.ndarray) -> None:
    """Warn where inner folds test rows whose labels an encoder had learned from.

    Parameters
    ----------
    learned
        Sections whose labels it learned from.
    section
        Section of every labelled row.
    """
    seen = sorted(set(learned) & set(section.astype(str)))
    if seen:
        warn(
            f"An encoder was trained with labels of {listing(seen, 3)}, which inner folds test on: scores in `history` "
            "are too good, probabilities too sure, and the classifier abstains too rarely. Train encoders without "
            "labels, or on other sections."
        )


def kept_together(spots: pd.DataFrame, xy: np.ndarray | None, labelled: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the groups that inner folds keep together, and their kind.

    Donors, else sections, where three or more are labelled: what a new patient's section will be like. With
    fewer, blocks of tissue within the sections. Rows without coordinates (unrelated images) are independent.

    Parameters
    ----------
    spots
        Columns ``library_id`` and, where known, ``donor``.
    xy
        Coordinates ``(n, 2)``.
    labelled
        Mask of the labelled rows.
    """
    section = spots[_keys.LIBRARY].astype(str).to_numpy()
    for kind, names in (("donor", known_donors(spots, section)), ("section", section)):
        if names is not None and len(set(names[labelled])) >= 3:
            return names, kind
    return tissue_blocks(spots[_keys.LIBRARY].to_numpy(), xy), "row" if xy is None else "block"


def tissue_blocks(section: np.ndarray, xy: np.ndarray | None) -> np.ndarray:
    """Return the block of tissue of every row, about 16 a section; without coordinates every row is its own."""
    if xy is None:
        return np.arange(len(section)).astype(str)
    xy = np.asarray(xy, dtype=float)[:, :2]
    require_finite(xy)
    groups = np.empty(len(section), dtype=object)
    for name, rows in pd.Series(range(len(section))).groupby(section.astype(str)).indices.items():
        side = np.sqrt(max(np.prod(np.ptp(xy[rows], axis=0)), 1e-9) / BLOCKS_PER_SECTION)
        groups[rows] = [f"{name}/{block}" for block in cut_blocks(xy[rows], side)]
    return groups


def reach_positions(
    table: AnnData, *, n_rings: int, library_key: str = _keys.LIBRARY, spatial_key: str = _keys.SPATIAL
) -> np.ndarray:
    """Return where rows lie ``(n, 3)`` in units of how far their features reach, sections far apart.

    The reach is half of the widest recorded crop plus the rings of neighbours, see :func:`histoweave.pp.split`.
    """
    xy = np.asarray(table.obsm[spatial_key], dtype=float)[:, :2]
    out = np.empty((table.n_obs, 3))
    for number, (name, rows) in enumerate(sections(table, library_key).items()):
        reach, _ = reach_px(table, name, rows, xy[rows], n_rings)
        out[rows, 0], out[rows, 1:] = number * APART, xy[rows] / max(reach, 1e-9)
    return out
