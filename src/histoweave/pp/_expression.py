"""From raw counts to log-normalised expression with variable genes marked; nothing is thrown away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from histoweave import _keys
from histoweave._record import record, recorded
from histoweave._resolve import sections, working_copy
from histoweave._validate import listing, require_counts, require_key, require_number, warn

if TYPE_CHECKING:
    from spatialdata import SpatialData

MIN_SECTION = 10  # rows; dispersions of fewer spots are noise


def normalise_log(counts: sp.csr_matrix, target_sum: float = 1e4) -> sp.csr_matrix:
    """Return ``log(1 + target_sum * counts / row sum)`` as float32; rows without counts stay empty.

    Parameters
    ----------
    counts
        Raw counts ``(n, genes)``, not changed.
    target_sum
        Depth that every row is brought to.
    """
    out = sp.csr_matrix(counts, dtype=np.float32, copy=True)
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(target_sum, total, out=np.zeros_like(total), where=total > 0)
    out.data *= np.repeat(scale, np.diff(out.indptr)).astype(np.float32)
    np.log1p(out.data, out=out.data)
    return out


def expression(
    data: AnnData | SpatialData,
    *,
    n_top_genes: int | None = 2000,
    target_sum: float = 1e4,
    layer: str | None = None,
    min_spots: int = 3,
    min_counts: int = 1,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Check counts, normalise them to one depth, take logs and mark variable genes.

    No row and no gene is removed: what fails a check is flagged, so that rows stay aligned with their images.

    Parameters
    ----------
    data
        AnnData or SpatialData object.
    n_top_genes
        Number of variable genes to mark; ``None`` (or fewer genes than that) marks all seen often enough.
    target_sum
        Depth that every spot is brought to before the logarithm.
    layer
        Layer with the raw counts. Default: ``layers["counts"]`` where it exists (so that a second call starts
        from the counts again), else ``X``.
    min_spots
        Genes seen in fewer spots are not marked.
    min_counts
        Spots with a smaller total are flagged in ``obs["expression_ok"]`` and take no part in choosing genes.
    library_key
        Column of ``obs`` that names the section; variable genes are ranked within each section.
    table_key
        Table of a SpatialData object.
    copy
        Return a changed copy instead of writing to ``data``.

    Returns
    -------
    ``None``, or the changed object if ``copy=True``. Writes to the table:

    - ``X``: ``log(1 + normalised counts)``, sparse float32; rows without counts are empty.
    - ``layers["counts"]``: the raw counts, sparse.
    - ``obs["total_counts"]``, ``obs["n_genes"]``, ``obs["expression_ok"]`` and, where gene names begin with
      ``MT-``, ``obs["pct_counts_mt"]``.
    - ``var["n_spots"]`` and ``var["highly_variable"]``.
    - ``uns["histoweave"]["expression"]``: the arguments and the sections used.

    Raises
    ------
    ValueError
        The values are not raw counts (NaN, negative, fractional), all are zero, gene names repeat, there is
        no gene, or no gene is seen in ``min_spots`` spots.
    KeyError
        ``layer`` does not exist.

    Notes
    -----
    Genes are chosen by binned dispersion of the log values within each section and then by the number of
    sections in which they are variable (:func:`scanpy.pp.highly_variable_genes`, flavour ``"seurat"``;
    Satija et al. 2015, Nature Biotechnology 33:495). A gene that a section did not measure
    (``var["measured_..."]``, see ``hw.io.concat``) cannot be variable there and so ranks behind genes that
    all sections measured.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> hw.pp.expression(adata, n_top_genes=200)
    """
    if n_top_genes is not None:
        require_number(n_top_genes, argument="n_top_genes", at_least=1, integer=True)
    require_number(target_sum, argument="target_sum", above=0)
    require_number(min_spots, argument="min_spots", at_least=1, integer=True)
    require_number(min_counts, argument="min_counts", at_least=1)
    out, table = working_copy(data, table_key, copy=copy)
    if table.isbacked:
        msg = "The table is backed by a file, which would be changed; run `adata = adata.to_memory()` first."
        raise ValueError(msg)
    if layer is None and _keys.COUNTS in table.layers and recorded(table, "expression"):
        warn("`pp.expression` was run before; it starts again from `adata.layers['counts']`.")
    counts, source = raw_counts(table, layer)
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    ok = total >= min_counts
    _require_signal(ok, total, source, min_counts)
    n_spots = np.asarray((counts[ok] > 0).sum(axis=0)).ravel()
    log = normalise_log(counts, target_sum)
    libraries = sections(table, library_key)
    variable, used = _variable_genes(log, ok, n_spots >= min_spots, libraries, table.var_names, n_top_genes)

    mito = table.var_names.str.upper().str.startswith("MT-")
    if mito.any():
        share = np.asarray(counts[:, mito].sum(axis=1, dtype=np.float64)).ravel()
        table.obs["pct_counts_mt"] = np.divide(100 * share, total, out=np.zeros_like(total), where=total > 0)
    table.obs["total_counts"] = total
    table.obs["n_genes"] = np.diff(counts.indptr)
    table.obs["expression_ok"] = ok
    table.var["n_spots"] = n_spots
    table.var["highly_variable"] = variable
    table.layers[_keys.COUNTS] = counts.copy() if layer not in (None, _keys.COUNTS) else counts
    table.X = log
    params = {
        "n_top_genes": n_top_genes, "target_sum": target_sum, "layer": layer, "min_spots": min_spots,
        "min_counts": min_counts,
    }  # fmt: skip
    record(table, "expression", "pp.expression", params, sections_seen=used, packages=("scanpy",),
           source=source, n_variable=int(variable.sum()), n_rows_flagged=int((~ok).sum()))  # fmt: skip
    return out if copy else None


def raw_counts(table: AnnData, layer: str | None = None) -> tuple[sp.csr_matrix, str]:
    """Return the raw counts, checked, as a CSR matrix without stored zeros, and where they were found.

    Parameters
    ----------
    table
        The table, not changed.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    """
    matrix, where = find_counts(table, layer)
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    if matrix is None or not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)):
        msg = f"`{where}` is {type(matrix).__name__}; counts in memory are needed (`adata.to_memory()`)."
        raise TypeError(msg)
    return checked_counts(matrix, where), where


def find_counts(table: AnnData, layer: str | None = None) -> tuple[Any, str]:
    """Return the matrix that should hold raw counts, unread, and where it was found."""
    if table.n_vars == 0:
        msg = "The table has no genes. Read the section with its counts, or work with the image alone."
        raise ValueError(msg)
    if not table.var_names.is_unique:
        twice = table.var_names[table.var_names.duplicated()].unique()
        msg = f"{len(twice)} gene names repeat ({listing(twice, 3)}). Run `adata.var_names_make_unique()`."
        raise ValueError(msg)
    if layer is not None:
        require_key(table.layers, layer, where="adata.layers", argument="layer")
    elif _keys.COUNTS in table.layers:
        layer = _keys.COUNTS
    return (table.X, "adata.X") if layer is None else (table.layers[layer], f"adata.layers[{layer!r}]")


def checked_counts(matrix: Any, where: str) -> sp.csr_matrix:
    """Return a matrix in memory, checked to hold raw counts, as CSR without stored zeros."""
    require_counts(matrix, where=f"`{where}`")
    counts = sp.csr_matrix(matrix)
    if sp.issparse(matrix) and not (counts.has_canonical_format and counts.data.all()):
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts


def _require_signal(ok: np.ndarray, total: np.ndarray, source: str, min_counts: float) -> None:
    if not ok.any():
        msg = (
            f"No spot of `{source}` has {min_counts:g} counts or more (largest total {total.max():g}). Was "
            "the right matrix read? Point to the raw counts with `layer=`."
        )
        raise ValueError(msg)
    if not ok.all():
        warn(
            f"{int((~ok).sum())} of {len(ok)} spots have fewer than {min_counts:g} counts; they are kept, "
            "flagged in `adata.obs['expression_ok']`."
        )


def _variable_genes(
    log: sp.csr_matrix,
    ok: np.ndarray,
    seen: np.ndarray,
    libraries: dict[str, np.ndarray],
    names: pd.Index,
    n_top_genes: int | None,
) -> tuple[np.ndarray, list[str]]:
    """Mask of variable genes and the sections that chose them."""
    used = {name: rows[ok[rows]] for name, rows in libraries.items() if ok[rows].any()}
    if not seen.any():
        msg = "No gene is seen in `min_spots` spots. Lower `min_spots`, or check that all counts were read."
        raise ValueError(msg)
    if n_top_genes is None or seen.sum() <= n_top_genes:
        return seen, list(used)
    large = {name: rows for name, rows in used.items() if len(rows) >= MIN_SECTION}
    if large and len(large) < len(used):
        warn(
            f"Sections with fewer than {MIN_SECTION} spots do not help to choose genes: "
            f"{listing([name for name in used if name not in large])}."
        )
    groups = large or {"all": np.concatenate(list(used.values()))}
    from scanpy.pp import highly_variable_genes

    rows = np.concatenate(list(groups.values()))
    batch = np.repeat(list(groups), [len(r) for r in groups.values()])
    part = AnnData(
        log[rows][:, seen],
        obs=pd.DataFrame({"batch": pd.Categorical(batch)}, index=np.arange(len(rows)).astype(str)),
        var=pd.DataFrame(index=names[seen]),
    )
    found = highly_variable_genes(
        part,
        n_top_genes=n_top_genes,
        flavor="seurat",
        batch_key="batch" if len(groups) > 1 else None,
        inplace=False,
    )
    variable = np.zeros(len(seen), dtype=bool)
    variable[np.flatnonzero(seen)] = found["highly_variable"].to_numpy(dtype=bool)
    return variable, list(large or used)
