"""Reading folds: what to train on, what to test on, and whether it leaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from histoweave import _keys
from histoweave._record import recorded
from histoweave._resolve import section_column
from histoweave._validate import listing, require_key
from histoweave.pp._blocks import reach_px

SAME_PLACE = 1e-9  # pixels: rows nearer than this share everything
NOT_IN_A_FOLD = ("", "-1", "-1.0", "nan", "None", "<NA>")


@dataclass(frozen=True)
class Fold:
    """One fold: what to train on and what to test on.

    Attributes
    ----------
    name
        Name of the fold.
    train, test
        Masks ``(n_obs,)``. Rows of no fold, and rows inside the buffer of a test row, are in neither.
    transductive
        Training and test rows share a section: an encoder trained on whole sections has seen test pixels.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    transductive: bool


def fold_column(table: AnnData, fold_key: str = _keys.FOLD) -> np.ndarray:
    """Return the fold of every row as a string, empty for rows of no fold (missing or -1)."""
    require_key(table.obs, fold_key, where="adata.obs", argument="fold_key", run="hw.pp.split(...)")
    values = table.obs[fold_key]
    names = values.astype(object).where(values.notna(), "").map(fold_name).to_numpy(dtype=object)
    found = np.unique(names[names != ""].astype(str))
    if len(found) < 2:
        msg = f"`adata.obs[{fold_key!r}]` needs 2 folds or more, has {listing(found)}. Run `hw.pp.split(...)`."
        raise ValueError(msg)
    return names


def iter_folds(
    table: AnnData,
    *,
    fold_key: str = _keys.FOLD,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
) -> Iterator[Fold]:
    """Yield every fold of ``obs[fold_key]`` with the recorded buffer around its test rows.

    Parameters
    ----------
    table
        The table, with folds from :func:`histoweave.pp.split` or the user's own.
    fold_key
        Column of ``obs``; missing or -1 means that a row is in no fold.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        ``obsm`` key of the coordinates.
    """
    column = fold_column(table, fold_key)
    section = section_column(table, library_key)
    buffer = _recorded_buffer(table, fold_key, section)
    yield from make_folds(column, section, coordinates(table, spatial_key), buffer)


def leakage(
    table: AnnData,
    *,
    fold_key: str = _keys.FOLD,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    n_rings: int = 2,
) -> str | None:
    """Return why the folds leak, ``None`` when they do not.

    Folds leak when one donor's sections are in training and test, or when a training row lies nearer to a
    test row of its section than features reach (half a crop plus ``n_rings`` neighbourhood rings).

    Parameters
    ----------
    table, fold_key, library_key, spatial_key
        As for :func:`iter_folds`.
    donor_key
        Column of ``obs`` that names the donor, where known.
    n_rings
        Rings that features draw on; recorded larger ones count.
    """
    column = fold_column(table, fold_key)
    buffer = _recorded_buffer(table, fold_key, section_column(table, library_key))
    return find_leak(
        table, column, buffer, library_key=library_key, donor_key=donor_key, spatial_key=spatial_key,
        n_rings=n_rings,
    )  # fmt: skip


def fold_order(column: np.ndarray) -> list[str]:
    """Return the fold names in order, numbers by value."""
    names = {str(name) for name in column if name != ""}
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def coordinates(table: AnnData, spatial_key: str) -> np.ndarray | None:
    """Return the coordinates ``(n_obs, 2)``, ``None`` where there are none."""
    if spatial_key not in table.obsm:
        return None
    return np.asarray(table.obsm[spatial_key], dtype=float)[:, :2]


def require_finite(xy: np.ndarray) -> None:
    """Raise unless all coordinates are finite: distances are about to be compared."""
    if not np.isfinite(xy).all():
        bad = int((~np.isfinite(xy)).any(axis=1).sum())
        msg = f"{bad} rows have NaN or infinite coordinates; remove them first."
        raise ValueError(msg)


def make_folds(
    column: np.ndarray, section: np.ndarray, xy: np.ndarray | None, buffer: dict[str, float]
) -> Iterator[Fold]:
    """Yield the folds of a column; training rows within ``buffer`` pixels of test rows left out."""
    for name in fold_order(column):
        test = column == name
        train = (column != "") & ~test
        for library in dict.fromkeys(section[test]):
            rows = np.flatnonzero(train & (section == library))
            if len(rows) and buffer.get(library) and xy is not None:
                require_finite(xy)
                tree = cKDTree(xy[test & (section == library)])
                distance, _ = tree.query(xy[rows], distance_upper_bound=buffer[library] * (1 + 1e-9))
                train[rows[np.isfinite(distance)]] = False
        yield Fold(name, train, test, transductive=not set(section[train]).isdisjoint(section[test]))


def find_leak(
    table: AnnData,
    column: np.ndarray,
    buffer: dict[str, float],
    *,
    library_key: str,
    donor_key: str,
    spatial_key: str,
    n_rings: int,
) -> str | None:
    """Return why folds with these names and buffers leak, ``None`` when they do not."""
    section = section_column(table, library_key)
    xy = coordinates(table, spatial_key)
    reason = _shared_groups(table, column, section, donor_key, located=xy is not None)
    if reason or xy is None:
        return reason

    @cache
    def reach_of(name: str) -> tuple[float, float]:
        rows = np.flatnonzero(section == name)
        return reach_px(table, name, rows, xy[rows], n_rings)

    for fold in make_folds(column, section, xy, buffer):
        for name in dict.fromkeys(section[fold.test]):
            here = section == name
            if not (fold.train & here).any():
                continue
            require_finite(xy)
            reach, wanted = reach_of(name)
            tree = cKDTree(xy[fold.test & here])
            gap = tree.query(xy[fold.train & here], distance_upper_bound=max(reach * (1 - 1e-6), SAME_PLACE))[0].min()
            if np.isfinite(gap):
                return (
                    f"in section {name!r} training rows lie {gap:.0f} px from test rows (fold {fold.name!r}) "
                    f"but half a crop and the neighbourhood rings reach {reach:.0f} px. Use `by='donor'`, or "
                    f"`by='blocks'` with a buffer of {wanted:.0f} px (the default)."
                )
    return None


def _shared_groups(
    table: AnnData, column: np.ndarray, section: np.ndarray, donor_key: str, *, located: bool
) -> str | None:
    """Why groups that must stay together do not: a donor's sections, or a section without coordinates."""
    frame = pd.DataFrame({"section": section, "fold": column})
    if donor_key in table.obs:
        frame["donor"] = table.obs[donor_key].astype(object).to_numpy()
        spread = frame[column != ""].dropna(subset="donor").groupby("donor").nunique()
        bad = spread.index[(spread["fold"] > 1) & ((spread["section"] > 1) | (not located))]
        if len(bad):
            return (
                f"images or sections of one donor ({listing(bad, 3)}) are in training and test, and serial "
                "sections are nearly copies. Use `by='donor'`."
            )
    spread = frame[column != ""].groupby("section")["fold"].nunique()
    if not located and len(spread) > 1 and (spread > 1).any():
        return (
            f"section {spread.idxmax()!r} is in training and test, and there are no coordinates to keep its "
            "rows apart. Use `by='library_id'`."
        )
    return None


def fold_name(value: Any) -> str:
    """Return the fold that a value in a column of folds names, empty for none."""
    if isinstance(value, float) and value.is_integer():  # integers with gaps are read as float
        value = int(value)
    name = str(value).strip()
    return "" if name in NOT_IN_A_FOLD else name


def _recorded_buffer(table: AnnData, fold_key: str, section: np.ndarray) -> dict[str, float]:
    stored = recorded(table, fold_key).get("buffer_px", {})
    return {name: float(stored.get(name.replace("/", "_"), 0)) for name in dict.fromkeys(section)}
