"""Normalisation and gene selection against scanpy; bad counts are refused, no row is lost."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData

import histoweave as hw
from histoweave._validate import HistoweaveWarning
from histoweave.pp._expression import normalise_log


def counts_table(n: int = 120, genes: int = 300, *, seed: int = 0, sections: int = 2) -> AnnData:
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.5, 2.0, genes) * np.where(rng.random(genes) < 0.2, rng.gamma(1, 2, (n, genes)), 1)
    counts = rng.poisson(mean).astype(np.float32)
    names = [f"G{i}" for i in range(genes - 2)] + ["MT-CO1", "mt-Nd1"]
    library = [f"s{i % sections}" for i in range(n)]
    obs = pd.DataFrame({"library_id": library}, index=[f"r{i}" for i in range(n)])
    return AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names))


def test_equals_scanpy() -> None:
    table = counts_table()
    peer = table.copy()
    sc.pp.normalize_total(peer, target_sum=1e4)
    sc.pp.log1p(peer)
    seen = np.asarray((table.X > 0).sum(axis=0)).ravel() >= 3
    truth = sc.pp.highly_variable_genes(peer[:, seen], n_top_genes=50, batch_key="library_id", inplace=False)
    raw = table.X.toarray()
    hw.pp.expression(table, n_top_genes=50)
    np.testing.assert_allclose(table.X.toarray(), peer.X.toarray(), rtol=1e-5)
    np.testing.assert_array_equal(table.layers["counts"].toarray(), raw)
    np.testing.assert_array_equal(table.var["highly_variable"][seen], truth["highly_variable"].to_numpy())
    assert table.var["highly_variable"].sum() == 50
    np.testing.assert_allclose(table.obs["total_counts"], raw.sum(axis=1))
    np.testing.assert_array_equal(table.obs["n_genes"], (raw > 0).sum(axis=1))
    np.testing.assert_allclose(table.obs["pct_counts_mt"], 100 * raw[:, -2:].sum(axis=1) / raw.sum(axis=1))
    assert table.X.dtype == np.float32


def test_empty_spots_are_flagged_never_dropped_or_divided_by_zero() -> None:
    table = counts_table()
    table.X[[3, 7]] = 0
    with pytest.warns(HistoweaveWarning, match="2 of 120 spots"):
        hw.pp.expression(table, n_top_genes=50)
    assert table.n_obs == 120
    assert np.flatnonzero(~table.obs["expression_ok"]).tolist() == [3, 7]
    assert np.isfinite(table.X.data).all()
    assert table.X[3].nnz == 0
    assert table.obs["pct_counts_mt"].iloc[3] == 0


def test_second_call_starts_from_the_counts() -> None:
    table = counts_table()
    hw.pp.expression(table, n_top_genes=50)
    first = table.X.toarray()
    with pytest.warns(HistoweaveWarning, match="run before"):
        hw.pp.expression(table, n_top_genes=50)
    np.testing.assert_array_equal(table.X.toarray(), first)


def test_dense_integers_and_copy() -> None:
    table = counts_table()
    dense = AnnData(table.X.toarray().astype(np.int16), obs=table.obs, var=table.var)
    dense.X[0, 0] = 30_000  # sums overflow 16 bit
    dense.X[0, 1] = 30_000
    out = hw.pp.expression(dense, copy=True)
    assert out.obs["total_counts"].iloc[0] > 60_000
    assert dense.X.dtype == np.int16
    assert not dense.layers
    assert sp.issparse(out.layers["counts"])


def test_fewer_genes_than_asked_for_marks_all_that_are_seen() -> None:
    table = counts_table(genes=20)
    table.X[:, 4] = 0
    seen = (table.X.toarray() > 0).sum(axis=0) >= 3
    hw.pp.expression(table)
    np.testing.assert_array_equal(table.var["highly_variable"], seen)
    assert not table.var["highly_variable"].iloc[4]


def test_small_or_empty_sections_do_not_choose_genes() -> None:
    table = counts_table()
    table.obs["library_id"] = ["tiny"] * 4 + ["none"] * 12 + ["large"] * 104
    table.X[4:16] = 0
    alone = table[16:].copy()
    with pytest.warns(HistoweaveWarning, match="tiny"):
        hw.pp.expression(table, n_top_genes=50, min_spots=1)
    assert list(table.uns["histoweave"]["expression"]["sections_seen"]) == ["large"]
    hw.pp.expression(alone, n_top_genes=50, min_spots=1)
    both = (table.var["highly_variable"] & alone.var["highly_variable"]).sum()
    assert both >= 48  # a gene or two seen in "tiny" alone shift the bins


def test_genes_measured_in_some_sections_rank_behind() -> None:
    one, two = counts_table(sections=1), counts_table(sections=1, seed=1)
    two = two[:, :200].copy()
    two.obs_names = [f"t{name}" for name in two.obs_names]
    two.obs["library_id"] = "s1"
    table = ad.concat([one, two], join="outer", fill_value=0)
    table.var["measured_s0"] = True
    table.var["measured_s1"] = table.var_names.isin(two.var_names)
    hw.pp.expression(table, n_top_genes=30)
    assert np.isfinite(table.X.data).all()
    chosen = table.var["highly_variable"]
    assert chosen[table.var["measured_s1"]].sum() > chosen[~table.var["measured_s1"]].sum()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.X.data.__setitem__(0, np.nan), "NaN"),
        (lambda t: t.X.data.__setitem__(0, -1), "negative"),
        (lambda t: np.log1p(t.X.data, out=t.X.data), "fractional"),
        (lambda t: t.X.data.fill(0), "No spot"),
        (lambda t: setattr(t, "var_names", ["G0", "G0", *t.var_names[2:]]), "var_names_make_unique"),
    ],
)
def test_bad_counts_leave_the_table_alone(spoil, message: str) -> None:
    table = counts_table()
    spoil(table)
    before = table.copy()
    with pytest.raises(ValueError, match=message):
        hw.pp.expression(table)
    np.testing.assert_array_equal(table.X.toarray(), before.X.toarray())
    assert list(table.obs) == list(before.obs)
    assert not table.layers


def test_other_bad_input() -> None:
    with pytest.raises(ValueError, match="no genes"):
        hw.pp.expression(counts_table()[:, :0].copy())
    with pytest.raises(KeyError, match="layer"):
        hw.pp.expression(counts_table(), layer="raw")
    with pytest.raises(ValueError, match="min_spots"):
        hw.pp.expression(counts_table(), min_spots=1000)
    with pytest.raises(ValueError, match="target_sum"):
        hw.pp.expression(counts_table(), target_sum=0)
    with pytest.raises(TypeError, match="NoneType"):
        hw.pp.expression(AnnData(obs=counts_table().obs, var=counts_table().var))


def test_core_leaves_counts_alone_and_is_scale_free() -> None:
    counts = sp.csr_matrix(np.array([[1, 3], [0, 0], [2, 6]]))
    out = normalise_log(counts, 100)
    np.testing.assert_allclose(out.toarray(), np.log1p([[25, 75], [0, 0], [25, 75]]), rtol=1e-6)
    assert counts[0, 1] == 3


def test_a_file_is_not_written_to(tmp_path) -> None:
    table = counts_table()
    table.layers["counts"] = table.X.copy()
    table.write_h5ad(tmp_path / "a.h5ad")
    for mode in ("r", "r+"):
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed=mode)
        columns = list(backed.obs)
        with pytest.raises(ValueError, match="to_memory"):
            hw.pp.expression(backed)
        assert list(backed.obs) == columns
        backed.file.close()
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "a.h5ad").X.toarray(), table.X.toarray())
