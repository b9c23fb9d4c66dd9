"""A pathologist's labels brought to the spots: by barcode, by array position, by polygon."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import section_column, working_copy
from histoweave._validate import listing, require_key, warn
from histoweave.io import _label_files as label_files
from histoweave.io._polygons import label_points

if TYPE_CHECKING:
    from spatialdata import SpatialData

_BARCODE_COLUMNS = ("barcode", "barcodes", "spot", "spot_id", "spot_name", "cell", "cell_id", "")


def read_labels(
    data: AnnData | SpatialData,
    path: str | os.PathLike[str] | pd.DataFrame,
    *,
    labels_key: str = _keys.REGION,
    column: str | None = None,
    barcode_column: str | None = None,
    library_id: str | None = None,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Read labels of spots and write them to ``obs[labels_key]``.

    Parameters
    ----------
    data
        Sections to label.
    path
        One of: a CSV or TSV file (also gzipped; a Loupe Browser export is one) or DataFrame with a barcode
        column and a label column, and for several sections optionally a column ``library_id``; a legacy ST
        table with columns ``x``, ``y`` (array position, rounded) and a label; a one-hot table with one column
        a spot; a GeoJSON file of QuPath annotations in pixels of the full-resolution image.
    labels_key
        Column of ``obs`` to write.
    column
        Column of the file that holds the labels, where there are several.
    barcode_column
        Column of the file that holds the barcodes; found by its name (``Barcode``, ...) when left out.
    library_id
        Label only this section; the labels of others stay as they are. Needed for polygons, array positions
        and barcodes that fit several sections.
    table_key
        Name of the table in a SpatialData object.
    copy
        Return a labelled copy instead of changing ``data``.

    Returns
    -------
    ``None``, or the copy. Writes ``obs[labels_key]``, a categorical, missing where a spot has no label, and
    ``uns["histoweave"][labels_key]`` with the numbers of labelled spots and of entries that fit no spot.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    KeyError
        ``column``, ``barcode_column`` or ``library_id`` is not there.
    ValueError
        No entry fits a spot (the message shows examples of both), a spot is listed with different labels, the
        label column is ambiguous, or a barcode fits several sections.

    Notes
    -----
    Barcodes match with and without the suffix ``-1`` and the prefix ``{library_id}_`` that :func:`concat`
    adds. Entries that fit no spot are counted in a warning. A polygon labels the spots whose centre it
    contains or touches; where polygons overlap the smallest wins, and overlaps of different labels are
    counted in a warning.

    Examples
    --------
    >>> import histoweave as hw
    >>> hw.io.read_labels(sdata, "pathologist.csv", column="region")  # doctest: +SKIP
    >>> hw.io.read_labels(sdata, "annotations.geojson", library_id="P1")  # doctest: +SKIP
    """
    out, table = working_copy(data, table_key, copy=copy)
    section = section_column(table)
    rows = _rows(section, library_id)
    if not isinstance(path, pd.DataFrame) and Path(path).suffix.lower() in (".geojson", ".json"):
        _require_one_section(section[rows], "polygons are in the pixels of one image")
        require_key(table.obsm, _keys.SPATIAL, where="adata.obsm", argument="spatial", run="hw.io.read_visium(...)")
        labels = label_points(path, np.asarray(table.obsm[_keys.SPATIAL])[rows])
        unknown = 0
    else:
        labels, unknown = _table_labels(table, section, rows, path, column, barcode_column)
    n_labelled = int(pd.notna(labels).sum())
    if unknown:
        warn(f"{unknown} entries of the label file fit no spot and were left out; {n_labelled} spots are labelled.")
    if n_labelled == 0:
        msg = "The label file labels no spot: all labels of the spots it lists are empty."
        raise ValueError(msg)
    _write(table, rows, labels, labels_key)
    record(
        table,
        labels_key,
        "io.read_labels",
        {
            "path": path if not isinstance(path, pd.DataFrame) else "DataFrame",
            "column": column,
            "library_id": library_id,
        },
        n_labelled=n_labelled,
        n_unknown=unknown,
    )
    return out if copy else None


def _rows(section: np.ndarray, library_id: str | None) -> np.ndarray:
    if library_id is None:
        return np.arange(len(section))
    rows = np.flatnonzero(section == library_id)
    if not len(rows):
        msg = (
            f"`library_id={library_id!r}` is not a section of the data; available: "
            f"{listing(list(dict.fromkeys(section)))}."
        )
        raise KeyError(msg)
    return rows


def _require_one_section(section: np.ndarray, reason: str) -> None:
    names = list(dict.fromkeys(section))
    if len(names) > 1:
        msg = f"The data hold {len(names)} sections ({listing(names)}), but {reason}. Pass `library_id=` to say which."
        raise ValueError(msg)


def _table_labels(
    table: AnnData,
    section: np.ndarray,
    rows: np.ndarray,
    source: Any,
    column: str | None,
    barcode_column: str | None,
) -> tuple[np.ndarray, int]:
    frame = label_files.read_table(source, argument="path")
    if barcode_column is None and (by_position := _by_array_position(table, frame, column)) is not None:
        _require_one_section(section[rows], "array positions are those of one section")
        here = label_files.spot_names(table.obs[[_keys.ARRAY_COL, _keys.ARRAY_ROW]].to_numpy()[rows])
        known = by_position.index.isin(here)
        if not known.any():
            _raise_no_match(by_position.index, here)
        return by_position.reindex(here).to_numpy(dtype=object), int((~known).sum())
    return _by_barcode(table, section, rows, frame, column, barcode_column)


def _by_array_position(table: AnnData, frame: pd.DataFrame, column: str | None) -> pd.Series | None:
    """Labels by array position, when the file is a legacy ST table and the spots have array positions."""
    st_table, one_hot = label_files.is_st_table(frame), label_files.is_one_hot(frame)
    if not (st_table or one_hot) or any(str(c).lower() in _BARCODE_COLUMNS[:2] for c in frame):
        return None
    for key in (_keys.ARRAY_COL, _keys.ARRAY_ROW):
        require_key(table.obs, key, where="adata.obs", argument="array position", run="hw.io.read_st(...)")
    return label_files.st_labels(frame, column) if st_table else label_files.one_hot_labels(frame)


def _by_barcode(
    table: AnnData,
    section: np.ndarray,
    rows: np.ndarray,
    frame: pd.DataFrame,
    column: str | None,
    barcode_column: str | None,
) -> tuple[np.ndarray, int]:
    frame, barcode_column = _barcodes(frame, barcode_column)
    others = [barcode_column, *(c for c in frame if c == _keys.LIBRARY and c != column)]
    column = label_files.label_column(frame, column, others=others)
    frame = frame[frame[barcode_column].notna()]
    names = frame[barcode_column].astype(str).str.strip()
    targets = _targets(table.obs_names[rows], section[rows])
    libraries = frame[_keys.LIBRARY].astype(str) if _keys.LIBRARY in others else [""] * len(names)
    where = np.array([_find(targets, *pair) for pair in zip(names, libraries, strict=True)], dtype=int)
    clash = names[where == -2]
    if len(clash):
        msg = (
            f"{clash.nunique()} barcodes occur in several sections (e.g. {listing(clash.unique(), 3)}). Pass "
            "`library_id=` to label one section at a time, or add a column 'library_id' to the file."
        )
        raise ValueError(msg)
    known = where >= 0
    if not known.any():
        _raise_no_match(names, table.obs_names[rows])
    series = pd.Series(frame[column].to_numpy(dtype=object)[known], index=table.obs_names[rows][where[known]])
    found = label_files.unique_labels(series).reindex(table.obs_names[rows])
    return found.to_numpy(dtype=object), int(names[where == -1].nunique())


def _barcodes(frame: pd.DataFrame, barcode_column: str | None) -> tuple[pd.DataFrame, str]:
    """Return the label table and its barcode column, which in a DataFrame may be the index."""
    if barcode_column is not None:
        require_key(frame, barcode_column, where="the label file", argument="barcode_column")
        return frame, barcode_column
    named = [c for want in _BARCODE_COLUMNS for c in frame if str(c).strip().lower() == want]
    if named:
        return frame, named[0]
    if not pd.api.types.is_numeric_dtype(frame.index):
        return frame.rename_axis("barcode").reset_index(), "barcode"
    msg = f"The label file has no column 'Barcode'; found {listing(frame.columns)}. Name it with `barcode_column=`."
    raise ValueError(msg)


def _short(name: str) -> str:
    return name.removesuffix("-1")


def _targets(names: Iterable[str], section: np.ndarray) -> dict[str, list[int]]:
    """Every way to write a row's barcode -> the rows it may mean."""
    targets: dict[str, list[int]] = {}
    for row, (name, lib) in enumerate(zip(names, section, strict=True)):
        bare = _short(name.removeprefix(f"{lib}_"))
        for key in (bare, f"{lib}_{bare}"):
            targets.setdefault(key, []).append(row)
    return targets


def _find(targets: dict[str, list[int]], name: str, library: str) -> int:
    """The row a barcode means; -1 for none and -2 for several."""
    rows = targets.get(f"{library}_{_short(name)}" if library else _short(name), [])
    return rows[0] if len(rows) == 1 else -2 if rows else -1


def _raise_no_match(theirs: Iterable[str], ours: Iterable[str]) -> None:
    msg = (
        f"No entry of the label file (e.g. {listing(list(theirs)[:3])}) is a spot of the data (e.g. "
        f"{listing(list(ours)[:3])}). Is it the file of another section, or is another column the barcode "
        "(`barcode_column=`)?"
    )
    raise ValueError(msg)


def _write(table: AnnData, rows: np.ndarray, labels: np.ndarray, labels_key: str) -> None:
    _make_room(table, labels_key)
    if len(rows) < table.n_obs and labels_key in table.obs:
        values = table.obs[labels_key].astype(object).to_numpy(copy=True)
    else:
        values = np.full(table.n_obs, None, dtype=object)
    values[rows] = np.where(pd.isna(labels), None, labels)
    table.obs[labels_key] = pd.Categorical(values)


def _make_room(table: AnnData, labels_key: str) -> None:
    """Move the names of sections, which other readers keep in ``obs["region"]``, to a column of their own."""
    attrs = table.uns.get("spatialdata_attrs", {})
    if labels_key != attrs.get("region_key") or labels_key not in table.obs:
        return
    names = table.obs[labels_key]
    if _keys.LIBRARY not in table.obs:
        table.obs[_keys.LIBRARY] = names
    elif not (table.obs[_keys.LIBRARY].astype(str) == names.astype(str)).all():
        msg = (
            f"`adata.obs[{labels_key!r}]` names the elements that rows lie in, and `adata.obs[{_keys.LIBRARY!r}]` "
            "says otherwise. Write the labels to another column, e.g. `labels_key='annotation'`."
        )
        raise ValueError(msg)
    table.uns["spatialdata_attrs"] = {**attrs, "region_key": _keys.LIBRARY}
    del table.obs[labels_key]
