"""The files of a legacy Spatial Transcriptomics section: counts, spots, labels."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from histoweave._validate import listing, require_counts
from histoweave.io import _label_files as label_files

Source = str | os.PathLike[str] | pd.DataFrame


def read_labels(source: Source, column: str | None) -> pd.Series:
    """Return labels by spot name from either form of label table."""
    table = label_files.read_table(source, argument="labels")
    if label_files.is_st_table(table):
        return label_files.st_labels(table, column)
    if label_files.is_one_hot(table):
        return label_files.one_hot_labels(table)
    msg = (
        "`labels` needs columns 'x', 'y' and a label, or one column a spot (named '17_9' or '17x9'); found "
        f"{listing(table.columns)}."
    )
    raise ValueError(msg)


def read_counts(source: Source) -> tuple[sp.csr_matrix, pd.Index, pd.Index]:
    """Return counts, spot names and gene names."""
    if isinstance(source, pd.DataFrame):
        rows, genes, values = source.index, source.columns, source.to_numpy()
    else:
        rows, genes, values = _count_file(Path(source))
    xy = label_files.spot_positions(rows)
    if xy is None:
        turned = (
            " The columns look like spots: transpose the table."
            if label_files.spot_positions(genes) is not None
            else ""
        )
        msg = f"`counts`: rows must be named by array position ('10x13'), found {listing(rows[:3])}.{turned}"
        raise ValueError(msg)
    names = label_files.spot_names(xy)
    _require_unique(names, "counts")
    try:
        matrix = sp.csr_matrix(np.asarray(values, dtype=np.float32))
    except ValueError as error:
        msg = f"`counts` holds values that are not numbers ({error})."
        raise ValueError(msg) from error
    require_counts(matrix, where="`counts`")
    return matrix, names, pd.Index([str(g) for g in genes])


def _count_file(path: Path) -> tuple[pd.Index, list[str], np.ndarray]:
    if not path.is_file():
        msg = f"`counts`: there is no file {str(path)!r}."
        raise FileNotFoundError(msg)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as stream:
            first = stream.readline().rstrip("\r\n")
            separator = max("\t,", key=first.count)
            body = pd.read_csv(stream, sep=separator, header=None, index_col=0)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, EOFError, OSError) as error:
        msg = f"`counts`: {str(path)!r} is empty, damaged or was cut off ({error})."
        raise ValueError(msg) from error
    genes = [name.strip('"') for name in first.split(separator)]  # pandas would rename repeated genes
    genes = genes[1:] if len(genes) == body.shape[1] + 1 else genes
    if len(genes) != body.shape[1]:
        msg = f"`counts`: {str(path)!r} names {len(genes)} genes but has {body.shape[1]} columns of counts."
        raise ValueError(msg)
    return body.index, genes, body.to_numpy()


def read_spots(table: pd.DataFrame) -> pd.DataFrame:
    """Return selected spots, indexed by name, with columns x, y, pixel_x, pixel_y."""
    needed = ["x", "y", "pixel_x", "pixel_y"]
    absent = [c for c in needed if c not in table]
    if absent:
        msg = f"`spots` has no column {listing(absent)}; found {listing(table.columns)}."
        raise ValueError(msg)
    if "selected" in table:
        table = table[pd.to_numeric(table["selected"], errors="coerce") != 0]
    numbers = table[needed].apply(pd.to_numeric, errors="coerce").astype(float)
    bad = ~np.isfinite(numbers.to_numpy()).all(axis=1)
    if bad.any():
        msg = f"`spots` has missing or non-numeric positions in {int(bad.sum())} rows (first: row {int(bad.argmax())})."
        raise ValueError(msg)
    numbers.index = label_files.spot_names(numbers[["x", "y"]].to_numpy())
    _require_unique(numbers.index, "spots")
    return numbers


def place(
    function: Callable[[np.ndarray], np.ndarray], annotation: pd.Series | None, expression: tuple | None
) -> pd.DataFrame:
    """Return the spots of the counts, else of the labels, at the pixels that ``function`` gives."""
    if expression is None and annotation is None:
        msg = "`spots` is a function, so the array positions must come from `counts` or `labels`: pass one of them."
        raise ValueError(msg)
    names = expression[1] if expression is not None else annotation.index
    array = label_files.spot_positions(names)
    pixels = np.asarray(function(array), dtype=float)
    if pixels.shape != array.shape or not np.isfinite(pixels).all():
        msg = f"`spots` must return one finite pixel (x, y) a position, shape {array.shape}; got {pixels.shape}."
        raise ValueError(msg)
    return pd.DataFrame(np.hstack([array, pixels]), index=names, columns=["x", "y", "pixel_x", "pixel_y"])


def _require_unique(names: pd.Index, argument: str) -> None:
    twice = names[names.duplicated()].unique()
    if len(twice):
        msg = (
            f"`{argument}` has {len(twice)} array positions more than once (after rounding; e.g. {listing(twice, 3)})."
        )
        raise ValueError(msg)
