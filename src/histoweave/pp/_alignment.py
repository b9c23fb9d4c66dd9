"""A preflight for the geometry of a section: do coordinates, image, scale and crops belong together?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._calibration import PRINTED_SPOT_UM, array_pitch_um, platform
from histoweave._record import record
from histoweave._resolve import is_spatialdata, sections, working_copy
from histoweave._validate import require_key, require_number, require_sections
from histoweave.pp._alignment_checks import (
    Finding,
    Section,
    check_coordinates,
    check_images,
    check_pixel_size,
)
from histoweave.pp._alignment_placement import check_placement

if TYPE_CHECKING:
    from spatialdata import SpatialData

WIDEST_CROP = 6.0  #: in array pitches; wider windows of neighbouring spots are nearly the same picture


def check_alignment(
    data: AnnData | SpatialData,
    *,
    crop_um: float | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    table_key: str = _keys.TABLE,
) -> pd.DataFrame:
    """Check that spots, image, scale and crops of each section belong together, and how to mend them.

    Parameters
    ----------
    data
        A table, or a SpatialData object with one.
    crop_um
        Side of the crops that are planned, in um; crops that :func:`histoweave.pp.crops` has cut are checked
        anyway.
    um_per_px
        Micrometres per full-resolution pixel where you know it, one number or one for each section.
    library_key
        Column of ``obs`` that names the section.
    spatial_key
        Full-resolution pixel coordinates (x, y) in ``obsm``.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    DataFrame
        One row a check and section: ``library_id``, ``check``, ``status`` (``"ok"``, ``"warn"``: look at
        it, ``"fail"``: results would be wrong), ``value``, ``expected``, ``message`` and ``fix``, lines of
        code that mend it where code can (``data`` stands for the object that was checked). Also kept in
        ``uns["histoweave"]["alignment"]["findings"]`` for :func:`histoweave.pl.alignment`.

    Notes
    -----
    ``coordinates``
        Missing values; several spots at one place.
    ``image``
        There is one, its scale factors are positive, and all images of the section give the same full size.
    ``on_image``
        Share of spots within the image; spots outside the tissue may lie off it, as in Visium HD.
    ``on_tissue``
        Share of spots (those in tissue where ``in_tissue`` tells) on tissue, which is found on a thumbnail by
        Otsu's method on the optical density.
    ``orientation``
        Whether another of the eight ways to lay x and y matches the tissue markedly better, and whether the
        array is mirrored: rows must run downwards where columns run to the right, however the slide is
        turned.
    ``scale``
        Whether another scale matches markedly better, such as that of coordinates in pixels of the small
        image.
    ``pixel_size``
        Whether micrometres per pixel are known and their sources agree within 5 %. Space Ranger's
        ``spot_diameter_fullres`` spans a theoretical 65 um; the printed spot is 55 um wide, and the array's
        pitch of 100 um is the independent measure.
    ``crop_size``
        Crops narrower than a spot, or wider than six pitches.

    Spots and tissue match by the harmonic mean of the share of spots on tissue and the share of tissue under
    spots; another placement has to be better by 0.15 to be reported.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> bool((hw.pp.check_alignment(adata)["status"] == "fail").any())
    False
    """
    if crop_um is not None:
        require_number(crop_um, argument="crop_um", above=0)
    _, table = working_copy(data, table_key)
    require_key(table.obsm, spatial_key, where="adata.obsm", argument="spatial_key", run="hw.io.read_visium(...)")
    xy = np.asarray(table.obsm[spatial_key], dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2:
        msg = f"`adata.obsm[{spatial_key!r}]` must have shape ({table.n_obs}, 2) as (x, y), got {xy.shape}."
        raise ValueError(msg)
    home = f"data.tables[{table_key!r}]" if is_spatialdata(data) else "data"
    rows = sections(table, library_key)
    require_sections(um_per_px, rows, argument="um_per_px")
    findings: list[Finding] = []
    for name, index in rows.items():
        section = Section(
            data,
            table,
            name,
            index,
            xy[index],
            table_key,
            spatial_key,
            home,
            library_key if len(rows) > 1 else None,
        )
        findings += _check_section(section, um_per_px, crop_um)
    frame = pd.DataFrame(findings, columns=list(Finding._fields))
    record(
        table,
        "alignment",
        "pp.check_alignment",
        {"crop_um": crop_um, "um_per_px": um_per_px},
        findings={column: frame[column].to_numpy() for column in frame},
    )
    return frame


def _check_section(
    section: Section, um_per_px: float | Mapping[str, float] | None, crop_um: float | None
) -> list[Finding]:
    found = check_coordinates(section)
    if not np.isfinite(section.xy).all():
        return found  # nothing further can be measured
    pixel_size, calibration = check_pixel_size(section, um_per_px)
    images, pictures = check_images(section)
    found += images
    if pictures:
        found += check_placement(section, pictures, calibration)
    return found + pixel_size + _check_crops(section, crop_um)


def _check_crops(section: Section, crop_um: float | None) -> list[Finding]:
    table, name = section.table, section.name
    stored = name.replace("/", "_")
    sizes = {
        key: entry["size_um"][stored]
        for key, entry in table.uns.get(_keys.UNS, {}).items()
        if entry.get("function") == "pp.crops" and stored in entry.get("size_um", {})
    }
    if crop_um is not None:
        sizes["planned crops"] = crop_um
    pitch = array_pitch_um(table, name, section.rows)
    spot = PRINTED_SPOT_UM.get(platform(table, name, section.rows) or "", 0.0)
    findings = []
    for key, size in sizes.items():
        key_added = "" if key in (_keys.CROPS, "planned crops") else f", key_added={key!r}"
        if size < spot:
            wrong = f"{key} of {size:g} um are narrower than a spot ({spot:g} um) and cut it off."
            better = 2 * spot
        elif pitch and size > WIDEST_CROP * pitch:
            wrong = (
                f"{key} of {size:g} um span {size / pitch:.1f} array pitches of {pitch:g} um: neighbouring spots see "
                "nearly the same picture, and splits by blocks need a buffer as wide."
            )
            better = 3 * pitch
        else:
            findings.append(section.finding("crop_size", "ok", size, _between(spot, pitch), f"{key}: {size:g} um."))
            continue
        fix = f"hw.pp.crops(data, size_um={better:g}{key_added})"
        findings.append(section.finding("crop_size", "warn", size, _between(spot, pitch), wrong, fix))
    return findings


def _between(spot: float, pitch: float | None) -> str:
    return f"{spot:g}..{WIDEST_CROP * pitch:g} um" if pitch else f"{spot:g} um or more"
