"""Activity of gene programmes in every spot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoweave import _keys
from histoweave._record import record
from histoweave._resolve import sections, working_copy
from histoweave._validate import listing, require_number, warn
from histoweave.models.gene_autoencoder._activity import programme_activity
from histoweave.models.gene_autoencoder._data import Expression, Rows, variable_genes
from histoweave.models.gene_autoencoder._masking import (
    MIN_GENES,
    learn_programmes,
    membership,
    named_programmes,
    read_programmes,
)
from histoweave.models.gene_autoencoder._model import GENES_PER_PROGRAMME, PROGRAMME_ROWS
from histoweave.pp._expression import raw_counts

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

LEARNED = "learned"


def gene_programmes(
    data: AnnData | SpatialData,
    *,
    programmes: str | os.PathLike[str] | Mapping[str, Sequence[str]] = LEARNED,
    method: str = "aucell",
    top_share: float = 0.05,
    n_programmes: int | None = None,
    n_top_genes: int = 2000,
    layer: str | None = None,
    key_added: str = "gene_programmes",
    random_state: int = 0,
    library_key: str = _keys.LIBRARY,
    table_key: str = _keys.TABLE,
) -> dict[str, list[str]]:
    """Score how active each gene programme is in every spot.

    Parameters
    ----------
    data
        AnnData or SpatialData object with raw counts.
    programmes
        A GMT file (a programme a line: name, description, genes, separated by tabs), ``{name: genes}``, or
        ``"learned"``: groups of variable genes that rise and fall together, centred within each section.
    method
        ``"aucell"``: how far up the spot's ranking of all genes the programme's genes are [1]_, from 0 to 1;
        the depth of a spot plays no direct part, and no spot depends on another. ``"zscore"``: sum of the genes'
        z-scores within the section over the square root of their number [2]_.
    top_share
        Share of the ranking that ``"aucell"`` looks at.
    n_programmes
        Number of programmes to learn. Default: one for 40 genes.
    n_top_genes
        Variable genes to learn programmes from, where ``var["highly_variable"]`` does not mark them.
    layer
        Layer of the raw counts. Default: ``layers["counts"]`` where it exists, else ``X``.
    key_added
        Name of the activities in ``obsm``.
    random_state
        Seed of learned programmes.
    library_key
        Column of ``obs`` that names the section.
    table_key
        Table of a SpatialData object.

    Returns
    -------
    Genes of every programme, cut to those of the table. Writes ``obsm[key_added]``, a DataFrame of float32 with
    one column a programme (NaN for rows without counts), and ``uns["histoweave"][key_added]``.

    Raises
    ------
    FileNotFoundError
        There is no such GMT file.
    ValueError
        No programme has three genes of the table, a GMT line has no genes, or the values are not raw counts.

    Notes
    -----
    Genes with equal counts, above all those not seen, are tied in the ranking; ``"aucell"`` gives them what they
    would get on average if ties were broken at random, so that the result does not depend on a seed. Programmes
    of which fewer than three genes are in the table are left out with a warning.

    References
    ----------
    .. [1] Aibar et al., SCENIC, Nat. Methods 14, 2017.
    .. [2] Lee et al., PLoS Comput. Biol. 4, 2008.

    Examples
    --------
    >>> import histoweave as hw
    >>> adata = hw.datasets.simulate_section()
    >>> names = adata.var_names[adata.var["marker_of"] == "programme_1"]
    >>> found = hw.tl.gene_programmes(adata, programmes={"first": list(names)})
    >>> adata.obsm["gene_programmes"].shape
    (400, 1)
    """
    _, table = working_copy(data, table_key)
    counts, _ = raw_counts(table, layer)
    keys = {"layer": layer, "library_key": library_key}
    if isinstance(programmes, str) and programmes == LEARNED:
        for name, value in (("n_programmes", n_programmes), ("n_top_genes", n_top_genes)):
            if value is not None:
                require_number(value, argument=name, at_least=2, integer=True)
        genes = variable_genes(table, layer, n_top_genes, library_key)
        found = _learn(table, genes, n_programmes, random_state, **keys)
    else:
        found = _given(programmes, table.var_names)
    members = membership(found, table.var_names)
    activity = programme_activity(
        counts, members, sections(table, library_key), method=method, top_share=top_share
    )  # fmt: skip
    table.obsm[key_added] = pd.DataFrame(activity, index=table.obs_names, columns=list(found))
    source = programmes if isinstance(programmes, str | os.PathLike) else "given"
    params = {"programmes": str(source), "method": method, "top_share": top_share, "layer": layer}
    if source == LEARNED:
        params |= {"n_programmes": len(found), "n_top_genes": n_top_genes}
    record(table, key_added, "tl.gene_programmes", params, random_state=random_state, genes=found)
    return found


def _given(
    programmes: str | os.PathLike[str] | Mapping[str, Sequence[str]], genes: pd.Index
) -> dict[str, list[str]]:  # fmt: skip
    named = named_programmes(programmes)
    found = read_programmes(named, genes)
    lost = [name for name in named if name not in found]
    if lost:
        warn(
            f"{len(lost)} of {len(named)} programmes have fewer than {MIN_GENES} genes in the table and are left out: "
            f"{listing(lost, 5)}."
        )
    return found


def _learn(
    table: AnnData, genes: list[str], n_programmes: int | None, seed: int, *, layer: str | None, library_key: str
) -> dict[str, list[str]]:
    """Group the variable genes by their centred log values in a sample of the rows."""
    expression = Expression(table, genes, layer, library_key)
    rows = Rows(expression, target_sum=expression.median_depth(), centre=True)
    usable = np.flatnonzero(rows.usable)
    if len(usable) > PROGRAMME_ROWS:
        usable = np.sort(np.random.default_rng(seed).choice(usable, PROGRAMME_ROWS, replace=False))
    values = rows.log[usable].toarray() - rows.means[rows.section_number[usable]]
    return learn_programmes(values, genes, n_programmes or max(2, len(genes) // GENES_PER_PROGRAMME), seed)
