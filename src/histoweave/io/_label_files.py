"""Label tables in their several shapes, brought to one: a Series of labels indexed by spot name."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from histoweave._validate import listing

_SPOT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*[x_]\s*(\d+(?:\.\d+)?)\s*$")
_ST_EXTRA = {"x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected", "row.names", ""}


def read_table(source: str | os.PathLike[str] | pd.DataFrame, *, argument: str) -> pd.DataFrame:
    """Read a CSV or TSV file (also gzipped) with all columns as text, or take a DataFrame as it is."""
    if isinstance(source, pd.DataFrame):
        return source.copy()
    path = Path(source)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.iterdir())[:12] if path.parent.is_dir() else []
        msg = f"`{argument}`: there is no file {str(path)!r}; its folder holds {listing(near)}."
        raise FileNotFoundError(msg)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as stream:
            separator = max("\t,;", key=stream.readline().count)
        table = pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, EOFError, OSError) as error:
        msg = f"`{argument}`: cannot read {str(path)!r} as a table ({error})."
        raise ValueError(msg) from error
    return table.rename(columns=lambda name: "" if str(name).startswith("Unnamed:") else str(name))


def spot_positions(names: pd.Index | list[str]) -> np.ndarray | None:
    """Return array positions ``(n, 2)`` of names such as ``10x13`` or ``10_13``; None unless all are."""
    found = [_SPOT.match(str(name)) for name in names]
    if not found or not all(found):
        return None
    return np.array([[float(m.group(1)), float(m.group(2))] for m in found])


def spot_names(xy: np.ndarray) -> pd.Index:
    """Name spots after their rounded array position, ``10x13``."""
    return pd.Index([f"{x}x{y}" for x, y in np.rint(np.asarray(xy, dtype=float)).astype(int)])


def is_one_hot(table: pd.DataFrame) -> bool:
    """Tell whether all columns after the first are spots: one row a label, 1 where the spot has it."""
    columns = list(table.columns)
    rest = columns[1:] if columns and not _SPOT.match(str(columns[0])) else columns
    return spot_positions(rest) is not None


def one_hot_labels(table: pd.DataFrame) -> pd.Series:
    """Return labels by spot name from a one-hot table; a spot without a label is missing."""
    if not _SPOT.match(str(table.columns[0])):
        table = table.set_index(table.columns[0])
    names = table.index.astype(str).str.strip()
    values = table.apply(pd.to_numeric, errors="coerce").fillna(0).to_numpy() > 0
    several = values.sum(axis=0) > 1
    if several.any():
        msg = f"{int(several.sum())} spots have more than one label (e.g. {listing(table.columns[several], 3)})."
        raise ValueError(msg)
    labels = np.where(values.any(axis=0), np.asarray(names, dtype=object)[values.argmax(axis=0)], None)
    return unique_labels(pd.Series(labels, index=spot_names(spot_positions(table.columns)), dtype=object))


def is_st_table(table: pd.DataFrame) -> bool:
    """Tell whether rows are legacy ST spots: columns ``x`` and ``y`` hold array positions."""
    return {"x", "y"} <= set(table.columns)


def st_labels(table: pd.DataFrame, column: str | None) -> pd.Series:
    """Return labels by spot name from a table with columns ``x``, ``y`` (rounded here) and a label."""
    xy = table[["x", "y"]].apply(pd.to_numeric, errors="coerce")
    table, xy = table[xy.notna().all(axis=1)], xy.dropna()
    column = label_column(table, column, others=[c for c in table.columns if c.lower() in _ST_EXTRA])
    return unique_labels(pd.Series(table[column].to_numpy(dtype=object), index=spot_names(xy.to_numpy())))


def label_column(table: pd.DataFrame, column: str | None, *, others: list[str]) -> str:
    """Return the column that holds the labels: ``column``, else the only one that is not in ``others``."""
    left = [c for c in table.columns if c not in others]
    if column is not None:
        if column not in table.columns:
            msg = f"`column={column!r}` is not in the label table; available: {listing(left)}."
            raise KeyError(msg)
        return column
    if len(left) != 1:
        problem = "has no label column" if not left else f"has several columns that may be labels: {listing(left)}"
        msg = f"The label table {problem} (columns: {listing(table.columns)}). Name the one to use with `column=`."
        raise ValueError(msg)
    return left[0]


def unique_labels(labels: pd.Series) -> pd.Series:
    """Drop repeated spots; a spot with two different labels is an error. Blank labels become missing."""
    cleaned = labels.map(_text, na_action="ignore").astype(object)
    cleaned = cleaned.where(cleaned.notna() & (cleaned != ""), None)
    distinct = cleaned[cleaned.notna()].groupby(level=0).nunique()
    clash = distinct.index[distinct > 1]
    if len(clash):
        example = sorted(set(cleaned[clash[0]].dropna()))
        msg = (
            f"{len(clash)} spots are listed with different labels, e.g. {clash[0]!r} as {listing(example)}. "
            "Keep one row a spot."
        )
        raise ValueError(msg)
    order = cleaned.isna().to_numpy().argsort(kind="stable")  # a labelled row wins over an unlabelled one
    cleaned = cleaned.iloc[order]
    return cleaned[~cleaned.index.duplicated()]


def _text(label: object) -> str:
    """A label as text; a whole number stays whole in a column that gaps have made floating point."""
    return str(int(label) if isinstance(label, float) and label.is_integer() else label).strip()
