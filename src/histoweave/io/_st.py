"""Reading legacy Spatial Transcriptomics arrays (before Visium): counts, spot file, image, labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique

from histoweave import _keys
from histoweave._calibration import nearest_distance
from histoweave._image import open_image
from histoweave._record import record
from histoweave._validate import listing, require_number, warn
from histoweave.io import _st_files as files
from histoweave.io._elements import (
    SPOT_ID,
    assemble,
    circles,
    image_element,
    require_name,
    sanitise,
)
from histoweave.io._label_files import read_table

if TYPE_CHECKING:
    from spatialdata import SpatialData


def read_st(
    counts: files.Source | None = None,
    *,
    spots: files.Source | Callable[[np.ndarray], np.ndarray],
    image: str | os.PathLike[str] | None = None,
    labels: files.Source | None = None,
    labels_key: str = _keys.REGION,
    column: str | None = None,
    scale: float = 1.0,
    pitch_um: float = 200.0,
    spot_um: float = 100.0,
    library_id: str | None = None,
    donor: str | None = None,
) -> SpatialData:
    """Read a section of a legacy Spatial Transcriptomics array.

    Parameters
    ----------
    counts
        TSV or CSV file (also gzipped) or DataFrame: one row a spot named by its array position (``10x13`` or
        ``10_13``), one column a gene. None for a section with an image only.
    spots
        Where the spots lie: a TSV or CSV file or DataFrame with columns ``x``, ``y`` (array position),
        ``pixel_x``, ``pixel_y`` and optionally ``selected`` (0 = not under tissue, dropped); or, for arrays
        without a spot file, a function from array positions ``(n, 2)`` to pixels ``(n, 2)``, applied to the
        spots of ``counts`` or, without counts, of ``labels``.
    image
        The image of the section. Its pixel frame becomes the full-resolution frame of the section.
    labels
        Table with columns ``x``, ``y`` and a label (positions are rounded), or a one-hot table: one row a
        label, one column a spot (``17_9``).
    labels_key
        Column of ``obs`` for the labels.
    column
        Label column of ``labels`` where there are several.
    scale
        Factor from the pixels of ``spots`` to those of ``image``, for an image that was reduced afterwards.
    pitch_um
        Distance between the centres of neighbouring spots, in um: 200 for the 1,000-spot arrays.
    spot_um
        Diameter of a spot in um.
    library_id
        Name of the section; by default the beginning of the name of the counts, label, spot or image file
        (``A1.tsv.gz`` and ``A1_selection.tsv`` give ``"A1"``).
    donor
        Patient or animal the section comes from.

    Returns
    -------
    SpatialData
        As from :func:`read_visium`: ``images["{library_id}_full_image"]``, ``shapes[library_id]``, and
        ``tables["table"]`` with ``obs["array_col"]`` = ``x``, ``obs["array_row"]`` = ``y``, rows named
        ``10x13``, and ``uns["spatial"][library_id]["scalefactors"]`` with ``microns_per_pixel`` and
        ``spot_diameter_fullres`` (true spot width).

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A table has not the shape described above, positions repeat, counts and spots share no position, fewer
        than three spots remain, or the counts are not raw counts.

    Notes
    -----
    Spots without a row of counts and rows of counts without a spot are dropped, with a warning that counts
    them. The size of a pixel is ``pitch_um`` over the distance of neighbouring spots in pixels, from a
    least-squares fit of pixels to array positions, so that it does not depend on single misplaced spots.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.io.read_st(  # doctest: +SKIP
    ...     "A1.tsv.gz", spots="A1_selection.tsv", image="A1.png", scale=2000 / 6954
    ... )
    >>> grid = lambda xy: 72.6 * (xy - 1)  # spots 72.6 pixels apart, the first at the corner
    >>> sdata = hw.io.read_st(spots=grid, image="01.jpg", labels="01_annotation.tsv")  # doctest: +SKIP
    """
    require_number(scale, argument="scale", above=0)
    require_number(pitch_um, argument="pitch_um", above=0)
    require_number(spot_um, argument="spot_um", above=0)
    lib = require_name(library_id) if library_id is not None else _name(counts, labels, spots, image)
    annotation = None if labels is None else files.read_labels(labels, column)
    expression = None if counts is None else files.read_counts(counts)
    if callable(spots):
        placed = files.place(spots, annotation, expression)
    else:
        placed = files.read_spots(read_table(spots, argument="spots"))
    table, dropped = _join(placed, expression)
    xy = table.obsm[_keys.SPATIAL] * scale
    table.obsm[_keys.SPATIAL] = xy
    array = table.obs[[_keys.ARRAY_COL, _keys.ARRAY_ROW]].to_numpy()
    um = pitch_um / _pitch_px(array, xy)
    table.obs[_keys.LIBRARY] = pd.Categorical([lib] * table.n_obs)
    if donor is not None:
        table.obs[_keys.DONOR] = pd.Categorical([str(donor)] * table.n_obs)
    if annotation is not None:
        _add_labels(table, annotation, labels_key)
    metadata = {"platform": "st", "array_pitch_um": float(pitch_um), "array_grid": "square"}
    images = {}
    if image is not None:
        images[f"{lib}_full_image"] = image_element(open_image(image), lib)
        metadata["source_image_path"] = str(Path(image).resolve())
    factors = {"microns_per_pixel": um, "spot_diameter_fullres": spot_um / um}
    table.uns["spatial"] = {lib: {"scalefactors": factors, "metadata": metadata}}
    record(
        table,
        f"section_{lib}",
        "io.read_st",
        {
            "counts": _shown(counts),
            "spots": _shown(spots),
            "image": image,
            "labels": _shown(labels),
            "scale": scale,
            "pitch_um": pitch_um,
            "spot_um": spot_um,
            "donor": donor,
        },
        **dropped,
    )
    table.obs[SPOT_ID] = np.arange(table.n_obs)
    shapes = {lib: circles(xy, factors["spot_diameter_fullres"], table.obs[SPOT_ID].to_numpy(), lib)}
    return assemble(table, images, shapes)


def _name(*sources: object) -> str:
    for source in sources:
        if isinstance(source, str | os.PathLike):
            return sanitise(Path(source).name.split(".")[0].split("_")[0])
    msg = "Pass `library_id=`: no file name tells the name of the section."
    raise ValueError(msg)


def _shown(source: object) -> str | None:
    if source is None or isinstance(source, str | os.PathLike):
        return source
    return getattr(source, "__name__", type(source).__name__)


def _join(placed: pd.DataFrame, expression: tuple | None) -> tuple[AnnData, dict[str, int]]:
    dropped = {}
    if expression is None:
        table = AnnData(obs=pd.DataFrame(index=placed.index))
    else:
        matrix, names, genes = expression
        both = placed.index[placed.index.isin(names)]
        if not len(both):
            msg = (
                f"`counts` (e.g. {listing(names[:3])}) and `spots` (e.g. {listing(placed.index[:3])}) share no array "
                "position: they belong to different sections, or x and y are swapped in one of them."
            )
            raise ValueError(msg)
        dropped = {
            "spots_without_counts": len(placed) - len(both),
            "counts_without_spot": len(names) - len(both),
        }
        if any(dropped.values()):
            warn(
                f"Dropped {dropped['spots_without_counts']} spots without counts and "
                f"{dropped['counts_without_spot']} rows of counts without a spot; {len(both)} spots remain."
            )
        if not genes.is_unique:
            warn(f"{int(genes.duplicated().sum())} gene names repeat; a suffix was added to tell them apart.")
            genes = make_index_unique(genes)
        table = AnnData(matrix[names.get_indexer(both)], obs=pd.DataFrame(index=both), var=pd.DataFrame(index=genes))
        table.layers[_keys.COUNTS] = table.X.copy()
    here = placed.loc[table.obs_names]
    table.obs[_keys.IN_TISSUE] = True
    table.obs[_keys.ARRAY_ROW] = np.rint(here["y"]).astype(int)
    table.obs[_keys.ARRAY_COL] = np.rint(here["x"]).astype(int)
    table.obsm[_keys.SPATIAL] = here[["pixel_x", "pixel_y"]].to_numpy(dtype=float)
    return table, dropped


def _pitch_px(array: np.ndarray, xy: np.ndarray) -> float:
    """Distance of neighbouring spots in pixels, from the affine map of array positions to pixels."""
    design = np.column_stack([array, np.ones(len(array))])
    fit, _, rank, _ = np.linalg.lstsq(design, xy, rcond=None)
    pixels_per_step = np.sqrt(abs(np.linalg.det(fit[:2])))
    if rank < 3 or not pixels_per_step > 0:
        msg = (
            f"The size of a pixel cannot be told from {len(array)} spots: at least three that do not lie on "
            "one line, each at its own place in the image, are needed."
        )
        raise ValueError(msg)
    return float(pixels_per_step * nearest_distance(array.astype(float)))


def _add_labels(table: AnnData, annotation: pd.Series, labels_key: str) -> None:
    found = annotation.reindex(table.obs_names)
    known = annotation.index.isin(table.obs_names)
    if not known.any():
        msg = (
            f"No position of `labels` (e.g. {listing(annotation.index[:3])}) is a spot of the section (e.g. "
            f"{listing(table.obs_names[:3])})."
        )
        raise ValueError(msg)
    if not known.all():
        warn(f"{int((~known).sum())} of {len(known)} labelled positions are not among the spots and were left out.")
    table.obs[labels_key] = pd.Categorical(found.to_numpy())
