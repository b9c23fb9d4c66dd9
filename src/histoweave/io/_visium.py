"""Reading a section from the output folder of Space Ranger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._image import open_image
from histoweave._record import record
from histoweave._validate import listing, require_choice, warn
from histoweave.io import _spaceranger as files
from histoweave.io._elements import SPOT_ID, assemble, circles, image_element, require_name, sanitise
from histoweave.io._tenx import read_counts

if TYPE_CHECKING:
    from spatialdata import SpatialData


def read_visium(
    path: str | os.PathLike[str],
    *,
    library_id: str | None = None,
    counts: str | None = "filtered",
    image: str | os.PathLike[str] | None = None,
    bin_um: int | None = None,
    donor: str | None = None,
) -> SpatialData:
    """Read a Visium or Visium HD section from its Space Ranger folder (versions 1 to 4).

    Nothing is ever written to the folder.

    Parameters
    ----------
    path
        The ``outs/`` folder of ``spaceranger count``, the folder above it, or one
        ``binned_outputs/square_XXXum`` folder of a Visium HD section.
    library_id
        Name of the section. By default the prefix of the matrix file, else the library named in the matrix,
        else the name of the folder (of the one above ``outs``).
    counts
        ``"filtered"`` (spots under tissue), ``"raw"`` (all spots), or ``None`` to read the spots under tissue
        without expression. The h5 file is preferred to the MatrixMarket folder.
    image
        Full-resolution image file that was given to Space Ranger; a TIFF is opened lazily. Without it
        the hires image is the finest.
    bin_um
        Bin size in um of a Visium HD section; 8 when left out.
    donor
        Patient or animal the section comes from, written to ``obs["donor"]``.

    Returns
    -------
    SpatialData
        - ``images``: ``{library_id}_full_image`` (when given), ``_hires_image``, ``_lowres_image``; RGB
          uint8, ``(c, y, x)``, each with a transformation to the coordinate system ``{library_id}``, the
          full-resolution pixel frame.
        - ``shapes[library_id]``: one circle a spot (or bin), diameter ``spot_diameter_fullres``.
        - ``tables["table"]``: ``X`` and ``layers["counts"]`` raw counts, ``obsm["spatial"]`` pixel
          coordinates (x, y), ``obs`` ``library_id``, ``in_tissue``, ``array_row``, ``array_col`` (and
          ``donor``), ``var["gene_ids"]``, and ``uns["spatial"][library_id]`` with ``scalefactors`` and
          ``metadata``.

    Raises
    ------
    FileNotFoundError
        ``path`` is no Space Ranger folder, or its matrix or positions are missing; the message lists what is
        there.
    OSError
        The matrix is damaged or was cut off.
    ValueError
        An image is damaged, the section is empty, barcodes occur twice or do not match the positions, or
        there is no such bin.

    Notes
    -----
    Stated fallbacks, each with a warning and recorded in ``uns["histoweave"]``: barcodes without a position
    are dropped; an image whose scale factor is missing, zero or NaN cannot be placed and is left out;
    features other than gene expression are left out.

    Counts are read by :func:`scanpy.read_10x_h5`. The result equals that of ``spatialdata_io.visium`` and
    ``visium_hd`` in counts, coordinates, circles and image placement; here a missing library id, RGBA images
    and headers in any position file work as well, and ``obs["region"]`` stays free for labels.

    Examples
    --------
    >>> import histoweave as hw
    >>> sdata = hw.io.read_visium("V1_Breast_Cancer/outs", donor="P1")  # doctest: +SKIP
    >>> hd = hw.io.read_visium("Visium_HD_Colon/outs", bin_um=16)  # doctest: +SKIP
    """
    require_choice(counts, ("filtered", "raw", None), argument="counts")
    layout = files.locate(Path(path), bin_um)
    positions = files.read_positions(layout.spatial)
    if counts is None:
        inside = positions.index[positions[_keys.IN_TISSUE]]
        if not len(inside):
            msg = f"No spot of {str(layout.root)!r} lies in tissue, so there is nothing to read without counts."
            raise ValueError(msg)
        table, attributes, prefix, dropped = AnnData(obs=pd.DataFrame(index=inside)), {}, "", 0
    else:
        source, prefix = files.find_counts(layout.root, counts)
        table, attributes = read_counts(source)
        table, dropped = _with_positions(table, positions, source)
        table.layers[_keys.COUNTS] = table.X.copy()
    lib = _name(library_id, prefix, attributes, layout)
    factors = files.read_scalefactors(layout.spatial)
    metadata = _metadata(layout, attributes)
    images, left_out = _images(layout, lib, factors)
    if image is not None:
        images = {f"{lib}_full_image": image_element(open_image(image), lib)} | images
        metadata["source_image_path"] = str(Path(image).resolve())
    _fill_obs(table, positions, lib, donor)
    table.uns["spatial"] = {lib: {"scalefactors": factors, "metadata": metadata}}
    record(
        table,
        f"section_{lib}",
        "io.read_visium",
        {"path": str(path), "counts": counts, "image": image, "bin_um": layout.bin_um, "donor": donor},
        barcodes_dropped=dropped,
        images_left_out=left_out or None,
    )
    xy = table.obsm[_keys.SPATIAL]
    shapes = {lib: circles(xy, factors.get("spot_diameter_fullres"), table.obs[SPOT_ID].to_numpy(), lib)}
    return assemble(table, images, shapes)


def _name(library_id: str | None, prefix: str, attributes: dict[str, Any], layout: files.Layout) -> str:
    if library_id is not None:
        return require_name(library_id)
    named = attributes.get("library_ids", [])
    return sanitise(prefix or (named[0] if len(named) == 1 and named[0] else layout.name_folder.name))


def _with_positions(table: AnnData, positions: pd.DataFrame, source: Path) -> tuple[AnnData, int]:
    known = table.obs_names.isin(positions.index)
    if not known.any():
        msg = (
            f"No barcode of {str(source)!r} (e.g. {listing(table.obs_names[:3])}) is in the spot positions "
            f"(e.g. {listing(positions.index[:3])}): the `spatial/` folder belongs to another section."
        )
        raise ValueError(msg)
    dropped = int((~known).sum())
    if dropped:
        warn(
            f"{dropped} of {table.n_obs} barcodes have no position and were dropped (e.g. "
            f"{listing(table.obs_names[~known], 3)})."
        )
        table = table[known].copy()
    return table, dropped


def _fill_obs(table: AnnData, positions: pd.DataFrame, lib: str, donor: str | None) -> None:
    here = positions.loc[table.obs_names]
    table.obs[_keys.LIBRARY] = pd.Categorical([lib] * table.n_obs)
    if donor is not None:
        table.obs[_keys.DONOR] = pd.Categorical([str(donor)] * table.n_obs)
    for key in (_keys.IN_TISSUE, _keys.ARRAY_ROW, _keys.ARRAY_COL):
        table.obs[key] = here[key].to_numpy()
    table.obs[SPOT_ID] = np.arange(table.n_obs)
    table.obsm[_keys.SPATIAL] = here[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)


def _metadata(layout: files.Layout, attributes: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v[0] for k, v in attributes.items() if k != "library_ids" and v}
    if layout.bin_um is None:
        return kept | {"platform": "visium", "array_pitch_um": 100.0, "array_grid": "hex"}
    return kept | {"platform": "visium_hd", "array_pitch_um": float(layout.bin_um), "array_grid": "square"}


def _images(layout: files.Layout, lib: str, factors: dict[str, float]) -> tuple[dict[str, Any], list[str]]:
    images: dict[str, Any] = {}
    left_out = []
    for name in ("hires", "lowres"):
        found = [
            p
            for end in ("png", "jpg", "jpeg", "tif", "tiff")
            if (p := layout.spatial / f"tissue_{name}_image.{end}").exists()
        ]
        if not found:
            continue
        if f"tissue_{name}_scalef" in factors:
            images[f"{lib}_{name}_image"] = image_element(open_image(found[0]), lib, factors[f"tissue_{name}_scalef"])
        else:
            left_out.append(name)
            warn(
                f"Section {lib!r}: the {name} image was left out, because without `tissue_{name}_scalef` in "
                "`scalefactors_json.json` it cannot be placed under the spots."
            )
    return images, left_out
