"""Several sections as one table, nothing lost without saying so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._resolve import get_table, is_spatialdata, section_column
from histoweave._validate import listing, require_choice, warn
from histoweave.io._elements import SPOT_ID, assemble
from histoweave.io._merge import join_obs, join_obsm, join_var, merge_records, rename_section

if TYPE_CHECKING:
    from spatialdata import SpatialData


def concat(
    sections: Sequence[AnnData | SpatialData] | Mapping[str, AnnData | SpatialData],
    *,
    join: str = "inner",
    table_key: str = _keys.TABLE,
) -> AnnData | SpatialData:
    """Join sections into one object; each row keeps its section in ``obs["library_id"]``.

    Parameters
    ----------
    sections
        AnnData or SpatialData objects, all of one kind; each may hold several sections. A mapping from new
        names to AnnData objects of one section each renames the sections. Not changed.
    join
        ``"inner"`` keeps the genes that all sections have (the number lost is reported). ``"outer"`` keeps
        all genes; a gene that a section did not measure is 0 there, and ``var["measured_{library_id}"]``
        tells that 0 from a measured one.
    table_key
        Name of the table in SpatialData objects.

    Returns
    -------
    AnnData | SpatialData
        Rows are named ``{library_id}_{name}`` (names that begin so already are kept). ``obs`` keeps the
        columns of all sections and the union of categories; ``uns["spatial"]`` and ``uns["histoweave"]`` are
        merged, other ``uns`` entries describe single sections and are left out. Crops are joined without
        being computed when lazy. Images and shapes of SpatialData objects are shared.

    Raises
    ------
    ValueError
        Nothing was given, a section name or row occurs twice, no gene is shared, or sections with and without
        genes are joined with ``"inner"``.
    TypeError
        The objects are of different kinds.

    Notes
    -----
    An ``obsm`` embedding that a section lacks is NaN in its rows (the section has no such modality). Layers
    and graphs that not all sections have, and other ``obsm`` that do not fit together (crops of different
    sizes, crops of a part of the sections), are left out with a warning. ``var`` columns on which sections
    disagree are left out.

    Examples
    --------
    >>> import histoweave as hw
    >>> both = hw.io.concat([first, second])  # doctest: +SKIP
    >>> both = hw.io.concat({"P1": first, "P2": second}, join="outer")  # doctest: +SKIP
    """
    require_choice(join, ("inner", "outer"), argument="join")
    objects = list(sections.values()) if isinstance(sections, Mapping) else list(sections)
    if not objects:
        msg = "`sections` is empty: pass at least one section."
        raise ValueError(msg)
    kinds = {is_spatialdata(one) for one in objects}
    if len(kinds) > 1:
        msg = (
            "`sections` mixes AnnData and SpatialData objects. Convert with `hw.io.to_anndata` or `hw.io.from_anndata`."
        )
        raise TypeError(msg)
    names = list(sections) if isinstance(sections, Mapping) else [None] * len(objects)
    if kinds == {True} and isinstance(sections, Mapping):
        msg = (
            "SpatialData sections carry their names in their elements: pass a list, and name them when "
            "reading (`library_id=`)."
        )
        raise TypeError(msg)
    tables = [_prepared(get_table(one, table_key), name) for one, name in zip(objects, names, strict=True)]
    _require_distinct(tables)
    table = _join_tables(tables, join)
    if kinds == {False}:
        return table
    images = _collect(objects, "images")
    shapes = _collect(objects, "shapes")
    out = assemble(table, images, shapes, table_key=table_key)
    for kind in ("labels", "points"):
        for name, element in _collect(objects, kind).items():
            out[name] = element
    return out


def _prepared(table: AnnData, name: str | None) -> AnnData:
    """A shallow copy with section names in obs and unique row names; ``X`` and ``obsm`` are shared."""
    column = section_column(table).astype(str)
    entries = table.uns.get("spatial", {})
    spatial = {lib: entries[lib] for lib in dict.fromkeys(column) if lib in entries}
    records = table.uns.get(_keys.UNS, {})
    if name is not None:
        old = set(column)
        if len(old) > 1:
            msg = f"`sections[{name!r}]` holds several sections ({listing(sorted(old))}), which one name cannot rename."
            raise ValueError(msg)
        column = np.full(table.n_obs, str(name), dtype=object)
        spatial = {str(name): entry for entry in spatial.values()}
        records = rename_section(records, next(iter(old), ""), str(name))
    obs = table.obs.copy()
    obs[_keys.LIBRARY] = column
    instance_key = table.uns.get("spatialdata_attrs", {}).get("instance_key", SPOT_ID)
    if instance_key in obs:  # other readers name it otherwise
        obs[SPOT_ID] = obs[instance_key]
    obs.index = [
        row if row.startswith(f"{lib}_") else f"{lib}_{row}" for row, lib in zip(obs.index, column, strict=True)
    ]
    out = AnnData(
        table.X,
        obs=obs,
        var=table.var,
        obsm={k: v.set_axis(obs.index) if isinstance(v, pd.DataFrame) else v for k, v in table.obsm.items()},
        layers=dict(table.layers),
        obsp=dict(table.obsp),
    )
    out.uns = {"spatial": spatial, _keys.UNS: records}
    return out


def _require_distinct(tables: list[AnnData]) -> None:
    seen: set[str] = set()
    for table in tables:
        names = set(table.obs[_keys.LIBRARY])
        if both := seen & names:
            msg = (
                f"Section {listing(sorted(both))} occurs in more than one of `sections`. Read each with its "
                "own `library_id=`, or pass a mapping of new names to AnnData objects."
            )
            raise ValueError(msg)
        seen |= names
        if not table.var_names.is_unique:
            msg = (
                f"Section {listing(sorted(names))} has repeated gene names. Run `adata.var_names_make_unique()` first."
            )
            raise ValueError(msg)


def _join_tables(tables: list[AnnData], join: str) -> AnnData:
    _report_genes(tables, join)
    layers = _shared_keys([t for t in tables if t.n_vars] or tables, "layers")
    graphs = _shared_keys(tables, "obsp")
    slim = [_slim(t, layers, graphs) for t in tables]
    out = ad.concat(slim, join=join, pairwise=True, fill_value=0)
    out.obs = join_obs([t.obs for t in tables])
    out.var = join_var(tables, out.var_names)
    if join == "outer":
        for t in tables:
            for lib in dict.fromkeys(t.obs[_keys.LIBRARY]):
                earlier = t.var.get(f"measured_{lib}")
                measured = t.var_names if earlier is None else t.var_names[earlier.astype(bool)]
                out.var[f"measured_{lib}"] = out.var_names.isin(measured)
    for key, value in join_obsm(tables).items():
        out.obsm[key] = value
        flag = f"{key}_available"
        if flag in out.obs:  # sections without the column have all their crops
            out.obs[flag] = out.obs[flag].astype("boolean").fillna(True).astype(bool)
    spatial = {lib: entry for t in tables for lib, entry in t.uns["spatial"].items()}
    if spatial:
        out.uns["spatial"] = spatial
    libraries = ["+".join(dict.fromkeys(t.obs[_keys.LIBRARY])) for t in tables]
    if records := merge_records([t.uns[_keys.UNS] for t in tables], libraries):
        out.uns[_keys.UNS] = records
    return out


def _report_genes(tables: list[AnnData], join: str) -> None:
    every = set().union(*(t.var_names for t in tables))
    shared = every.intersection(*(t.var_names for t in tables))
    lost = len(every) - len(shared)
    if not lost:
        return
    if join == "outer":
        warn(
            f"{lost} of {len(every)} genes were not measured in all sections: they are 0 there, which "
            "`var['measured_...']` tells from a measured 0."
        )
    elif shared:
        warn(
            f"{lost} of {len(every)} genes are not in all sections and were left out; {len(shared)} remain. "
            "Pass `join='outer'` to keep them."
        )
    else:
        examples = "; ".join(f"{t.obs[_keys.LIBRARY].iloc[0]!r}: {listing(t.var_names[:3])}" for t in tables[:3])
        msg = (
            f"The sections share no gene ({examples}). Bring gene names to one form (symbols or Ensembl "
            "ids), or pass `join='outer'` to keep all genes with a record of where each was measured."
        )
        raise ValueError(msg)


def _shared_keys(tables: list[AnnData], slot: str) -> list[str]:
    every = dict.fromkeys(k for t in tables for k in getattr(t, slot))
    shared = [k for k in every if all(k in getattr(t, slot) for t in tables)]
    if lost := [k for k in every if k not in shared]:
        warn(f"`{slot}` {listing(lost)} was left out: not all sections have it.")
    return shared


def _slim(table: AnnData, layers: list[str], graphs: list[str]) -> AnnData:
    """The table with nothing but expression and graphs; a section without genes gets empty matrices."""
    empty = sp.csr_matrix((table.n_obs, 0), dtype=np.float32) if table.n_vars == 0 else None
    return AnnData(
        table.X if empty is None else empty,
        obs=table.obs[[]],
        var=table.var[[]],
        layers={k: table.layers[k] if empty is None else empty for k in layers},
        obsp={k: table.obsp[k] for k in graphs},
    )


def _collect(objects: list[SpatialData], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in objects:
        for name, element in getattr(one, kind).items():
            if name in found:
                msg = (
                    f"The name {name!r} occurs in the {kind} of more than one section. Rename it in one of them first."
                )
                raise ValueError(msg)
            found[name] = element
    return found
