"""Folds that do not leak: by donor, by section, or by blocks of tissue with a buffer around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import um_per_pixel
from histoweave._random import SeedLike, rng
from histoweave._record import record
from histoweave._resolve import section_column, working_copy
from histoweave._validate import (
    listing,
    require_choice,
    require_key,
    require_labels,
    require_number,
    require_sections,
    warn,
)
from histoweave.pp._blocks import cut_blocks, deal, default_sides, reach_px
from histoweave.pp._folds import (
    Fold,
    coordinates,
    find_leak,
    fold_column,
    fold_name,
    fold_order,
    iter_folds,
    leakage,
    make_folds,
    require_finite,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = ["Fold", "fold_column", "iter_folds", "leakage", "split"]


def split(
    data: AnnData | SpatialData,
    *,
    by: str = "donor",
    n_folds: int | None = 5,
    labels_key: str | None = _keys.REGION,
    block_um: float | None = None,
    buffer_um: float | None = None,
    n_rings: int = 2,
    um_per_px: float | Mapping[str, float] | None = None,
    key_added: str = _keys.FOLD,
    allow_leakage: bool = False,
    random_state: SeedLike = 0,
    library_key: str = _keys.LIBRARY,
    donor_key: str = _keys.DONOR,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Deal the rows to folds for cross-validation, without leaks.

    Neighbouring spots share pixels, and serial sections of a patient share tissue: random spots in training
    and test measure memory. Whole donors or sections are dealt to folds; where there is one section, square
    blocks of tissue, with a buffer around the test blocks left unused. A design that leaks is refused.

    Parameters
    ----------
    data
        AnnData or SpatialData object.
    by
        ``"donor"`` (the honest choice for a new patient), ``"library_id"`` (whole sections),
        ``"blocks"`` (within sections), or ``"spots"`` (leaks on tissue; for unrelated images).
    n_folds
        Number of folds; ``None`` leaves one donor, section or block out at a time.
    labels_key
        Labels in ``obs`` whose counts are balanced over the folds, where present.
    block_um
        Side of a block in um. Default: as large as the number of folds allows.
    buffer_um
        Width in um of the strip around test rows that is left out of training. Default: one crop width (as
        recorded by ``hw.pp.crops``, else the widest default crop, 3 array pitches) plus ``n_rings`` array pitches.
    n_rings
        Neighbourhood rings that later steps draw on (see ``hw.pp.spatial_context``).
    um_per_px
        Um per full-resolution pixel, one number or one for each section. Default: what the section knows.
    key_added
        Column of ``obs`` to write.
    allow_leakage
        Accept a design that leaks; warned of and recorded.
    random_state
        Seed; breaks ties while dealing.
    library_key, donor_key
        Columns of ``obs`` that name the section and the donor.
    spatial_key
        ``obsm`` key of the full-resolution pixel coordinates.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed object if ``copy=True``. Writes to the table:

    - ``obs[key_added]``: name of the fold in which a row is tested, categorical.
    - ``uns["histoweave"][key_added]``: arguments, ``buffer_px`` per section, sections and class counts per
      fold, training rows per fold, and the classes absent from a fold's training part.

    Raises
    ------
    ValueError
        The design leaks, there are fewer groups than folds, or the buffer leaves nothing to train on.
    KeyError
        The donor column or the coordinates are missing.

    Notes
    -----
    Training rows nearer than half a crop plus the rings to a test row would have its centre among their
    features: a narrower ``buffer_um`` is refused. See Roberts et al. 2017, Ecography 40:913 for blocks.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.split(adata, by="blocks", n_folds=3)
    """
    require_choice(by, ("donor", "library_id", "blocks", "spots"), argument="by")
    if n_folds is not None:
        require_number(n_folds, argument="n_folds", at_least=2, integer=True)
    if block_um is not None:
        require_number(block_um, argument="block_um", above=0)
    if buffer_um is not None:
        require_number(buffer_um, argument="buffer_um", at_least=0)
    require_number(n_rings, argument="n_rings", at_least=0, integer=True)
    out, table = working_copy(data, table_key, copy=copy)
    section = section_column(table, library_key)
    require_sections(um_per_px, dict.fromkeys(section), argument="um_per_px")
    classes = _classes(table, labels_key)
    side: dict[str, float] = {}
    buffer: dict[str, float] = {}
    if by == "blocks":
        points = _points(table, section, spatial_key)
        side = (
            default_sides(points, n_folds or 5) if block_um is None
            else _to_px(table, section, block_um, um_per_px, spatial_key)
        )  # fmt: skip
        buffer = (
            {n: reach_px(table, n, np.flatnonzero(section == n), xy, n_rings)[1] for n, xy in points.items()}
            if buffer_um is None else _to_px(table, section, buffer_um, um_per_px, spatial_key)
        )  # fmt: skip
        groups = np.empty(table.n_obs, dtype=object)
        for name, xy in points.items():
            groups[section == name] = [f"{name}:{block}" for block in cut_blocks(xy, side[name])]
    else:
        groups = _whole_groups(table, by, section, donor_key)
    column = _deal(groups, classes, n_folds, by, rng(random_state))

    reason = find_leak(
        table, column, buffer, library_key=library_key, donor_key=donor_key, spatial_key=spatial_key,
        n_rings=n_rings,
    )  # fmt: skip
    if reason and not allow_leakage:
        msg = f"This split leaks: {reason} Pass `allow_leakage=True` to insist; scores will then be too good."
        raise ValueError(msg)
    if reason:
        warn(f"This split leaks, as asked for: {reason}")
    folds = list(make_folds(column, section, coordinates(table, spatial_key), buffer))
    report = _report(folds, section, classes)
    table.obs[key_added] = pd.Categorical(column, categories=fold_order(column))
    params = {
        "by": by, "n_folds": n_folds, "labels_key": labels_key, "block_um": block_um, "buffer_um": buffer_um,
        "n_rings": n_rings, "um_per_px": um_per_px, "allow_leakage": allow_leakage,
    }  # fmt: skip
    record(table, key_added, "pp.split", params, random_state=random_state, buffer_px=buffer or None,
           block_px=side or None, leakage=reason, **report)  # fmt: skip
    return out if copy else None


def _classes(table: AnnData, labels_key: str | None) -> pd.Series:
    """Labels of every row, missing where there is none: a split works by geometry alone."""
    unlabelled = pd.Series(None, index=table.obs_names, dtype=object)
    if labels_key is None or (labels_key == _keys.REGION and labels_key not in table.obs):
        return unlabelled
    require_key(table.obs, labels_key, where="adata.obs", argument="labels_key", run="hw.io.read_labels(...)")
    if table.obs[labels_key].isna().all():
        return unlabelled
    return require_labels(table, labels_key, min_classes=1)


def _whole_groups(table: AnnData, by: str, section: np.ndarray, donor_key: str) -> np.ndarray:
    """The donor, the section or the own number of every row."""
    if by == "spots":
        return np.arange(table.n_obs).astype(str)
    if by == "library_id":
        if donor_key not in table.obs and len(set(section)) > 1:
            warn(f"`adata.obs[{donor_key!r}]` is missing: serial sections of one donor would go unnoticed.")
        return section
    if donor_key not in table.obs:
        msg = (
            f"`donor_key={donor_key!r}` is not in `adata.obs`; available: {listing(table.obs.columns)}. Name "
            "the patient or animal of every row there, or split with `by='library_id'` or `by='blocks'`."
        )
        raise KeyError(msg)
    donors = table.obs[donor_key]
    if donors.isna().any():
        msg = f"`adata.obs[{donor_key!r}]` is missing for {int(donors.isna().sum())} rows; name their donor."
        raise ValueError(msg)
    return donors.astype(str).to_numpy(dtype=object)


def _points(table: AnnData, section: np.ndarray, spatial_key: str) -> dict[str, np.ndarray]:
    """Coordinates of each section."""
    require_key(table.obsm, spatial_key, where="adata.obsm", argument="spatial_key", run="hw.io.read_visium(...)")
    xy = coordinates(table, spatial_key)
    require_finite(xy)
    return {str(name): xy[section == name] for name in dict.fromkeys(section)}


def _to_px(
    table: AnnData,
    section: np.ndarray,
    um: float,
    um_per_px: float | Mapping[str, float] | None,
    spatial_key: str,
) -> dict[str, float]:
    """A length in um as full-resolution pixels of each section."""
    return {
        str(name): um / um_per_pixel(
            table, name, np.flatnonzero(section == name), um_per_px=um_per_px, spatial_key=spatial_key
        ).um_per_px
        for name in dict.fromkeys(section)
    }  # fmt: skip


def _deal(
    groups: np.ndarray, classes: pd.Series, n_folds: int | None, by: str, generator: np.random.Generator
) -> np.ndarray:
    """Name of the fold of every row: its group when one is left out at a time, else a number."""
    names = np.unique(groups.astype(str))
    unit = {"donor": "donors", "library_id": "sections"}.get(by, by)
    if len(names) < (n_folds or 2):
        hint = " Smaller blocks (`block_um=`) or fewer folds help." if by == "blocks" else (
            " Ask for fewer folds, or split within sections with `by='blocks'`.")  # fmt: skip
        wanted = n_folds or "two or more"
        msg = f"{len(names)} {unit} ({listing(names, 5)}) cannot be dealt to {wanted} folds.{hint}"
        raise ValueError(msg)
    if n_folds is None:
        taken = [name for name in names if fold_name(name) != name]
        if taken:
            msg = (
                f"{unit} {listing(taken, 3)} would name folds, where that name means none or another one: rename them "
                "in `adata.obs`, or give `n_folds=`, whose folds are numbered."
            )
            raise ValueError(msg)
        return groups.astype(str).astype(object)
    fold = deal(groups.astype(str), pd.factorize(classes)[0], n_folds, generator)
    return fold.astype(str).astype(object)


def _report(folds: list[Fold], section: np.ndarray, classes: pd.Series) -> dict[str, Any]:
    """Sections, sizes and class counts of each fold; warns of classes that cannot be learned in one."""
    empty = [fold.name for fold in folds if not fold.train.any()]
    if empty:
        msg = (
            f"The buffer leaves nothing to train on in fold {listing(empty)}. Use fewer, larger blocks "
            "(smaller `n_folds`, larger `block_um`), a smaller crop or fewer rings, or more sections."
        )
        raise ValueError(msg)
    known = set(classes.dropna())
    absent = {fold.name: sorted(known - set(classes[fold.train].dropna())) for fold in folds}
    absent = {name: missing for name, missing in absent.items() if missing}
    if absent:
        found = "; ".join(f"fold {name!r}: {listing(missing)}" for name, missing in absent.items())
        warn(f"Classes without a training spot, which a model of that fold cannot predict: {found}.")
    kept = {fold.name: float(fold.train.sum() / max((~fold.test).sum(), 1)) for fold in folds}
    poor = [name for name, share in kept.items() if share < 0.5]
    if poor:
        warn(f"The buffer takes more than half of the training rows of {listing(poor)}; use larger blocks.")
    return {
        "sections": {fold.name: sorted(set(section[fold.test])) for fold in folds},
        "class_counts": {fold.name: classes[fold.test].value_counts().to_dict() for fold in folds},
        "n_test": {fold.name: int(fold.test.sum()) for fold in folds},
        "n_train": {fold.name: int(fold.train.sum()) for fold in folds},
        "absent_in_training": absent or None,
        "transductive": any(fold.transductive for fold in folds),
    }
