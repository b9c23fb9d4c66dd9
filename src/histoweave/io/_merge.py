"""Joining ``obs``, ``var``, ``obsm`` and the records of several sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._validate import listing, warn


def merge_records(records: Sequence[Mapping[str, Any]], libraries: Sequence[str]) -> dict[str, Any]:
    """Merge records key by key.

    What the sections agree on is kept once, entries that only some have (such as a pixel size per section)
    are joined, and where they disagree the value of the first section stays while
    ``record["differs"]["params.size_um"]`` lists the value of each section. Parameters that differ are warned
    of: such results are not comparable.
    """
    out: dict[str, Any] = {}
    for key in dict.fromkeys(k for r in records for k in r):
        owners = [(lib, r[key]) for lib, r in zip(libraries, records, strict=True) if key in r]
        if len(owners) == 1 or not all(isinstance(entry, Mapping) for _, entry in owners):
            out[key] = owners[0][1]
            continue
        differs: dict[str, dict[str, Any]] = {}
        out[key] = _merge(owners, "", differs)
        if differs:
            out[key]["differs"] = differs
        if changed := [name.removeprefix("params.") for name in differs if name.startswith("params.")]:
            warn(
                f"`uns['histoweave'][{key!r}]`: sections were made with different {listing(changed)}; "
                "compare them with care."
            )
    return out


def rename_section(records: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return records in which what is kept by section is kept by a section's new name."""

    def renamed(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            new.replace("/", "_") if key in (old, old.replace("/", "_")) else key: renamed(v)
            for key, v in value.items()
        }

    return {key: renamed(entry) for key, entry in records.items()}


def _merge(
    owners: list[tuple[str, Mapping[str, Any]]], path: str, differs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(k for _, entry in owners for k in entry):
        if not path and key == "differs":
            continue
        values = [(lib, entry[key]) for lib, entry in owners if key in entry]
        if all(isinstance(value, Mapping) for _, value in values):
            merged[key] = _merge(values, f"{path}{key}.", differs)
            continue
        merged[key] = values[0][1]
        if not all(_same(value, merged[key]) for _, value in values):
            differs[f"{path}{key}"] = dict(values)
    return merged


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        return a == b
    return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))


def join_obs(frames: list[pd.DataFrame]) -> pd.DataFrame:
    columns = dict.fromkeys(c for f in frames for c in f)
    index = pd.Index(np.concatenate([f.index.to_numpy() for f in frames]))
    return pd.DataFrame(
        {
            c: _join_column(
                [f.get(c, pd.Series(None, f.index, dtype=object)) for f in frames], [c in f for f in frames]
            )
            for c in columns
        },
        index=index,
    )


def _join_column(parts: list[pd.Series], present: list[bool]) -> Any:
    known = [p for p, here in zip(parts, present, strict=True) if here]
    if any(isinstance(p.dtype, pd.CategoricalDtype) for p in known) or known[0].name == _keys.LIBRARY:
        seen = [p.cat.categories if isinstance(p.dtype, pd.CategoricalDtype) else pd.unique(p.dropna()) for p in known]
        categories = list(dict.fromkeys(c for names in seen for c in names))
        return pd.Categorical(np.concatenate([p.astype(object).to_numpy() for p in parts]), categories=categories)
    kinds = [getattr(p.dtype, "kind", "O") for p in known]
    if set(kinds) in ({"b", "i"}, {"b", "u"}):  # a flag that some readers keep as 0 and 1
        known = [p.astype(np.int64) for p in known]
        counted = iter(known)
        parts = [next(counted) if here else p for p, here in zip(parts, present, strict=True)]
    if not all(present):  # a missing truth value or integer needs a type that can be missing
        nullable = {"b": "boolean", "i": "Int64", "u": "Int64", "f": "float64"}
        kind = nullable.get(getattr(known[0].dtype, "kind", "O"))
        if kind and all(p.dtype == known[0].dtype for p in known):
            parts = [p.astype(kind) for p in parts]
    return pd.concat(parts).array


def join_var(tables: list[AnnData], genes: pd.Index) -> pd.DataFrame:
    out = pd.DataFrame(index=genes)
    withgenes = [t.var for t in tables if t.n_vars]
    for column in withgenes[0] if withgenes else ():
        if column.startswith("measured_") or not all(column in var for var in withgenes):
            continue
        stacked = pd.concat([var[column].astype(object) for var in withgenes])
        stacked = stacked[stacked.index.isin(genes)]
        if (stacked.groupby(level=0).nunique(dropna=False) <= 1).all():
            out[column] = stacked[~stacked.index.duplicated()].reindex(genes).infer_objects()
    return out


def join_obsm(tables: list[AnnData]) -> dict[str, Any]:
    joined, lost = {}, []
    for key in dict.fromkeys(k for t in tables for k in t.obsm):
        parts = [t.obsm.get(key) for t in tables]
        value = _stack(parts, [t.obs_names for t in tables])
        if value is None:
            lost.append(f"{key} ({', '.join('missing' if p is None else str(p.shape[1:]) for p in parts)})")
        else:
            joined[key] = value
    if lost:
        warn(f"`obsm` {listing(lost)} was left out: it does not fit together over the sections.")
    return joined


def _stack(parts: list[Any], rows: list[pd.Index]) -> Any:
    known = [p for p in parts if p is not None]
    if any(isinstance(p, pd.DataFrame) for p in known):
        if not all(isinstance(p, pd.DataFrame) for p in known):
            return None
        return pd.concat([pd.DataFrame(index=r) if p is None else p for p, r in zip(parts, rows, strict=True)])
    if len({p.shape[1:] for p in known}) > 1:
        return None
    if len(known) < len(parts):
        if known[0].ndim != 2 or known[0].dtype.kind != "f" or sp.issparse(known[0]):
            return None
        parts = [
            np.full((len(r), known[0].shape[1]), np.nan, known[0].dtype) if p is None else p
            for p, r in zip(parts, rows, strict=True)
        ]
    if any(sp.issparse(p) for p in parts):
        return sp.vstack(parts, format="csr")
    if any(hasattr(p, "dask") for p in parts):
        import dask.array as da

        return da.concatenate([da.asarray(p) for p in parts])
    return np.concatenate([np.asarray(p) for p in parts])
