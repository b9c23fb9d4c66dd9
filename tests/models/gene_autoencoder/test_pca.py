"""Principal components of counts: against a naive pipeline, with genes missing, and what is refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from histoweave._validate import HistoweaveWarning
from histoweave.models import GenePCA
from histoweave.models._pca import LinearMap


@pytest.fixture
def fitted(sections):
    return GenePCA(10).fit(sections)


def naive(table, n: int) -> np.ndarray:
    counts = table.layers["counts"].toarray().astype(float)
    log = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    for name in table.obs["library_id"].unique():
        rows = (table.obs["library_id"] == name).to_numpy()
        log[rows] -= log[rows].mean(0)
    peer = PCA(n).fit(log)
    return peer.transform(log) * (1 - peer.noise_variance_ / peer.explained_variance_)


def test_naive_pipeline(sections):
    found, expected = GenePCA(10, target_sum=1e4).fit_embed(sections), naive(sections, 10)
    sign = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * sign, atol=2e-3)
    assert found.dtype == np.float32


def test_default_depth_is_the_median(sections):
    depth = np.asarray(sections.layers["counts"].sum(axis=1)).ravel()
    np.testing.assert_array_equal(
        GenePCA(10).fit_embed(sections), GenePCA(10, target_sum=float(np.median(depth))).fit_embed(sections)
    )


def test_fit_embed_is_fit_then_embed(sections, fitted):
    np.testing.assert_array_equal(GenePCA(10).fit_embed(sections), fitted.embed(sections))


def test_input_is_not_changed(sections):
    before = sections.copy()
    GenePCA(5).fit(sections).embed(sections)
    assert (sections.X != before.X).nnz == 0
    assert list(sections.var.columns) == list(before.var.columns)
    assert list(sections.layers) == list(before.layers)
    assert list(sections.obs.columns) == list(before.obs.columns)


def test_counts_are_found_in_layer_x_or_where_said(sections, fitted):
    expected = fitted.embed(sections)
    moved = sections.copy()
    moved.layers["raw"] = moved.layers.pop("counts")
    moved.X = moved.X.toarray()
    np.testing.assert_allclose(fitted.embed(moved), expected, atol=1e-5)  # X holds the same counts, dense
    moved.X = np.log1p(moved.X)
    np.testing.assert_allclose(fitted.embed(moved, layer="raw"), expected, atol=1e-5)
    with pytest.raises(ValueError, match="fractional.*layer="):
        fitted.embed(moved)
    with pytest.raises(KeyError, match="'rwa'.*Did you mean 'raw'"):
        fitted.embed(moved, layer="rwa")


def test_other_order_more_genes_and_a_duplicate_entry_change_nothing(sections, fitted):
    expected = fitted.embed(sections)
    order = np.random.default_rng(0).permutation(sections.n_vars)
    np.testing.assert_allclose(fitted.embed(sections[:, order].copy()), expected, atol=1e-5)
    split = sections.copy()  # the same count stored as two entries of one place
    csr = split.layers["counts"].tocsr()
    rows, cols = csr.nonzero()
    half = np.floor(csr.data / 2)
    data, rows, cols = np.concatenate([half, csr.data - half]), np.tile(rows, 2), np.tile(cols, 2)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=split.n_obs))])
    by_row = np.argsort(rows, kind="stable")
    split.layers["counts"] = sp.csr_matrix((data[by_row], cols[by_row], indptr), shape=split.shape)
    np.testing.assert_allclose(fitted.embed(split), expected, atol=1e-5)


def test_section_order_does_not_matter(sections):
    names = sections.obs["library_id"].astype(str).to_numpy()
    order = np.concatenate([np.flatnonzero(names == n) for n in sorted(set(names), reverse=True)])
    a, b = GenePCA(5).fit_embed(sections), GenePCA(5).fit_embed(sections[order].copy())
    np.testing.assert_allclose(b, a[order], atol=1e-5)


def test_missing_genes_beat_zero_filling(sections, fitted):
    rng = np.random.default_rng(0)
    keep = rng.random(sections.n_vars) < 0.7
    full = fitted.embed(sections)
    with pytest.warns(HistoweaveWarning, match=f"{(~keep).sum()} of the model's 120 genes are not in the table"):
        estimated = fitted.embed(sections[:, keep].copy())
    padded = sections.copy()
    padded.layers["counts"] = sections.layers["counts"] @ sp.diags(keep.astype(np.float32))
    filled = fitted.embed(padded)
    errors = [np.square(e - full)[:, :3].sum() for e in (estimated, filled)]
    assert errors[0] < errors[1]
    assert min(np.corrcoef(estimated[:, i], full[:, i])[0, 1] for i in range(2)) > 0.9


def test_too_few_genes(sections, fitted):
    with pytest.raises(ValueError, match=r"10 of the model's 120 genes \(8%, at least 30% are needed\).*same kind"):
        fitted.embed(sections[:, :10].copy())
    other = sections.copy()
    other.var_names = [f"ENSG{i}" for i in range(120)]
    with pytest.raises(ValueError, match=r"0 of the model's 120 genes"):
        fitted.embed(other)


def test_rows_without_counts_are_missing(sections, fitted):
    empty = sections.copy()
    csr = empty.layers["counts"].tolil()
    csr[:7] = 0
    empty.layers["counts"] = csr.tocsr()
    X = fitted.embed(empty)
    assert np.isnan(X[:7]).all()
    assert np.isfinite(X[7:]).all()
    with pytest.warns(HistoweaveWarning, match="7 of 400 spots"):
        assert np.isnan(GenePCA(5).fit_embed(empty)[:7]).all()


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "NaN"), (-1.0, "negative"), (0.5, "fractional")])
def test_not_counts(sections, fitted, bad, said):
    spoiled = sections.copy()
    spoiled.layers["counts"] = spoiled.layers["counts"].astype(float)
    spoiled.layers["counts"].data[3] = bad
    for call in (fitted.embed, GenePCA(5).fit):
        with pytest.raises(ValueError, match=said):
            call(spoiled)


def test_repeated_gene_names(sections, fitted):
    twice = sections.copy()
    twice.var_names = [*twice.var_names[:-1], twice.var_names[0]]
    for call in (fitted.embed, GenePCA(5).fit):
        with pytest.raises(ValueError, match="gene names repeat"):
            call(twice)


def test_no_genes_and_all_zero(sections):
    with pytest.raises(ValueError, match="no genes"):
        GenePCA().fit(sections[:, :0].copy())
    zero = sections.copy()
    zero.layers["counts"] = sp.csr_matrix(zero.shape, dtype=np.float32)
    with pytest.raises(ValueError, match="2 rows with counts"):
        GenePCA().fit(zero)


def test_no_matrix_at_all():
    with pytest.raises((ValueError, TypeError), match="counts|no genes"):
        GenePCA().fit(ad.AnnData(shape=(5, 3)))


def test_marked_genes_are_used(sections):
    marked = sections.copy()
    marked.var["highly_variable"] = np.arange(120) < 30
    assert GenePCA(5).fit(marked).genes == list(marked.var_names[:30])
    assert len(GenePCA(5, n_top_genes=40).fit(sections).genes) == 40


def test_not_fitted(sections):
    with pytest.raises(RuntimeError, match="not fitted"):
        GenePCA().embed(sections)


@pytest.mark.parametrize(
    "wrong",
    [{"n_components": 0}, {"n_top_genes": 1}, {"target_sum": 0}, {"min_share": 0}, {"random_state": "a"}],
)
def test_bad_arguments(wrong):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(wrong))}`"):
        GenePCA(**wrong)


def test_loaded_is_the_same_to_the_last_bit(sections, fitted, tmp_path):
    again = GenePCA.load(fitted.save(tmp_path / "genes"))
    assert np.array_equal(again.embed(sections), fitted.embed(sections))
    assert again.genes == fitted.genes
    assert again.sections_seen == [f"section_{i}" for i in range(1, 5)]
    assert isinstance(again._map, LinearMap)
    assert "120" in (tmp_path / "genes" / "README.md").read_text()
