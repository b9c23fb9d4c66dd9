"""The 10x feature-barcode matrix, as an h5 file or as a MatrixMarket folder."""

from __future__ import annotations

import gzip
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoweave._validate import listing, warn

if TYPE_CHECKING:
    import h5py

_H5_NEEDS = (
    "barcodes",
    "data",
    "indices",
    "indptr",
    "shape",
    "features/id",
    "features/name",
    "features/feature_type",
)


def read_counts(path: Path) -> tuple[AnnData, dict[str, Any]]:
    """Read a 10x matrix; return the gene expression of all barcodes and what the file says of itself."""
    with warnings.catch_warnings():  # repeated names are dealt with here
        warnings.filterwarnings("ignore", message=".*names are not unique", category=UserWarning)
        table, attributes = _read_h5(path) if path.is_file() else (_read_mtx(path), {})
        table = _gene_expression(table, path)
    table.var_names_make_unique()
    return table, attributes


def _gene_expression(table: AnnData, path: Path) -> AnnData:
    if table.n_obs == 0 or table.n_vars == 0:
        msg = f"{str(path)!r} is empty: {table.n_obs} barcodes, {table.n_vars} features."
        raise ValueError(msg)
    twice = table.obs_names[table.obs_names.duplicated()].unique()
    if len(twice):
        msg = f"{str(path)!r} lists {len(twice)} barcodes more than once (e.g. {listing(twice, 3)})."
        raise ValueError(msg)
    genes = (table.var["feature_types"] == "Gene Expression").to_numpy()
    if genes.all():
        return table
    others = listing(sorted(set(table.var["feature_types"][~genes])))
    if not genes.any():
        msg = f"{str(path)!r} holds no 'Gene Expression' features, only {others}."
        raise ValueError(msg)
    warn(f"{int((~genes).sum())} features that are not gene expression ({others}) were left out.")
    return table[:, genes].copy()


def _read_h5(path: Path) -> tuple[AnnData, dict[str, Any]]:
    import h5py
    import scanpy as sc

    try:
        with h5py.File(path, "r") as file:
            attributes = _h5_attributes(file)
            absent = [name for name in _H5_NEEDS if f"matrix/{name}" not in file]
        if absent:
            msg = (
                f"{str(path)!r} is not a 10x feature-barcode matrix: it has no {listing(absent)} in its `matrix` group."
            )
            raise ValueError(msg)
        return sc.read_10x_h5(path, gex_only=False), attributes
    except OSError as error:
        msg = f"Cannot read {str(path)!r}: the file is damaged or was cut off ({error}). Copy or download it again."
        raise OSError(msg) from error


def _h5_attributes(file: h5py.File) -> dict[str, Any]:
    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    kept: dict[str, Any] = {}
    for key in ("library_ids", "chemistry_description", "software_version"):
        if key in file.attrs:
            kept[key] = [text(v) for v in np.atleast_1d(file.attrs[key])]
    return kept


def _read_mtx(folder: Path) -> AnnData:
    from scipy.io import mmread

    files = {}
    for part, names in {
        "matrix": ("matrix.mtx",),
        "barcodes": ("barcodes.tsv",),
        "features": ("features.tsv", "genes.tsv"),
    }.items():
        found = [folder / f"{name}{end}" for name in names for end in (".gz", "") if (folder / f"{name}{end}").exists()]
        if not found:
            msg = (
                f"{str(folder)!r} has no `{names[0]}` or `{names[0]}.gz`; found "
                f"{listing(sorted(p.name for p in folder.iterdir()))}."
            )
            raise FileNotFoundError(msg)
        files[part] = found[0]
    try:
        with (gzip.open if files["matrix"].suffix == ".gz" else open)(files["matrix"], "rb") as stream:
            matrix = sp.csr_matrix(mmread(stream).T, dtype=np.float32)
        barcodes = pd.read_csv(files["barcodes"], sep="\t", header=None, dtype=str)[0]
        features = pd.read_csv(files["features"], sep="\t", header=None, dtype=str)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        msg = f"Cannot read the matrix in {str(folder)!r}: a file is empty, damaged or was cut off ({error})."
        raise OSError(msg) from error
    if matrix.shape != (len(barcodes), len(features)):
        msg = (
            f"The matrix in {str(folder)!r} is {matrix.shape[1]} x {matrix.shape[0]}, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes."
        )
        raise ValueError(msg)
    kinds = features[2].to_numpy() if features.shape[1] > 2 else "Gene Expression"
    table = AnnData(matrix, obs=pd.DataFrame(index=pd.Index(barcodes.to_numpy())))
    table.var = pd.DataFrame(
        {"gene_ids": features[0].to_numpy(), "feature_types": kinds}, index=pd.Index(features[1].to_numpy())
    )
    return table
