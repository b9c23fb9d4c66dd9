"""Outlines of the spots over the image, with what the alignment check found."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any

import pandas as pd

from histoweave import _keys
from histoweave._record import recorded
from histoweave._resolve import get_table, sections
from histoweave._validate import listing, require_key
from histoweave.pl import _draw

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


_STATUS = {"fail": "#B3261E", "warn": "#8A5A00", "ok": "#2D6A4F"}


def alignment(
    data: AnnData | SpatialData,
    *,
    library_id: str | None = None,
    image: bool | str = True,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    ax: Axes | None = None,
) -> Axes:
    """Draw outlines of the spots on the whole image of a section, to see whether they lie on the tissue.

    Parameters
    ----------
    data
        Table or SpatialData with ``obsm["spatial"]``.
    library_id
        The section; may be left out when there is one.
    image
        As in :func:`histoweave.pl.regions`.
    library_key
        Column of ``obs`` with the section names.
    table_key
        Name of the table in a SpatialData object.
    ax
        Axes to draw into; by default a new figure.

    Returns
    -------
    The Axes. Spots outside the image are orange. Below stand the findings of ``pp.check_alignment`` for this
    section, when it has been run.

    Raises
    ------
    KeyError
        Unknown section or image.
    ValueError
        Several sections and no ``library_id``, or coordinates that are not finite.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> ax = hw.pl.alignment(adata)
    """
    table = get_table(data, table_key)
    rows = sections(table, library_key)
    if library_id is None:
        if len(rows) > 1:
            msg = f"The table holds several sections ({listing(rows)}); name one with `library_id=`."
            raise ValueError(msg)
        library_id = next(iter(rows))
    require_key(rows, library_id, where="the sections of the table", argument="library_id")
    xy = _draw.coordinates(table, rows[library_id])
    diameter = _draw.spot_size(table, library_id, xy, None)
    below = _draw.thumbnail(data, library_id, box=None, image=image, table_key=table_key)
    ax = _draw.new_axes(ax, 1, 1, panel=(6.0, 5.6))[0, 0]
    low, high = xy.min(axis=0) - diameter, xy.max(axis=0) + diameter
    colors: Any = "#0050D8"
    if below is not None:
        below.draw(ax)
        left, top, right, bottom = below.extent
        inside = ((xy >= (left, top)) & (xy <= (right, bottom))).all(axis=1)
        colors = ["#0050D8" if within else "#D55E00" for within in inside]
        low, high = low.clip(max=(left, top)), high.clip(min=(right, bottom))
    _draw.draw_spots(ax, xy, diameter, "none", edgecolors=colors, linewidths=0.9)
    _draw.frame(ax, (*low, *high))
    _draw.scale_bar(ax, _draw.pixel_size(table, library_id, rows[library_id]))
    ax.set_title(library_id, fontsize=11)
    _write_findings(ax, recorded(table, "alignment").get("findings"), library_id)
    return ax


def _write_findings(ax: Axes, findings: Mapping[str, Any] | None, library_id: str) -> None:
    """Write what needs a look below the picture, one colour a status, and name the checks that passed."""
    if findings is None:
        return
    frame = pd.DataFrame(dict(findings))
    frame = frame[frame["library_id"] == library_id]
    passed = frame.loc[frame["status"] == "ok", "check"]
    lines = [
        (row.status, f"{row.status}  {row.check}: {row.message}")
        for status in ("fail", "warn")
        for row in frame[frame["status"] == status].itertuples()
    ]
    if len(passed):
        lines.append(("ok", f"ok  {', '.join(dict.fromkeys(passed))}"))
    down = 8
    for status, line in lines:
        text = fill(line, 90)
        ax.annotate(text, (0, 0), xycoords="axes fraction", xytext=(0, -down), textcoords="offset points",
                    va="top", fontsize=8, color=_STATUS[status])  # fmt: skip
        down += 11 * (text.count("\n") + 1) + 3
