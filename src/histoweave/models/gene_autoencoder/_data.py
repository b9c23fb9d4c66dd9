"""From a table of counts to batches of log values: genes chosen and aligned, sections centred, no row copied twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor

from histoweave import _keys
from histoweave._resolve import section_column
from histoweave._validate import warn
from histoweave.models._sections import MIN_SPOTS
from histoweave.models.gene_autoencoder._counts import BLOCK, CountReader, column_sums
from histoweave.pp._expression import expression
from histoweave.pp._graph import ring_graphs

VARIABLE_ROWS = 20_000  # dispersions of this many rows have settled; more only cost memory
DENSE_BYTES = 2 * 2**30  # a dense matrix up to this size is kept on the CPU
LOADINGS = ("auto", "dense", "sparse")


def variable_genes(table: AnnData, layer: str | None, n_top_genes: int, library_key: str) -> list[str]:
    """Return the genes marked in ``var["highly_variable"]``, else the most variable ones of at most 20,000 rows."""
    if "highly_variable" in table.var:
        chosen = table.var["highly_variable"].to_numpy(dtype=bool, na_value=False)
    else:
        rows = canonical_order(table, library_key)
        if len(rows) > VARIABLE_ROWS:
            rows = rows[np.linspace(0, len(rows) - 1, VARIABLE_ROWS).astype(int)]
        counts = CountReader(table, layer).take(rows)
        if not counts.nnz:
            msg = f"At least 2 rows with counts are needed, found 0 of {table.n_obs}."
            raise ValueError(msg)
        obs = pd.DataFrame({library_key: section_column(table, library_key)[rows]}, index=table.obs_names[rows])
        bare = AnnData(counts, obs=obs, var=table.var[[]])
        expression(bare, n_top_genes=n_top_genes, library_key=library_key)
        chosen = bare.var["highly_variable"].to_numpy(dtype=bool)
    names = table.var_names[chosen].astype(str).tolist()
    if len(names) < 2:
        msg = f"At least 2 variable genes are needed, found {len(names)}. Check `adata.var['highly_variable']`."
        raise ValueError(msg)
    return names


def canonical_order(table: AnnData, library_key: str = _keys.LIBRARY) -> np.ndarray:
    """Return row numbers sorted by section and row name: training must not depend on how sections were put together."""
    return np.lexsort((table.obs_names.to_numpy(dtype=str), section_column(table, library_key).astype(str)))


class Expression:
    """Counts of a model's genes in one table, aligned.

    Parameters
    ----------
    table
        The table, not changed.
    genes
        Names of the model's genes.
    layer
        Layer of the raw counts.
    library_key
        Column of ``obs`` that names the section.
    at
        Column of each gene in the table, -1 where it has none. Default: that of the same name.
    rows
        Row numbers of the table to take, in this order. Default: all.

    Attributes
    ----------
    counts
        Sparse float32 ``(n_rows, genes)``; the columns of genes that the table lacks are empty.
    present
        Mask of the genes the table has.
    depth
        Counts of each row over all genes of the table ``(n_rows,)``.
    usable
        Mask of the rows with counts.
    rows_of
        ``{section: row numbers}`` among the rows taken.
    genes, rows, section
        Names of the genes, row numbers taken, and section of each.
    """

    def __init__(
        self,
        table: AnnData,
        genes: Sequence[str],
        layer: str | None,
        library_key: str,
        *,
        at: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        reader = CountReader(table, layer)
        at = table.var_names.get_indexer(list(genes)) if at is None else at
        self.present = at >= 0
        self.rows = np.arange(table.n_obs) if rows is None else rows
        self.counts, self.depth = reader.columns(at, rows)
        self.usable = self.depth > 0
        self._store, self._table, self._library_key = reader.store, table, library_key
        self.genes = list(genes)
        self.section = section_column(table, library_key)[self.rows].astype(str)
        self.rows_of = {str(name): np.flatnonzero(self.section == name) for name in dict.fromkeys(self.section)}

    def log(self, target_sum: float) -> sp.csr_matrix:
        """Return ``log(1 + target_sum * counts / depth)``, sparse float32."""

        def logs() -> Iterator[sp.csr_matrix]:
            for start in range(0, len(self.depth), BLOCK):
                part = self.counts[start : start + BLOCK]
                depth = np.maximum(self.depth[start : start + BLOCK], 1e-12)
                scale = np.repeat(target_sum / depth, np.diff(part.indptr))
                values = np.log1p(part.data * scale).astype(np.float32)
                yield sp.csr_matrix((values, part.indices, part.indptr), shape=part.shape)

        return self._store(logs(), len(self.genes))

    def neighbours(self) -> sp.csr_matrix:
        """Return the weights ``(n_rows, n_rows)`` of the mean over each row's next neighbours that have counts."""
        ring = ring_graphs(self._table, n_rings=1, library_key=self._library_key)[0][self.rows][:, self.rows]
        ring = ring.astype(np.float32) @ sp.diags(self.usable.astype(np.float32))
        degree = np.asarray(ring.sum(axis=1)).ravel()
        return sp.csr_matrix(sp.diags(1 / np.maximum(degree, 1)) @ ring, dtype=np.float32)

    def median_depth(self) -> float:
        """Return the median depth of the rows with counts."""
        return float(np.median(self.depth[self.usable]))


class Rows:
    """Aligned expression, ready to be drawn as dense batches.

    Parameters
    ----------
    expression
        The chosen genes of a table; those that it lacks are 0 throughout.
    target_sum
        Depth every row is brought to before the logarithm.
    centre
        Centre each gene within each section; otherwise by the training rows' mean.
    mean
        Mean log value of each gene in training ``(genes,)``, ``None`` to take that of this table.
    neighbours
        Prepare the mean of each row's neighbours as well.

    Attributes
    ----------
    usable
        Mask of the rows with counts.
    present
        Mask of the genes the table has.
    mean
        Mean log value of each gene over the usable rows, or as given.
    """

    def __init__(
        self,
        expression: Expression,
        *,
        target_sum: float,
        centre: bool,
        mean: np.ndarray | None = None,
        neighbours: bool = False,
    ) -> None:
        self.present, self.usable, self.rows_of = expression.present, expression.usable, expression.rows_of
        self.counts, self.log = expression.counts, expression.log(target_sum)
        self.depth = torch.from_numpy(np.maximum(expression.depth, 1).astype(np.float32))[:, None]
        self.section_number = np.zeros(len(self.usable), dtype=np.int64)
        for i, rows in enumerate(self.rows_of.values()):
            self.section_number[rows] = i
        self.mean = self._mean_of(np.flatnonzero(self.usable)) if mean is None else mean
        self.means = np.stack([self._centre_of(rows, centre) for rows in self.rows_of.values()])
        self.means[:, ~self.present] = 0
        if centre:
            self._tell_small()
        self._neighbours = expression.neighbours() if neighbours else None
        self._dense: dict[str, Tensor] = {}

    def _mean_of(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.zeros(self.log.shape[1], dtype=np.float32)
        return (column_sums(self.log, rows) / len(rows)).astype(np.float32)

    def _centre_of(self, rows: np.ndarray, centre: bool) -> np.ndarray:
        measured = rows[self.usable[rows]]
        return self._mean_of(measured) if centre and len(measured) >= MIN_SPOTS else self.mean.copy()

    def _tell_small(self) -> None:
        sizes = {name: int(self.usable[rows].sum()) for name, rows in self.rows_of.items()}
        small = [name for name, n in sizes.items() if 0 < n < MIN_SPOTS]
        if small:
            warn(
                f"Sections with fewer than {MIN_SPOTS} measured spots ({', '.join(small)}) were centred with the "
                "training sections' mean instead of their own."
            )

    def to(self, device: str, *, loading: str | None = None, counts: bool = False) -> Rows:
        """Put the whole matrix dense on the device where it fits (``loading="auto"``), or as asked, or as before."""
        if loading is None:
            loading, counts = self._how
        self.device, self._how = device, (loading, counts)
        self.depth = self.depth.to(device)
        self._section = torch.from_numpy(self.section_number).to(device)
        self._means = torch.from_numpy(self.means).to(device)
        needed = 4 * self.log.shape[0] * self.log.shape[1] * (1 + counts)
        if loading == "dense" or (loading == "auto" and needed <= _room(device)):
            values = self.log.toarray()
            for i, rows in enumerate(self.rows_of.values()):
                values[rows] -= self.means[i]
            self._dense["log"] = torch.from_numpy(values).to(device)
            if counts:
                self._dense["counts"] = torch.from_numpy(self.counts.toarray()).to(device)
        return self

    def log_batch(self, rows: Tensor) -> Tensor:
        """Return centred log values ``(len(rows), genes)`` on the device; genes that the table lacks are 0."""
        if "log" in self._dense:
            return self._dense["log"].index_select(0, rows)
        values = torch.from_numpy(self.log[rows.cpu().numpy()].toarray()).to(self.device)
        return values - self._means[self._section[rows]]

    def around_batch(self, rows: Tensor) -> Tensor | None:
        """Return the mean of the neighbours' centred log values, 0 without neighbours; ``None`` if not prepared."""
        if self._neighbours is None:
            return None
        weights = self._neighbours[rows.cpu().numpy()]
        beside = np.unique(weights.indices)
        values = self.log_batch(torch.from_numpy(beside).long().to(self.device))
        return torch.from_numpy(weights[:, beside].toarray()).to(self.device) @ values

    def count_batch(self, rows: Tensor) -> Tensor:
        """Return raw counts ``(len(rows), genes)`` on the device."""
        if "counts" in self._dense:
            return self._dense["counts"].index_select(0, rows)
        return torch.from_numpy(self.counts[rows.cpu().numpy()].toarray()).to(self.device)


def _room(device: str) -> int:
    """Bytes that a dense matrix may take."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] // 2
    return DENSE_BYTES


def section_indices(rows_of: Mapping[str, np.ndarray], names: Sequence[str], n_rows: int) -> np.ndarray:
    """Return each row's place among the training sections, -1 where its section is new."""
    out = np.full(n_rows, -1, dtype=np.int64)
    for name, rows in rows_of.items():
        if name in names:
            out[rows] = list(names).index(name)
    return out


def balanced_order(section: np.ndarray, generator: torch.Generator) -> Tensor:
    """Return a random order of rows in which every stretch holds the sections in their overall shares.

    Parameters
    ----------
    section
        Section number of every row ``(n,)``.
    generator
        Source of randomness, on the CPU.
    """
    u = torch.rand(len(section), generator=generator, dtype=torch.float64).numpy()
    key = np.empty(len(section))
    for number in np.unique(section):
        rows = np.flatnonzero(section == number)
        rank = np.argsort(np.argsort(u[rows]))
        offset = torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy()
        key[rows] = (rank + offset) / len(rows)
    return torch.from_numpy(np.argsort(key, kind="stable"))
