"""Tables in files and lazy arrays: the same model as in memory, a block at a time, nothing of the user's changed."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp

import histoweave as hw
from histoweave.models.gene_autoencoder import _counts
from histoweave.models.gene_autoencoder._counts import CountReader, column_sums

QUICK = {"n_latent": 6, "widths": (24,), "max_epochs": 2, "n_top_genes": 60, "loading": "sparse"}


@pytest.fixture
def table(sections):
    """Counts in X, as they are in a file, in a type that no model computes in."""
    del sections.layers["counts"]
    sections.X = sp.csr_matrix(sections.X, dtype=np.int16)
    sections.obs_names_make_unique()
    return sections


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(_counts, "BLOCK", 64)
    monkeypatch.setattr(hw.settings, "progress", False)


def lazy(table, kind, folder):
    if kind == "dask":
        out = table.copy()
        out.X = da.from_array(table.X.toarray(), chunks=(70, 50))
        return out
    if kind == "dask sparse":
        out = table.copy()
        out.X = da.from_array(table.X.toarray(), chunks=(70, -1)).map_blocks(sp.csr_matrix)
        return out
    if kind == "backed dense":
        table = table.copy()
        table.X = table.X.toarray()
    table.write_h5ad(folder / "table.h5ad")
    return ad.read_h5ad(folder / "table.h5ad", backed="r")


@pytest.mark.parametrize("kind", ["backed", "backed dense", "dask", "dask sparse"])
def test_lazy_and_in_memory_tables_give_the_same_weights(table, kind, tmp_path):
    expected = hw.models.GeneAutoencoder(**QUICK, likelihood="nb").fit(table)
    other = lazy(table, kind, tmp_path)
    matrix, dtype = type(other.X), other.X.dtype
    found = hw.models.GeneAutoencoder(**QUICK, likelihood="nb").fit(other)
    assert found.genes == expected.genes
    weights = found._net.state_dict()
    assert all(np.array_equal(weights[k], v) for k, v in expected._net.state_dict().items())
    np.testing.assert_array_equal(found.embed(other), expected.embed(table))
    assert type(other.X) is matrix
    assert other.X.dtype == dtype


def test_matrix_of_the_user_is_left_as_it_was(table):
    before = table.X
    data = before.data.copy()
    hw.models.GeneAutoencoder(**QUICK).fit_embed(table)
    assert table.X is before
    assert before.dtype == np.int16
    np.testing.assert_array_equal(before.data, data)


def test_blocks_are_read_one_at_a_time(table, tmp_path, monkeypatch):
    other, sizes = lazy(table, "backed", tmp_path), []
    check = _counts.checked_counts
    monkeypatch.setattr(_counts, "checked_counts", lambda m, where: sizes.append(m.shape[0]) or check(m, where))
    counts, depth = CountReader(other, None).columns(np.array([3, -1, 0]), np.arange(400)[::-1])
    assert max(sizes) == 64
    assert not counts.data.flags.owndata  # mapped from a file, which is read only
    assert not counts.data.flags.writeable
    np.testing.assert_array_equal(counts.toarray()[:, [0, 2]], table.X.toarray()[::-1][:, [3, 0]])
    assert counts[:, [1]].nnz == 0
    np.testing.assert_array_equal(depth, np.asarray(table.X.sum(axis=1)).ravel()[::-1])


def test_rows_are_taken_in_the_order_asked(table, tmp_path):
    rows = np.random.default_rng(0).choice(400, 50, replace=False)
    for kind in ("backed", "dask"):
        found = CountReader(lazy(table, kind, tmp_path), None).take(rows)
        np.testing.assert_array_equal(found.toarray(), table.X[rows].toarray())


def test_counts_stored_by_column_and_spoiled_ones_are_refused(table, tmp_path):
    csc = table.copy()
    csc.X = table.X.tocsc()
    with pytest.raises(ValueError, match="stored by column.*tocsr"):
        hw.models.GenePCA(5).fit(lazy(csc, "backed", tmp_path))
    log = table.copy()
    log.X = da.from_array(np.log1p(table.X.toarray()), chunks=(100, -1))
    with pytest.raises(ValueError, match="log-transformed"):
        hw.models.GenePCA(5).fit(log)


def test_depths_and_sums_do_not_overflow(table):
    table.X = table.X * np.int16(0) + sp.csr_matrix(np.full(table.shape, 30_000, dtype=np.int16))
    _, depth = CountReader(table, None).columns(np.arange(2), None)
    assert depth.tolist() == [30_000.0 * table.n_vars] * table.n_obs
    assert column_sums(table.X, np.arange(400)).tolist() == [30_000.0 * 400] * table.n_vars
