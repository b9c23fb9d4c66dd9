"""Counts of a table block by block: in memory as they are, or from a file or a lazy array that stays where it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from histoweave.pp._expression import checked_counts, find_counts, raw_counts

BLOCK = 4096  # rows of a file or lazy array in memory at a time


class CountReader:
    """Raw counts of a table, checked as they are read.

    Parameters
    ----------
    table
        The table, not changed; its matrix may be backed by a file or a Dask array.
    layer
        Layer of the raw counts.

    Attributes
    ----------
    streamed
        The matrix is not in memory.
    """

    def __init__(self, table: AnnData, layer: str | None) -> None:
        self._matrix, self._where = find_counts(table, layer)
        self.n_rows = table.n_obs
        self.streamed = not (self._matrix is None or sp.issparse(self._matrix) or isinstance(self._matrix, np.ndarray))
        if not self.streamed:
            self._matrix = raw_counts(table, layer)[0]
        elif getattr(self._matrix, "format", "csr") == "csc":
            msg = (
                f"`{self._where}` is stored by column, so that no row can be read alone. Store it by row "
                "(`adata.X = adata.X.tocsr()`, then write it again), or read it with `adata.to_memory()`."
            )
            raise ValueError(msg)

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield ``(first row, counts)``."""
        if not self.streamed:
            yield 0, self._matrix
            return
        for start in range(0, self.n_rows, BLOCK):
            part = self._matrix[start : start + BLOCK]
            yield start, checked_counts(part.compute() if hasattr(part, "compute") else part, self._where)

    def take(self, rows: np.ndarray) -> sp.csr_matrix:
        """Return the counts of these rows, all genes, in this order."""
        order = np.argsort(rows, kind="stable")
        wanted, parts = rows[order], []
        for start, block in self.blocks():
            low, high = np.searchsorted(wanted, [start, start + block.shape[0]])
            parts.append(block[wanted[low:high] - start])
        return sp.vstack(parts, format="csr")[np.argsort(order, kind="stable")]

    def columns(self, at: np.ndarray, rows: np.ndarray | None) -> tuple[sp.csr_matrix, np.ndarray]:
        """Return float32 counts ``(rows, len(at))`` and the depth of the rows over all genes.

        Parameters
        ----------
        at
            Column of the table for each column of the result, -1 for an empty one.
        rows
            Rows to take, in this order; ``None`` for all.
        """
        depth: list[np.ndarray] = []

        def chosen() -> Iterator[sp.csr_matrix]:
            for _, block in self.blocks():
                depth.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
                yield _spread(block[:, at[at >= 0]], np.flatnonzero(at >= 0), len(at))

        counts = self.store(chosen(), len(at))
        if rows is not None:
            counts = self.store((counts[part] for part in _parts(rows)), len(at)) if self.streamed else counts[rows]
        total = np.concatenate(depth)
        return counts, total if rows is None else total[rows]

    def store(self, blocks: Iterable[sp.csr_matrix], n_columns: int) -> sp.csr_matrix:
        """Join blocks of rows: in memory, or in temporary files where the table's matrix is not in memory."""
        return _on_disk(blocks, n_columns) if self.streamed else sp.vstack(list(blocks), format="csr")


def column_sums(matrix: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Return the sum of each column over some rows, in float64."""
    total = np.zeros(matrix.shape[1])
    for part in _parts(rows, 2**16):
        total += np.asarray(matrix[part].sum(axis=0, dtype=np.float64)).ravel()
    return total


def _parts(rows: np.ndarray, size: int = BLOCK) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _spread(counts: sp.csr_matrix, place: np.ndarray, n_columns: int) -> sp.csr_matrix:
    """Return the columns at their place among all; the others are empty."""
    counts = sp.csr_matrix(counts, dtype=np.float32)
    return sp.csr_matrix((counts.data, place[counts.indices], counts.indptr), shape=(counts.shape[0], n_columns))


def _on_disk(blocks: Iterable[sp.csr_matrix], n_columns: int) -> sp.csr_matrix:
    """Return a float32 CSR matrix whose values lie in temporary files that vanish with it."""
    lengths = [np.zeros(1, dtype=np.int64)]
    with tempfile.TemporaryFile() as values, tempfile.TemporaryFile() as indices:
        for block in blocks:
            values.write(block.data.astype(np.float32, copy=False).tobytes())
            indices.write(block.indices.astype(np.int32, copy=False).tobytes())
            lengths.append(np.diff(block.indptr))
        indptr = np.cumsum(np.concatenate(lengths))
        if indptr[-1] < 2**31:
            indptr = indptr.astype(np.int32)
        data, places = _mapped(values, np.float32), _mapped(indices, np.int32)
    return sp.csr_matrix((data, places, indptr), shape=(len(indptr) - 1, n_columns), copy=False)


def _mapped(file: IO[bytes], dtype: type) -> np.ndarray:
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r") if file.tell() else np.zeros(0, dtype=dtype)
